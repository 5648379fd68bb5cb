"""What a ranking is written as: tables, a gallery, sheets of views."""

"""What parts of the method are worth."""

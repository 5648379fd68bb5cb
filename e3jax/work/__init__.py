"""Work that takes long: files written whole, locks, what is kept, interrupts."""

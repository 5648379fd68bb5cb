"""e3jax's own programs, compiled for accelerators that may be absent."""

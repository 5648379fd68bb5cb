"""Speed of e3jax and of two PyTorch programs of the same method, each in its own process."""

"""`e3jax rank` as people meet it: folders of pictures, and large collections."""

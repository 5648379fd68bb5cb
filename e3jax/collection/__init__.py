"""Many images: read from anything, found in folders, kept in banks on disk."""

from e3jax.collection.collection import Collection, Skipped, Unreadable
from e3jax.collection.opening import read
from e3jax.collection.reader import Reader

__all__ = ["Collection", "Reader", "Skipped", "Unreadable", "read"]

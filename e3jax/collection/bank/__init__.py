"""Banks: collections on disk, whose images are mapped into memory instead of read into it.

A bank is a folder. Its shard 7 is ``0000007.arrow``, an Arrow file with a row per picture: path,
state, why it cannot be read, thumbnail, digest of the pixels, and the pixels, with one channel
where all of the shard's are grey. Readable rows come first. A shard is written whole or not at all.

``bank.json`` says how images were made, where the bank was then, and in the end that all are there.
A shard that changes is another file: whoever maps it, and then finds the state of the file that was
opened, has what was opened.
"""

from e3jax.collection.bank.opening import open_bank
from e3jax.collection.bank.storage import is_bank
from e3jax.collection.bank.writing import join, write, write_arrays

__all__ = ["is_bank", "join", "open_bank", "write", "write_arrays"]

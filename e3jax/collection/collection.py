"""A collection: images, which they are, and what was left out."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.collection.lazy import AnyArray, LazyArray
from e3jax.collection.reader import Reader
from e3jax.errors import InputError

_BLOCK = 4096  # rows of inputs that are in memory at a time


class Unreadable(NamedTuple):
    """A file or folder that was left out, and the reason in a few words."""

    path: str
    reason: str


class Skipped(Unreadable):
    """Files of one ending, or folders, that were not looked at: the folder, and a sentence."""


class Collection(NamedTuple):
    """Images of one size, in memory or in a bank on disk.

    Attributes:
      images: uint8 [n, h, w, c], h = w even, c 1 or 3.
      ids: str [n], paths; or int64 [n], positions, of images that are not files.
      reader: how these images were read: whether they are RGB, the range of float arrays, and of
        files of more than 8 bits. New images are comparable when they are read with it.
      unreadable: files that could not be read, and what was :class:`Skipped`.
      digests: uint64 [n] of the images, see :func:`e3jax.collection.copies.digests`.
      states: int64 [n, 4], the :class:`e3jax.work.files.FileState` of each file before it was
        read; None for what is not a file.
      facts: float32 [n, d], :meth:`e3jax.images.facts.Facts.vector` of each file and then
        :func:`e3jax.images.facts.detail` of its picture; None of what is not files.
      features: float32 [n, d], the user's own of each image; None without.
      thumbnails: of a bank, the content of a WebP file per image, b"" where it has none yet; else
        None.
    """

    images: AnyArray
    ids: AnyArray
    reader: Reader
    unreadable: list[Unreadable]
    digests: np.ndarray
    states: AnyArray | None = None
    facts: AnyArray | None = None
    features: AnyArray | None = None
    thumbnails: LazyArray | None = None

    @property
    def inputs(self) -> dict[str, AnyArray]:
        """What evidence is measured from, by name: images, and facts and features if there are."""
        inputs = {"images": self.images, "facts": self.facts, "features": self.features}
        return {name: array for name, array in inputs.items() if array is not None}

    @property
    def input_digests(self) -> list[str]:
        """What tells the inputs from others, also in another process."""
        digests = []
        for array in (self.digests, self.facts, self.features):
            digest = hashlib.sha256()
            if array is not None:
                for start in range(0, len(array), _BLOCK):
                    digest.update(array[start : start + _BLOCK].tobytes())
            digests.append(digest.hexdigest())
        return digests

    def check_complete(self) -> None:
        """Raises an InputError if a file could not be read; what was skipped does not count."""
        for entry in self.unreadable:
            if not isinstance(entry, Skipped):
                raise InputError(f"{entry.path} cannot be read ({entry.reason}): leave it out")


def too_few(count: int, total: int, least: int, unreadable: Sequence[Unreadable]) -> InputError:
    """The error for files of which too few are readable images."""
    if total == 1 and unreadable:
        return InputError(f"{unreadable[0].path} cannot be read ({unreadable[0].reason})")
    why = f": {unreadable[0].reason} ({unreadable[0].path})" if unreadable else ""
    return InputError(
        f"{count} of {total} files are readable images, expected at least {least}: an outlier "
        f"needs other images to differ from, so provide a larger collection{why}"
    )

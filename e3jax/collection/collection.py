"""A collection: images, which they are, and what was left out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from e3jax.images import ImageBank
from e3jax.images.high_depth import ValueRange


class Unreadable(NamedTuple):
    """A file or folder that was left out, and the reason in a few words."""

    path: str
    reason: str


class NotLookedAt(Unreadable):
    """Files of one ending, or folders, that were not looked at: the folder, and a sentence."""


class Collection(NamedTuple):
    """Images read from files.

    bank:       the readable images; their ids are their paths.
    unreadable: the files that could not be read.
    thumbnails: one WebP file's content per image of a bank on disk; else empty.
    scale:      what is black and white in files of more than 8 bits.
    digests:    uint64 [n] of the images, see `e3jax.collection.copies.digests`; None where nobody
    has them.
    states:     int64 [n, 4], the `e3jax.work.files.FileState` of each file before it was read; None
      for what is not a file.
    """

    bank: ImageBank
    unreadable: list[Unreadable]
    thumbnails: Sequence[bytes] = ()
    scale: ValueRange = ValueRange()
    digests: np.ndarray | None = None
    states: np.ndarray | None = None

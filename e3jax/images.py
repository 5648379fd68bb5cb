"""Images as the rest of the house takes them: one uint8 array and a name for every image.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class InputError(ValueError):
    """Bad input from a person: one sentence with what was got, what is expected, what to do.

    Scripts print the sentence and exit with code 2.
    """


class ImageBank(NamedTuple):
    """A collection of images of one size.

    images: uint8 [n, h, w, c], h = w even, values 0 to 255.
    ids:    int64 or str [n], what a person calls each image (a number, a file name).
    """

    images: np.ndarray
    ids: np.ndarray


def as_bank(images, ids=None) -> ImageBank:
    """Checks an array of images and gives it its canonical shape.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c], n >= 2, h = w even.
      ids: n integers or strings; 0 .. n-1 if not given.

    Returns:
      ImageBank; its images share memory with ``images`` where NumPy allows it.

    Raises:
      InputError: wrong rank, dtype, number, side, or number of ids.

    >>> as_bank(np.zeros([5, 32, 32], np.uint8)).images.shape
    (5, 32, 32, 1)
    """
    images = _as_array(images)
    if images.ndim not in (3, 4):
        raise InputError(
            f"images have shape {images.shape}, expected [n, h, w] or [n, h, w, c]: "
            "stack the images along a first axis"
        )
    if images.dtype != np.uint8:
        raise InputError(
            f"images have dtype {images.dtype}, expected uint8 with values 0 to 255: "
            "scale to that range and convert with .astype(np.uint8)"
        )
    if images.size == 0 or len(images) < 2:
        raise InputError(
            f"images have shape {images.shape}, expected at least 2 non-empty images: "
            "an outlier needs others to differ from, so give a larger collection"
        )
    h, w = images.shape[1:3]
    if h != w:
        raise InputError(
            f"images are {h} x {w}, expected square ones with channels last "
            "([n, h, w, c], h = w): crop, resize or move the channel axis"
        )
    if h % 2:
        raise InputError(
            f"images are {h} x {w}, expected an even side (patch re-arranging halves it): "
            f"pad with pad_to(images, {h + 1}) or resize"
        )
    bank = images[..., None] if images.ndim == 3 else images
    return ImageBank(bank, _as_ids(ids, len(bank)))


def pad_to(images: np.ndarray, side: int) -> np.ndarray:
    """Pads [n, h, w, c] with zeros, centred, to [n, side, side, c].

    MNIST's 28 become 32 with two pixels on each side, before any scaling (so the
    border is black). Where the margin is odd, the extra pixel comes last.

    Raises:
      InputError: not four axes, or an image is larger than ``side``.
    """
    images = _as_array(images)
    if images.ndim != 4 or max(images.shape[1:3]) > side:
        raise InputError(
            f"images have shape {images.shape}, expected [n, h, w, c] with h, w <= {side}: "
            "choose a larger side, or crop or resize the images"
        )
    margins = [((side - length) // 2, (side - length + 1) // 2) for length in images.shape[1:3]]
    return np.pad(images, [(0, 0), *margins, (0, 0)])


def _as_array(images) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # NumPy's words for a ragged list do not mention images
        raise InputError(
            "images have different shapes, expected one shape for all: crop or resize them"
        ) from error


def _as_ids(ids, n: int) -> np.ndarray:
    if ids is None:
        return np.arange(n, dtype=np.int64)
    ids = np.asarray(ids)
    if ids.shape != (n,) or ids.dtype.kind not in "iuU":
        raise InputError(
            f"ids have shape {ids.shape} and dtype {ids.dtype}, expected {n} integers or "
            "strings: give one id for each image"
        )
    return ids if ids.dtype.kind == "U" else ids.astype(np.int64)

"""Files become arrays and thumbnails."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from e3jax.collection.reader import Reader
from e3jax.collection.threads import in_threads
from e3jax.images import decoding, high_depth, to_picture, to_square
from e3jax.images.facts import WANTED, detail, file_facts
from e3jax.images.high_depth import HighDepthImage, ValueRange
from e3jax.images.thumbnails import encoded, shrunk


class Picture(NamedTuple):
    """What is read of an image.

    Attributes:
      pixels: uint8 [h, w, 3], or a `HighDepthImage`.
      facts: float32 [d], :meth:`e3jax.images.facts.Facts.vector` of its file and then
        :func:`e3jax.images.facts.detail`; None of an array or an image of Pillow's.
      thumbnail: a WebP file's content or a `HighDepthImage`, where it is asked for.
    """

    pixels: np.ndarray | HighDepthImage
    facts: np.ndarray | None = None
    thumbnail: bytes | HighDepthImage | None = None


def read_each(
    sources: Sequence,
    reader: Reader,
    on_file: Callable[[int], None] = lambda done: None,
    thumbnails: int = 0,
    threads: int | None = None,
    on_open: Callable = lambda source: None,
) -> list:
    """Reads images one by one; ``threads`` at a time, by default many.

    ``on_open`` is called with a source just before it is read, in one of the threads.

    Returns:
      For each source a `Picture`, or the exception that its decoder raised, of any type.
    """
    side, resize, *_ = reader
    square = (side, lambda picture: to_square(picture, side, resize))
    # Last, as it shrinks the picture in place.
    small = [(thumbnails, lambda picture: shrunk(picture, thumbnails))] if thumbnails else []

    def read(source) -> Picture:
        on_open(source)
        is_file = isinstance(source, (str, os.PathLike, bytes))
        about = file_facts(source).vector() if is_file else None
        if isinstance(source, np.ndarray):
            source = to_picture(source.reshape(*source.shape[:2], -1))
        pixels, *others = decoding.decode(source, square, *[WANTED] * is_file, *small)
        if about is not None:
            about = np.concatenate([about, detail(others.pop(0))])
        if not isinstance(pixels, HighDepthImage):  # which waits for the collection's range
            pixels = np.asarray(pixels)
        return Picture(pixels, about, *map(encoded, others))

    return in_threads(read, sources, on_file, threads)


def in_colours(images: np.ndarray, channels: int) -> np.ndarray:
    """Images uint8 [n, h, w, c], c 1 or 3, with so many channels."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.broadcast_to(images, (*images.shape[:-1], 3))
    luma = images @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
    return luma.round().astype(np.uint8)[..., None]


def thumbnails(
    pictures: Iterable,
    side: int = 96,
    on_file: Callable[[int], None] = lambda done: None,
    file_range: ValueRange | None = None,
) -> list[bytes]:
    """Makes thumbnails that keep each image's aspect ratio, as WebP files.

    Images of at most 64 x 64 pixels keep all their pixels and exact values.

    Args:
      pictures: files, or uint8 [n, h, w, c], c 1 or 3.
      side: longest side in pixels.
      on_file: called with the number of images done after each image.
      file_range: black and white in files of more than 8 bits, see
        :class:`e3jax.collection.Reader`; what it does not have is found from each file.

    Returns:
      The contents of n files; b"" for a file that cannot be read.
    """

    def make(picture: Any) -> Any:
        if isinstance(picture, np.ndarray):
            return encoded(shrunk(to_picture(picture), side))
        [small] = decoding.decode(picture, (side, lambda picture: shrunk(picture, side)))
        if isinstance(small, HighDepthImage):
            small = small.to_uint8(high_depth.common_range([small], file_range))
        return encoded(small)

    results = in_threads(make, list(pictures), on_file)
    return [b"" if isinstance(result, Exception) else result for result in results]

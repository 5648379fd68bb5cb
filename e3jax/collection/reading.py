"""Files and folders become an ImageBank and thumbnails."""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from e3jax.choices import FITS
from e3jax.collection.collecting import is_path
from e3jax.collection.collection import Collection, Unreadable
from e3jax.collection.threads import in_threads, reason
from e3jax.errors import InputError
from e3jax.images import as_bank, decoding, high_depth, to_picture, to_square
from e3jax.images.high_depth import HighDepthImage, ValueRange
from e3jax.images.thumbnails import encoded, shrunk
from e3jax.work import files


def read_files(
    sources: Iterable,
    side: int = 32,
    fit: str = "squash",
    colour: bool | None = None,
    least: int = 2,
    on_file: Callable[[int], None] = lambda done: None,
    scale: ValueRange | None = None,
) -> Collection:
    """Reads image files into a bank of square images.

    Images are rotated as their EXIF data says. CMYK, palette, 16-bit and float images become
    greyscale or RGB. Transparent pixels become white, or black where a white drawing would not be
    seen, see :func:`e3jax.images.opaque`. The first frame of an animation is used.
    Files of more than 179 million pixels, Pillow's limit, are not decoded: a few kilobytes can
    expand to gigabytes. Only regular files are opened, and no other program is started.

    Files of more than 8 bits often use a part of their range, e.g. 12 of 16 bits. All of them
    share one range, so that a dark image stays dark, see
    :func:`e3jax.images.high_depth.common_range`. Their pixels without data, NaN or what GDAL's tag
    says, do not count and become black.

    Args:
      sources: files, by their paths or contents, or images, arrays uint8 [h, w] or [h, w, c], c 1
        to 4, or Pillow's. Images are told by their paths; by their positions if any is no path.
      side: side of the images in the bank in pixels, even.
      fit: how an image becomes square: "squash" scales both sides, "crop" keeps the largest square
        in the middle, "letterbox" adds black borders.
      colour: True for RGB, False for greyscale, None for RGB if any image has colour.
      least: smallest allowed number of readable images; training needs 2.
      on_file: called with the number of files done after each file.
      scale: of files of more than 8 bits, e.g. that of an earlier collection; what it does not
        have is found from these files.

    Raises:
      InputError: unknown fit, odd side, fewer than ``least`` readable images, or a source without
        a path that cannot be read.
    """
    sources = list(sources)
    have_paths = all(map(is_path, sources))
    names = list(map(os.fspath, sources)) if have_paths else range(len(sources))
    states, unreadable, ids, found = {}, [], [], []

    def on_open(source) -> None:
        if have_paths:
            states[os.fspath(source)] = files.state_of(source)

    results = read_each(sources, side, fit, on_file, on_open=on_open)
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, Exception):
            ids.append(name)
            found.append(result[0])
        elif have_paths:
            unreadable.append(Unreadable(name, reason(result)))
        else:
            raise InputError(f"element {name} cannot be read ({reason(result)}): leave it out")
    if len(ids) < max(least, 1):
        first = unreadable[0] if unreadable else None
        if len(sources) == 1 and first:
            raise InputError(f"{first.path} cannot be read ({first.reason})")
        why = f": {first.reason} ({first.path})" if first else ""
        raise InputError(
            f"{len(ids)} of {len(sources)} files are readable images, expected at least {least}: "
            f"an outlier needs other images to differ from, so provide a larger collection{why}"
        )
    scale = high_depth.common_range(
        [image for image in found if isinstance(image, HighDepthImage)], scale
    )
    images = np.stack([_in_scale(image, scale) for image in found])
    is_grey = colour is False or (colour is None and (images == images[..., :1]).all())
    images = in_colours(images, 1 if is_grey else 3)
    states = np.array([states[path] for path in ids], np.int64) if have_paths else None
    return Collection(as_bank(images, ids, least), unreadable, scale=scale, states=states)


def read_each(
    sources: Sequence,
    side: int,
    fit: str,
    on_file: Callable[[int], None] = lambda done: None,
    thumbnails: int = 0,
    threads: int | None = None,
    on_open: Callable = lambda source: None,
) -> list:
    """Reads images one by one, see `read_files`; ``threads`` at a time, by default many.

    ``on_open`` is called with a source just before it is read, in one of the threads.

    Returns:
      For each source the exception that its decoder raised, of any type, or a list: pixels uint8
      [h, w, 3], or a `HighDepthImage`; and where thumbnails are asked for, a WebP file's content
      or a `HighDepthImage`.

    Raises:
      InputError: unknown fit.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}, expected one of {', '.join(FITS)}: choose one of them")
    wanted = [(side, lambda picture: to_square(picture, side, fit))]
    if thumbnails:
        wanted.append((thumbnails, lambda picture: shrunk(picture, thumbnails)))

    def read(source) -> list:
        on_open(source)
        if isinstance(source, np.ndarray):
            source = to_picture(source.reshape(*source.shape[:2], -1))
        found = [_finished(picture) for picture in decoding.decode(source, *wanted)]
        return [found[0], *map(encoded, found[1:])]

    return in_threads(read, sources, on_file, threads)


def in_colours(images: np.ndarray, channels: int) -> np.ndarray:
    """Images uint8 [n, h, w, c], c 1 or 3, with so many channels."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.broadcast_to(images, (*images.shape[:-1], 3))
    luma = images @ np.float32([0.299, 0.587, 0.114])  # ITU-R 601
    return luma.round().astype(np.uint8)[..., None]


def _finished(picture):
    """uint8 [h, w, 3] of an RGB image of Pillow's; a `HighDepthImage` as it is."""
    return picture if isinstance(picture, HighDepthImage) else np.asarray(picture)


def _in_scale(image, scale: ValueRange):
    return image.to_uint8(scale) if isinstance(image, HighDepthImage) else image


def thumbnails(
    pictures,
    side: int = 96,
    on_file: Callable[[int], None] = lambda done: None,
    scale: ValueRange | None = None,
) -> list[bytes]:
    """Makes thumbnails that keep each image's aspect ratio, as WebP files.

    Images of at most 64 x 64 pixels keep all their pixels and exact values.

    Args:
      pictures: files, or uint8 [n, h, w, c], c 1 or 3.
      side: longest side in pixels.
      on_file: called with the number of images done after each image.
      scale: of files of more than 8 bits, as `read_files` found it; what it does not have is found
        from each file alone.

    Returns:
      The contents of n files; b"" for a file that cannot be read.
    """

    def make(picture) -> bytes:
        if isinstance(picture, np.ndarray):
            return encoded(shrunk(to_picture(picture), side))
        [small] = decoding.decode(picture, (side, lambda picture: shrunk(picture, side)))
        if isinstance(small, HighDepthImage):
            small = small.to_uint8(high_depth.common_range([small], scale))
        return encoded(small)

    results = in_threads(make, list(pictures), on_file)
    return [b"" if isinstance(result, Exception) else result for result in results]

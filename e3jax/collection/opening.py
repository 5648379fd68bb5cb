"""Turns whatever holds pictures into a collection."""

import functools
import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from e3jax import choices, images
from e3jax.collection import copies
from e3jax.collection.bank import is_bank, open_bank, write
from e3jax.collection.collecting import collect, is_path
from e3jax.collection.collection import Collection, Unreadable, too_few
from e3jax.collection.finding import find_files
from e3jax.collection.lazy import LazyArray
from e3jax.collection.reader import Reader
from e3jax.collection.reading import in_colours, read_each
from e3jax.collection.threads import reason
from e3jax.errors import InputError, warn
from e3jax.images.high_depth import HighDepthImage, ValueRange, common_range
from e3jax.work import files
from e3jax.work.progress import Progress, no_progress

_log = logging.getLogger(__name__)


def read(
    X: Any,
    reader: Reader = Reader(),
    *,
    least: int = 1,
    on_progress: Progress = no_progress,
    bank: str | os.PathLike | None = None,
    executor: Executor | None = None,
    left_out: Sequence[Unreadable] = (),
) -> Collection:
    """Reads a collection of images.

    Files are rotated as their EXIF data says. CMYK, palette, 16-bit and float images become
    greyscale or RGB. Transparent pixels become white, or black where a white drawing would not be
    seen, see :func:`e3jax.images.opaque`. The first frame of an animation is used. Files of more
    than 179 million pixels, Pillow's limit, are not decoded: a few kilobytes can expand to
    gigabytes. Only regular files are opened, and no other program is started.

    Files of more than 8 bits often use a part of their range, e.g. 12 of 16 bits. All of them
    share one range, so that a dark image stays dark, see
    :func:`e3jax.images.high_depth.common_range`. Their pixels without data, NaN or what GDAL's tag
    says, do not count and become black.

    Args:
      X: a folder, of which all images below it are taken; a bank, see
        :mod:`e3jax.collection.bank`; an array or tensor [n, h, w] or [n, h, w, c], c 1 to 4; any
        iterable of files or images, a data set or a table, see
        :func:`e3jax.collection.collecting.collect`; or a collection that was read earlier.
      reader: how pictures become arrays.
      least: smallest allowed number of readable images; training needs 2.
      on_progress: called as ("reading", files done, of how many).
      bank: a folder in which a bank is made of more than 20,000 files, where pyarrow is installed;
        None: all images are held in memory.
      executor: decodes files for the bank; default: processes, one per core.
      left_out: what else the collection is to list as unreadable.

    Returns:
      The collection, with the reader that suits new images. Elements that are not paths must all
      be readable; of files the others are listed as unreadable.

    Raises:
      InputError: bad images or files, or fewer than ``least`` can be read.
    """
    reader.check()
    if isinstance(X, Collection):
        return _suited(X, "the collection", reader, least)
    if is_path(X) and is_bank(X):
        return _suited(open_bank(X), X, reader, least)
    sources, unreadable = find_files(X) if is_path(X) else (collect(X), [])
    left_out = [*left_out, *unreadable]
    reader = reader._replace(value_range=_value_range(sources, reader.value_range))
    if isinstance(sources, np.ndarray):
        return _read_array(sources, reader, least)
    if bank is not None and is_large(sources):
        _log.info(
            f"{len(sources)} files are a large collection: caching it in {bank} first, which "
            "can be ranked instead of them next time"
        )
        made = write(bank, sources, reader, left_out, on_progress, executor)
        return _suited(made, bank, reader, least)
    return _read_sources(sources, reader, left_out, least, on_progress)


def is_large(sources: Sequence) -> bool:
    """Whether these are so many files that a bank is made of them, if it can be."""
    has_pyarrow = importlib.util.find_spec("pyarrow") is not None
    return len(sources) > choices.LARGE and has_pyarrow and all(map(is_path, sources))


def _suited(collection: Collection, name: Any, reader: Reader, least: int) -> Collection:
    """A collection that was read earlier, as if by this reader.

    Raises:
      InputError: that would need the pictures themselves; it has fewer images than ``least``.
    """
    made, pixels = collection.reader, collection.images
    for what, has, wanted in (
        ("image size", made.side, reader.side),
        ("resize", made.resize, reader.resize),
    ):
        if has not in (wanted, ""):
            raise InputError(
                f"{name} was made with {what} {has}, not {wanted}: use that, or make another bank"
            )
    if len(pixels) < least:
        raise InputError(f"{name} has fewer than {least} images: give a larger collection")
    for known, other in reader.file_range.conflicts(made.file_range):
        raise InputError(
            f"{name} has files of more than 8 bits, read from {other[0]:g} to {other[1]:g}; the "
            f"detector knows {known[0]:g} to {known[1]:g}: give the files themselves"
        )
    colour = made.colour if reader.colour is None else reader.colour
    if colour != made.colour:
        convert = functools.partial(in_colours, channels=3 if colour else 1)
        if isinstance(pixels, LazyArray):
            pixels = LazyArray([pixels].__getitem__, [len(pixels)], convert(pixels[:0]), convert)
        else:
            pixels = convert(pixels)
    value_range = made.value_range or reader.value_range
    used = reader._replace(colour=colour, value_range=value_range, file_range=made.file_range)
    return collection._replace(images=pixels, reader=used)


def _read_array(array: np.ndarray, reader: Reader, least: int) -> Collection:
    pixels = images.to_uint8(array, reader.value_range)
    pixels = images.checked(images.resize(pixels, reader.side, reader.resize), least)
    file_range = ValueRange(*reader.file_range[:2])  # without counts of other files
    used = reader._replace(colour=pixels.shape[-1] == 3, file_range=file_range)
    return Collection(pixels, np.arange(len(pixels)), used, [], copies.digests(pixels))


def _read_sources(
    sources: Sequence, reader: Reader, left_out: Sequence, least: int, on_progress: Progress
) -> Collection:
    """Reads files, pictures and arrays into memory."""
    have_paths, total = all(map(is_path, sources)), len(sources)
    states, ids, pictures, facts, unreadable = {}, [], [], [], []

    def on_open(source: Any) -> None:
        if have_paths:
            states[os.fspath(source)] = files.state_of(source)

    def on_file(done: int) -> None:
        on_progress("reading", done, total)

    sources = [_to_uint8(source, reader.value_range) for source in sources]
    names: Iterable = map(os.fspath, sources) if have_paths else range(total)
    results = read_each(sources, reader, on_file, on_open=on_open)
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, Exception):
            ids.append(name)
            pictures.append(result.pixels)
            facts.append(result.facts)
        elif have_paths:
            unreadable.append(Unreadable(str(name), reason(result)))
        else:
            raise InputError(f"element {name} cannot be read ({reason(result)}): leave it out")
    if len(ids) < max(least, 1):
        raise too_few(len(ids), total, least, unreadable)
    pixels, used = _as_pixels(pictures, reader)
    return Collection(
        images.checked(pixels, least),
        np.array(ids),
        used,
        [*left_out, *unreadable],
        copies.digests(pixels),
        np.array([states[path] for path in ids], np.int64) if have_paths else None,
        None if any(vector is None for vector in facts) else np.stack(facts),
    )


def _to_uint8(source: Any, value_range: tuple[float, float] | None) -> Any:
    is_array = isinstance(source, np.ndarray)
    return images.to_uint8(source[None], value_range)[0] if is_array else source


def _as_pixels(
    pictures: Sequence[np.ndarray | HighDepthImage], reader: Reader
) -> tuple[np.ndarray, Reader]:
    """Pictures, uint8 [h, w, 3] or deeper, as uint8 [n, h, w, c], and how they were read."""
    known = reader.file_range.filled(ValueRange(floats=reader.value_range))
    file_range = common_range([p for p in pictures if isinstance(p, HighDepthImage)], known)
    pixels = np.stack(
        [p.to_uint8(file_range) if isinstance(p, HighDepthImage) else p for p in pictures]
    )
    colour = reader.colour
    if colour is None:
        colour = bool((pixels != pixels[..., :1]).any())
    used = reader._replace(colour=colour, file_range=file_range)
    return in_colours(pixels, 3 if colour else 1), used


def _value_range(
    sources: np.ndarray | list, known: tuple[float, float] | None
) -> tuple[float, float] | None:
    """The range of float arrays: as it is known, else as they seem to have, which is announced."""
    known = None if known is None else (float(known[0]), float(known[1]))
    if isinstance(sources, np.ndarray):
        arrays = [sources]
    else:
        arrays = [source[None] for source in sources if isinstance(source, np.ndarray)]
    floats = [array for array in arrays if array.dtype.kind == "f" and array.size]
    extremes = list(map(images.value_extremes, floats))
    usual = images.usual_range(np.concatenate(extremes)) if floats else None
    if usual is None:
        return known
    lowest, highest = float(min(map(np.min, floats))), float(max(map(np.max, floats)))
    black, white = known or usual
    span = white - black
    is_clipped = lowest < black - 0.1 * span or white + 0.1 * span < highest
    is_tiny = 16 * (usual[1] - usual[0]) < span and lowest < highest
    if known is None or is_clipped or is_tiny:
        warn(
            f"float images, here from {lowest:g} to {highest:g}, are taken to range from "
            f"{black:g} to {white:g}: give value_range to say otherwise"
        )
    return black, white

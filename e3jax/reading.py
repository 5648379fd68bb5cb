"""Files and folders become an ImageBank and thumbnails, in one pass over the files."""

import concurrent.futures
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax import quarantine
from e3jax.images import FITS, ImageBank, InputError, as_bank, to_picture, to_square


class Unreadable(NamedTuple):
    """A file or folder that was left out, and the reason in a few words."""

    path: str
    reason: str


class Collection(NamedTuple):
    """Images read from files.

    bank:       the readable images; their ids are their paths.
    unreadable: the files that could not be read.
    thumbnails: one WebP file's content per image of the bank; empty unless `read_files` was asked
                for them.
    """

    bank: ImageBank
    unreadable: list[Unreadable]
    thumbnails: Sequence[bytes] = ()


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Unreadable]]:
    """Finds all image files below a folder by the file extensions that Pillow knows.

    Hidden files and folders are skipped, and quarantines. Links to folders are not followed,
    because they can form cycles. The order is natural: "2.png" comes before "10.png".

    Returns:
      The files, and the folders that cannot be opened.

    Raises:
      InputError: the folder does not exist, is a quarantine or contains no images.
    """
    from PIL import Image

    folder, found, errors = Path(folder), [], []
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, expected a folder of images: check the path")
    if quarantine.is_quarantine(folder):
        raise InputError(f"{folder} is a quarantine: move its files back first, with --undo")
    extensions = Image.registered_extensions()

    for path, folders, names in os.walk(folder, onerror=errors.append):
        if quarantine.is_quarantine(path):
            folders[:], names = [], []
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in names if not name.startswith("."))
        found += [Path(path, name) for name in names if Path(name).suffix.lower() in extensions]
    closed = [Unreadable(str(error.filename), _reason(error)) for error in errors]
    if not found:
        why = f" ({closed[0].reason}: {closed[0].path})" if closed else ""
        raise InputError(f"{folder} has no image files{why}: choose a folder of at least 2 images")
    return sorted(found, key=lambda path: _natural(path.relative_to(folder))), closed


def _natural(path: Path) -> tuple:
    """A sort key that orders numbers in file names by value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def read_files(
    paths: Iterable[str | os.PathLike],
    side: int = 32,
    fit: str = "squash",
    colour: bool | None = None,
    least: int = 2,
    on_file: Callable[[int], None] = lambda done: None,
    thumbnails: int = 0,
) -> Collection:
    """Reads image files into a bank of square images.

    Images are rotated as their EXIF data says. CMYK, palette and 16-bit images become greyscale or
    RGB. Transparent pixels become white. The first frame of an animation is used. Files of more
    than 179 million pixels, Pillow's limit, are not decoded: a few kilobytes can expand to
    gigabytes.

    Args:
      paths: the files.
      side: side of the images in the bank in pixels, even.
      fit: how an image becomes square: "squash" scales both sides, "crop" keeps the largest square
        in the middle, "letterbox" adds black borders.
      colour: True for RGB, False for greyscale, None for RGB if any image has colour.
      least: smallest allowed number of readable images; training needs 2.
      on_file: called with the number of files done after each file.
      thumbnails: longest side in pixels of the thumbnails to make in the same pass; 0 for none.
        The images in the bank do not depend on it.

    Raises:
      InputError: unknown fit, odd side, or fewer than ``least`` readable images.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}, expected one of {', '.join(FITS)}: choose one of them")
    paths, images, ids, small, unreadable = list(paths), [], [], [], []
    results = _in_threads(lambda path: _read(path, side, fit, thumbnails), paths, on_file)
    for path, result in zip(map(os.fspath, paths), results, strict=True):
        if isinstance(result, str):
            unreadable.append(Unreadable(path, result))
            continue
        ids.append(path)
        images.append(result[0])
        small += result[1:]
    if len(ids) < max(least, 1):
        why = f": {unreadable[0].reason} ({unreadable[0].path})" if unreadable else ""
        raise InputError(
            f"{len(ids)} of {len(paths)} files are readable images, expected at least {least}: an "
            f"outlier needs other images to differ from, so provide a larger collection{why}"
        )
    images = np.stack(images)
    if colour is False:
        luma = images @ np.float32([0.299, 0.587, 0.114])  # ITU-R 601
        images = luma.round().astype(np.uint8)[..., None]
    elif colour is None and (images == images[..., :1]).all():
        images = images[..., :1]
    return Collection(as_bank(images, ids, least), unreadable, small)


def thumbnails(
    pictures, side: int = 96, on_file: Callable[[int], None] = lambda done: None
) -> list[bytes]:
    """Makes thumbnails that keep each image's aspect ratio, as WebP files.

    Images of at most 64 x 64 pixels keep all their pixels and exact values.

    Args:
      pictures: files, or uint8 [n, h, w, c], c 1 or 3.
      side: longest side in pixels.
      on_file: called with the number of images done after each image.

    Returns:
      The contents of n files; b"" for a file that cannot be read.
    """

    def make(picture) -> bytes:
        try:
            if isinstance(picture, np.ndarray):
                return _thumbnail(to_picture(picture), side)
            return _thumbnail(*_open(picture, side), side)
        except Exception:  # as in _read
            return b""

    return list(_in_threads(make, pictures, on_file))


def _in_threads(work: Callable, items: Iterable, on_item: Callable[[int], None]) -> Iterator:
    """Yields ``work(item)`` per item, in order; calls ``on_item`` with the number done."""
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as threads:
        warnings.simplefilter("ignore")  # about damaged metadata and large images
        for number, result in enumerate(threads.map(work, items), start=1):
            yield result
            on_item(number)


def _read(path: str | os.PathLike, side: int, fit: str, thumbnail: int) -> tuple | str:
    """Reads a file: uint8 [side, side, 3] and any thumbnail, or the reason for not reading it."""
    try:
        pictures = _open(path, side, *filter(None, [thumbnail]))
        image = np.asarray(to_square(pictures[0], side, fit))
        return image, *(_thumbnail(picture, thumbnail) for picture in pictures[1:])
    except Exception as error:  # decoders raise errors of any type for damaged files
        return _reason(error)


def _open(path: str | os.PathLike, *sides: int) -> list:
    """Decodes a file into one upright RGB image of Pillow's per side, none smaller than its side.

    JPEG files decode many times faster at a reduced size, which depends on the side. The file is
    decoded again only if two sides need different sizes.
    """
    from PIL import Image, ImageOps

    decoded, pictures = {}, []
    with open(path, "rb") as file:
        for side in sides:
            picture = Image.open(file)
            picture.draft("RGB", (2 * side, 2 * side))
            if (size := picture.size) not in decoded:
                decoded[size] = _to_rgb(ImageOps.exif_transpose(picture))
            pictures.append(decoded[size])
    return pictures


def _thumbnail(picture, side: int) -> bytes:
    """Shrinks a Pillow image in place and encodes it as WebP, lossless if it is small."""
    picture.thumbnail((side, side), reducing_gap=3)
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
    return content.getvalue()


def _reason(error: Exception) -> str:
    """Describes an error in one line, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    known = {"UnidentifiedImageError": "not an image", "MemoryError": "not enough memory"}
    name = type(error).__name__
    return known.get(name) or (str(error) or name).splitlines()[0]


def _to_rgb(picture):
    """Converts a Pillow image of any mode to RGB."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not finite")
        if picture.mode.startswith("I") and 0 <= values.min() and values.max() < 1 << 16:
            values = values / 257  # 16 bits
        else:
            values = 255 * (values - values.min()) / max(np.ptp(values), 1e-30)
        picture = Image.fromarray(np.uint8(values.round()))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")

"""Images as the rest of the house takes them: one uint8 array and a name for every image.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

import concurrent.futures
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# How an image that is not square becomes so, see read_files.
FITS = ("squash", "crop", "letterbox")


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


def as_bank(images, ids=None, least: int = 2) -> ImageBank:
    """Checks an array of images and gives it its canonical shape.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c], h = w even.
      ids: n integers or strings; 0 .. n-1 if not given.
      least: smallest n; to train takes 2.

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
    if images.size == 0 or len(images) < least:
        raise InputError(
            f"images have shape {images.shape}, expected at least {least} non-empty images: "
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


class Unreadable(NamedTuple):
    """A file that is left out, and why, in a few words."""

    path: str
    reason: str


class Collection(NamedTuple):
    """Images read from files.

    bank: the readable ones; their paths as ids.
    unreadable: the others.
    """

    bank: ImageBank
    unreadable: list[Unreadable]


def find_files(folder: str | os.PathLike) -> tuple[list[Path], list[Unreadable]]:
    """All image files below a folder, by the endings that Pillow knows, in natural order.

    Hidden files and folders are left out, and links to folders are not followed, so that none can
    lead in circles. Natural order puts "2.png" before "10.png".

    Returns:
      the files, and the folders that cannot be opened.

    Raises:
      InputError: no such folder, or no image in it.
    """
    from PIL import Image

    folder, found, closed = Path(folder), [], []
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}, expected a folder of images: check the path")
    endings = Image.registered_extensions()

    def note(error: OSError) -> None:
        closed.append(Unreadable(str(error.filename), _reason(error)))

    for path, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in names if not name.startswith("."))
        found += [Path(path, name) for name in names if Path(name).suffix.lower() in endings]
    if not found:
        why = f" ({closed[0].reason}: {closed[0].path})" if closed else ""
        raise InputError(f"{folder} has no image files{why}: give a folder with at least 2 images")
    return sorted(found, key=lambda path: _natural(path.relative_to(folder))), closed


def _natural(path: Path) -> tuple:
    """Key that sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", str(path).casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def read_files(
    paths: Iterable[str | os.PathLike],
    side: int = 32,
    fit: str = "squash",
    colour: bool | None = None,
    least: int = 2,
    on_file: Callable[[int], None] = lambda done: None,
) -> Collection:
    """Reads image files into a bank of square images.

    Turned as their EXIF data says; CMYK, palette and 16-bit images become grey or RGB; what is
    transparent is shown on white; of animations the first picture is taken. Files of more pixels
    than Pillow takes for sound (179 million) are not decoded: a few kilobytes can hold gigabytes.

    Args:
      paths: files.
      side: of the images in the bank, even.
      fit: how an image becomes square: "squash" scales both sides, "crop" takes the largest square
        in the middle, "letterbox" adds black borders.
      colour: True for RGB, False for grey; None: RGB if any image has a colour.
      least: smallest number of readable images; to train takes 2.
      on_file: is told the number of files done.

    Raises:
      InputError: unknown fit, odd side, or fewer than ``least`` images can be read.
    """
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}, expected one of {', '.join(FITS)}: choose one of them")
    paths, pictures, ids, unreadable = list(paths), [], [], []
    done = _in_threads(lambda path: _read(path, side, fit), paths, on_file)
    for path, result in zip(paths, done, strict=True):
        if isinstance(result, str):
            unreadable.append(Unreadable(os.fspath(path), result))
        else:
            pictures.append(result)
            ids.append(os.fspath(path))
    if len(pictures) < max(least, 1):
        why = f": {unreadable[0].reason} ({unreadable[0].path})" if unreadable else ""
        raise InputError(
            f"{len(pictures)} of {len(paths)} files are readable images, expected at least {least}"
            f": an outlier needs others to differ from, so give a larger collection{why}"
        )
    images = np.stack(pictures)
    if colour is False:
        images = _grey(images)
    elif colour is None and (images == images[..., :1]).all():
        images = images[..., :1]
    return Collection(as_bank(images, ids, least), unreadable)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [...] as float32 in [-1, 1]."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def to_uint8(images, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """An array of images of any usual kind as uint8 [n, h, w, c], c 1 or 3.

    Args:
      images: [n, h, w] or [n, h, w, c]; integers from 0 to 255, booleans, or floats.
      value_range: the (smallest, largest) value of floats; what is beyond them is clipped.

    Raises:
      InputError: another shape or range, or values that are not finite.
    """
    images = _as_array(images)
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise InputError(
            f"images have shape {shape}, expected [n, h, w], [n, h, w, 1] or [n, h, w, 3]: stack "
            "them along a first axis, and move channels last"
        )
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise InputError("images have values that are not finite: replace or drop them")
        if value_range is None:
            raise InputError("images are floats of an unknown range: give value_range")
        lowest, highest = value_range
        images = 255 * ((images - lowest) / (highest - lowest or 1)).clip(0, 1)
        return np.uint8(images.round())
    if images.dtype.kind == "b":
        return np.uint8(images) * np.uint8(255)
    if images.dtype.kind not in "iu" or images.min() < 0 or images.max() > 255:
        raise InputError(
            f"images have dtype {images.dtype}, expected integers from 0 to 255 or floats: scale "
            "them"
        )
    return images.astype(np.uint8, copy=False)


def usual_range(images) -> tuple[float, float] | None:
    """The range that float images probably have: 0 to 1, -1 to 1, 0 to 255, or just their own.

    None for other images, and for values that are not finite.
    """
    images = _as_array(images)
    if images.dtype.kind != "f" or not images.size or not np.isfinite(images).all():
        return None
    lowest, highest = float(images.min()), float(images.max())
    usual = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    return next((r for r in usual if r[0] <= lowest and highest <= r[1]), (lowest, highest))


def resize(images: np.ndarray, side: int, fit: str = "squash") -> np.ndarray:
    """Resizes uint8 [n, h, w, c] to [n, side, side, c], as :func:`read_files` does."""
    from PIL import Image

    if images.shape[1:3] == (side, side):
        return images
    grey = images.shape[-1] == 1
    pictures = (Image.fromarray(image.squeeze(-1) if grey else image) for image in images)
    resized = np.stack([np.asarray(_to_square(picture, side, fit)) for picture in pictures])
    return resized[..., None] if grey else resized


def thumbnails(
    pictures, side: int = 96, on_file: Callable[[int], None] = lambda done: None
) -> list[bytes]:
    """Small versions of images in their own proportions, as WebP files.

    Those of at most 64 x 64 pixels keep all their pixels and values.

    Args:
      pictures: files, or uint8 [n, h, w, c], c 1 or 3.
      side: longest side in pixels.
      on_file: is told the number of images done.

    Returns:
      n files' contents, b"" for a file that cannot be read.
    """
    return list(_in_threads(lambda picture: _thumbnail(picture, side), pictures, on_file))


def _in_threads(work: Callable, items: Iterable, on_item: Callable[[int], None]) -> Iterator:
    """``work`` of every item, in their order; ``on_item`` is told how many are done."""
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as threads:
        warnings.simplefilter("ignore")  # of damaged metadata, and of large images
        for number, result in enumerate(threads.map(work, items), start=1):
            yield result
            on_item(number)


def _thumbnail(picture, side: int) -> bytes:
    from PIL import Image

    try:
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
        else:
            picture = _open(picture, side)
        picture.thumbnail((side, side), reducing_gap=3)
        content = io.BytesIO()
        picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
        return content.getvalue()
    except Exception:  # as in _read
        return b""


def _read(path: str | os.PathLike, side: int, fit: str) -> np.ndarray | str:
    """A file as uint8 [side, side, 3], or the reason why it cannot be read."""
    try:
        return np.asarray(_to_square(_open(path, side), side, fit))
    except Exception as error:  # decoders of damaged files raise whatever they come across
        return _reason(error)


def _open(path: str | os.PathLike, side: int):
    """A file as a Pillow RGB image, upright, of at least ``side`` where it has that."""
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        picture.draft("RGB", (2 * side, 2 * side))  # of JPEG alone: many times faster
        return _to_rgb(ImageOps.exif_transpose(picture))


def _reason(error: Exception) -> str:
    """What happened, for a list of files: without the path, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (str(error) or type(error).__name__).splitlines()[0]


def _to_rgb(picture):
    """A Pillow image of any mode as RGB."""
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


def _to_square(picture, side: int, fit: str):
    """A grey or RGB image of Pillow's as one of side x side."""
    from PIL import Image, ImageOps

    if fit == "crop":
        return ImageOps.fit(picture, (side, side))
    if fit == "squash":
        return picture.resize((side, side), reducing_gap=3)
    # Not ImageOps.pad: it makes nothing of a line of one pixel.
    size = [max(round(side * length / max(picture.size)), 1) for length in picture.size]
    square = Image.new(picture.mode, (side, side))
    corner = tuple((side - length) // 2 for length in size)
    square.paste(picture.resize(size, reducing_gap=3), corner)
    return square


def _grey(images: np.ndarray) -> np.ndarray:
    """RGB uint8 [n, h, w, 3] to luma [n, h, w, 1] (ITU-R 601)."""
    luma = images @ np.float32([0.299, 0.587, 0.114])
    return luma.round().astype(np.uint8)[..., None]


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

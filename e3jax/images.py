"""Images as all other modules take them: one uint8 array and one id per image.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

from typing import NamedTuple

import jax
import numpy as np

from e3jax.errors import InputError

# How an image that is not square becomes square, see to_square.
FITS = ("squash", "crop", "letterbox")


class ImageBank(NamedTuple):
    """A collection of images of one size.

    images: uint8 [n, h, w, c], h = w even, values 0 to 255.
    ids:    int64 or str [n], identifies each image to the user (a number or a file name).
    """

    images: np.ndarray
    ids: np.ndarray


def as_bank(images, ids=None, least: int = 2) -> ImageBank:
    """Checks an array of images and adds a channel axis if it has none.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c], h = w even.
      ids: n integers or strings; 0 to n - 1 by default.
      least: smallest allowed n; training needs 2.

    Returns:
      An ImageBank; its images share memory with ``images`` where NumPy allows it.

    Raises:
      InputError: wrong rank, dtype, number of images, side, or number of ids.

    >>> as_bank(np.zeros([5, 32, 32], np.uint8)).images.shape
    (5, 32, 32, 1)
    """
    images = _as_array(images)
    if images.ndim not in (3, 4):
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c]", "stack along a first axis")
    if images.dtype != np.uint8:
        action = "scale to that range and convert with .astype(np.uint8)"
        raise _unexpected(images, "dtype", "uint8 with values 0 to 255", action)
    if images.size == 0 or len(images) < least:
        action = "an outlier needs other images to differ from, so provide a larger collection"
        raise _unexpected(images, "shape", f"at least {least} non-empty images", action)
    h, w = images.shape[1:3]
    if h != w:
        action = "crop, resize or move the channel axis"
        raise _unexpected(images, "shape", "square ones, channels last ([n, h, w, c])", action)
    if h % 2:
        action = f"pad with pad_to(images, {h + 1}) or resize"
        raise _unexpected(images, "shape", "an even side (patch re-arranging halves it)", action)
    bank = images[..., None] if images.ndim == 3 else images
    return ImageBank(bank, _as_ids(ids, len(bank)))


def to_unit(images: jax.Array) -> jax.Array:
    """Scales uint8 images to float32 in [-1, 1], the range that networks take."""
    return images.astype("float32") * (2 / 255) - 1


def to_uint8(images, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Converts an array of images of any common dtype to uint8 [n, h, w, c], c 1 or 3.

    Args:
      images: [n, h, w] or [n, h, w, c]; integers from 0 to 255, booleans, or floats.
      value_range: the (smallest, largest) value of float images; values outside it are clipped.

    Raises:
      InputError: wrong shape or range, or values that are not finite.
    """
    images = _as_array(images)
    if images.ndim == 3 and images.shape[1] > 4 and images.shape[2] in (1, 3, 4):
        action = "for a single image, channels last, give image[None]"
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c]", action)
    bank = images[..., None] if images.ndim == 3 else images
    if bank.ndim != 4 or bank.shape[-1] not in (1, 3) or not bank.size:
        action = "stack them along a first axis, and move channels last"
        if images.ndim == 2:
            action += "; e3jax.E3OutlierDetector takes flattened rows"
        raise _unexpected(images, "shape", "[n, h, w], [n, h, w, 1] or [n, h, w, 3]", action)
    kind = bank.dtype.kind
    if kind == "b":
        value_range = (0, 1)
    if kind in "bf":
        if not np.isfinite(bank).all():
            raise InputError("images have values that are not finite: replace or drop them")
        if value_range is None:
            raise InputError("images are floats of an unknown range: give value_range")
        lowest, highest = map(float, value_range)
        # In parts and in double precision, in which no range of narrower floats overflows.
        parts = (bank[i : i + 1024].astype(np.float64) for i in range(0, len(bank), 1024))
        unit = ((part - lowest) / (highest - lowest or 1) for part in parts)
        return np.concatenate([np.uint8((255 * part.clip(0, 1)).round()) for part in unit])
    if kind not in "iu" or bank.min() < 0 or bank.max() > 255:
        raise _unexpected(images, "dtype", "integers from 0 to 255 or floats", "rescale them")
    return bank.astype(np.uint8, copy=False)


def usual_range(images) -> tuple[float, float] | None:
    """Guesses the value range of float images: 0 to 1, -1 to 1, 0 to 255, else their own range.

    Values may lie outside a usual range by rounding, a thousandth of it. Those up to 255 must use
    more than half of it: images from 0 to 16 have their own range.

    Returns None for images of other dtypes and for values that are not finite.
    """
    images = _as_array(images)
    if images.dtype.kind != "f" or not images.size or not np.isfinite(images).all():
        return None
    lowest, highest = float(images.min()), float(images.max())
    for low, high in ((0.0, 1.0), (-1.0, 1.0), *[(0.0, 255.0)] * (highest > 127.5)):
        rounding = (high - low) / 1000
        if low - rounding <= lowest and highest <= high + rounding:
            return low, high
    return lowest, highest


def resize(images: np.ndarray, side: int, fit: str = "squash") -> np.ndarray:
    """Resizes uint8 [n, h, w, c], c 1 or 3, to [n, side, side, c]; ``fit`` as in `to_square`."""
    if images.shape[1:3] == (side, side):
        return images
    squares = [np.asarray(to_square(to_picture(image), side, fit)) for image in images]
    return np.stack(squares).reshape(len(images), side, side, -1)


def to_picture(image: np.ndarray):
    """Converts uint8 [h, w, c], c 1 or 3, to a greyscale or RGB image of Pillow's."""
    from PIL import Image

    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def to_square(picture, side: int, fit: str):
    """Resizes a greyscale or RGB image of Pillow's to side x side.

    Args:
      fit: "squash" scales both sides, "crop" keeps the largest square in the middle, "letterbox"
        adds black borders.
    """
    from PIL import Image, ImageOps

    if fit == "crop":
        return ImageOps.fit(picture, (side, side))
    if fit == "squash":
        return picture.resize((side, side), reducing_gap=3)
    # ImageOps.pad fails for images that are one pixel wide or high: it rounds a side to 0.
    size = [max(round(side * length / max(picture.size)), 1) for length in picture.size]
    square = Image.new(picture.mode, (side, side))
    corner = tuple((side - length) // 2 for length in size)
    square.paste(picture.resize(size, reducing_gap=3), corner)
    return square


def pad_to(images: np.ndarray, side: int) -> np.ndarray:
    """Pads [n, h, w, c] with zeros on all sides to [n, side, side, c].

    MNIST's 28 x 28 images become 32 x 32 with two black pixels on each side. Where the margin is
    odd, the extra pixel is on the right or at the bottom.

    Raises:
      InputError: the array does not have four axes, or an image is larger than ``side``.
    """
    images = _as_array(images)
    if images.ndim != 4 or max(images.shape[1:3]) > side:
        action = "choose a larger side, or crop or resize the images"
        raise _unexpected(images, "shape", f"[n, h, w, c] with h, w <= {side}", action)
    margins = [((side - length) // 2, (side - length + 1) // 2) for length in images.shape[1:3]]
    return np.pad(images, [(0, 0), *margins, (0, 0)])


def _unexpected(images: np.ndarray, what: str, expected: str, action: str) -> InputError:
    """Makes the error for images of the wrong shape or dtype."""
    return InputError(f"images have {what} {getattr(images, what)}, expected {expected}: {action}")


def _as_array(images) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # NumPy's message for a ragged list does not mention images
        raise InputError("images have different shapes: crop or resize them") from error


def _as_ids(ids, n: int) -> np.ndarray:
    ids = np.arange(n) if ids is None else np.asarray(ids)
    if ids.shape != (n,) or ids.dtype.kind not in "iuU":
        raise InputError(
            f"ids have shape {ids.shape} and dtype {ids.dtype}, expected {n} integers or strings: "
            "provide one id per image"
        )
    return ids if ids.dtype.kind == "U" else ids.astype(np.int64)

"""Arrays of images as all other modules take them: uint8, square, channels last.

Legend of shapes: ``n`` images, ``h w`` rows and columns, ``c`` channels (last).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from e3jax.errors import InputError
from e3jax.images.grounds import opaque
from e3jax.images.squares import to_picture, to_square
from e3jax.shapes import Shaped, UInt8

BLOCK = 4096  # images that are handled together


def checked(images: ArrayLike, least: int = 2) -> UInt8[np.ndarray, "n h w c"]:
    """Checks an array of images, and adds a channel axis if it has none.

    Args:
      images: uint8 [n, h, w] or [n, h, w, c], h = w even.
      least: smallest allowed n; training needs 2.

    Returns:
      uint8 [n, h, w, c]; it shares memory with ``images`` where NumPy allows it.

    Raises:
      InputError: wrong rank, dtype, number of images or side.

    >>> checked(np.zeros([5, 32, 32], np.uint8)).shape
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
    return images[..., None] if images.ndim == 3 else images


def resize(
    images: UInt8[np.ndarray, "n h w c"], side: int, fit: str = "squash"
) -> UInt8[np.ndarray, "n {side} {side} c"]:
    """Resizes uint8 [n, h, w, c], c 1 or 3, to [n, side, side, c]; ``fit`` as in `to_square`."""
    if images.shape[1:3] == (side, side):
        return images
    squares = [np.asarray(to_square(to_picture(image), side, fit)) for image in images]
    return np.stack(squares).reshape(len(images), side, side, -1)


def pad_to(images: ArrayLike, side: int) -> Shaped[np.ndarray, "n {side} {side} c"]:
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
    rows, columns = (((side - n) // 2, (side - n + 1) // 2) for n in images.shape[1:3])
    return np.pad(images, [(0, 0), rows, columns, (0, 0)])


def to_unit(images: Any) -> Any:
    """Scales uint8 images, of NumPy or JAX, to float32 in [-1, 1], the range of networks."""
    return images.astype("float32") * (2 / 255) - 1


def to_uint8(
    images: ArrayLike, value_range: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "n h w c"]:
    """Converts an array of images of any common dtype to uint8 [n, h, w, c], c 1 or 3.

    Of 2 or 4 channels the last one is opacity, and images get a ground, see `opaque`. Opacities of
    floats range from 0 to 1, else as the colours do.

    Args:
      images: [n, h, w] or [n, h, w, c], c 1 to 4; integers from 0 to 255, booleans, or floats.
      value_range: the (smallest, largest) value of float images; values outside it are clipped.

    Raises:
      InputError: wrong shape or range, or values that are not finite.
    """
    images = _as_array(images)
    if images.ndim == 3 and images.shape[1] > 4 and 1 <= images.shape[2] <= 4:
        action = "for a single image, channels last, give image[None]"
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c]", action)
    bank = images[..., None] if images.ndim == 3 else images
    if bank.ndim != 4 or bank.shape[-1] > 4 or not bank.size:
        action = "stack them along a first axis, and move channels last"
        if images.ndim == 2:
            action += "; e3jax.E3OutlierDetector takes flattened rows"
        raise _unexpected(images, "shape", "[n, h, w] or [n, h, w, c] with c from 1 to 4", action)
    if bank.shape[-1] in (1, 3):
        return _channels_to_uint8(bank, value_range)
    colours, alpha = _channels_to_uint8(bank[..., :-1], value_range), bank[..., -1:]
    is_unit = alpha.dtype.kind == "f" and -1e-3 <= alpha.min() and alpha.max() <= 1 + 1e-3
    alpha = _channels_to_uint8(alpha, (0, 1) if is_unit else value_range)
    pictures = map(to_picture, np.concatenate([colours, alpha], axis=-1))
    flat = np.stack([np.asarray(opaque(picture)) for picture in pictures])
    return flat[..., : colours.shape[-1]]


def _channels_to_uint8(
    bank: Shaped[np.ndarray, "n h w c"], value_range: tuple[float, float] | None
) -> UInt8[np.ndarray, "n h w c"]:
    """Converts channels [n, h, w, c], all in the same way."""
    if bank.dtype.kind == "b":
        return bank.astype(np.uint8) * np.uint8(255)
    if bank.dtype.kind == "f":
        if not np.isfinite(bank).all():
            raise InputError("images have values that are not finite: replace or drop them")
        if value_range is None:
            raise InputError("images are floats of an unknown range: give value_range")
        lowest, highest = map(float, value_range)
        # In double precision, in which no range of narrower floats overflows.
        blocks = (bank[i : i + 1024].astype(np.float64) for i in range(0, len(bank), 1024))
        units = ((block - lowest) / (highest - lowest or 1) for block in blocks)
        return np.concatenate([(255 * unit.clip(0, 1)).round().astype(np.uint8) for unit in units])
    if bank.dtype.kind not in "iu" or bank.min() < 0 or bank.max() > 255:
        raise _unexpected(bank, "dtype", "integers from 0 to 255 or floats", "rescale them")
    return bank.astype(np.uint8, copy=False)


def _unexpected(images: np.ndarray, what: str, expected: str, action: str) -> InputError:
    """Makes the error for images of the wrong shape or dtype."""
    return InputError(f"images have {what} {getattr(images, what)}, expected {expected}: {action}")


def _as_array(images: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(images)
    except ValueError as error:  # NumPy's message for a ragged list does not mention images
        raise InputError("images have different shapes: crop or resize them") from error

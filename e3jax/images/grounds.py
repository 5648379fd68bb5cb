"""Grounds for pictures with transparent pixels: white, or black where white would hide them."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

_STRIP = 1 << 18  # pixels that are converted at a time
_VANISHED = 0.1  # how far a drawing is from white at most, relative to its opacity
_SMALL = 1 / 3  # of what a drawing shows on black, the most that a small dark part shows on white
MOST = 0.68  # share of a white drawing's opacity that is white; of a yellow one's two thirds are


def opaque(picture: Image.Image) -> Image.Image:
    """Puts a picture that has opacities on a ground, which makes it RGB.

    The ground is white, as pages are, or black if the picture vanishes on white: white drawings
    are usual, too. It does if its pixels differ from white by less than a tenth of their opacity,
    in the root mean square; or if most of it does, and the rest, a small dark part, shows less
    than a third as much on white as the drawing on black.
    """
    on_white, opacity, white = _on_ground(picture, "white")
    counts = np.reshape(on_white.histogram(), (3, 256)).mean(axis=0)
    difference = float(counts @ np.arange(255, -1, -1) ** 2)
    total, squares = (float(opacity @ np.arange(256) ** power) for power in (1, 2))
    spread = squares - total**2 / opacity.sum()
    if not has_vanished(difference, squares, spread, white > MOST * total):
        return on_white
    del on_white  # before there is another one
    return _on_ground(picture, "black")[0]


def has_vanished(difference: float, opacity: float, spread: float, is_white: bool) -> bool:
    """Whether a picture vanishes on white, see `opaque`.

    Args:
      difference: sum of squares of pixels' differences from white, on white.
      opacity: sum of squares of pixels' opacities, which these differences cannot exceed.
      spread: sum of squares of the opacities' differences from their mean, which is what a white
        drawing shows on black.
      is_white: whether most of the picture is white, see `is_near_white`.
    """
    return bool(difference < _VANISHED**2 * opacity or (is_white and difference < _SMALL * spread))


def is_near_white(shades, white: float = 1):
    """Whether shades, from 0, which is black, can hardly be told from white."""
    return shades > (1 - _VANISHED) * white


def _on_ground(picture: Image.Image, colour: str) -> tuple[Image.Image, np.ndarray, float]:
    """A picture on a ground, its opacities, and how much of them is near white.

    Returns:
      The picture, RGB; the number of pixels of each opacity, int64 [256]; the sum of opacities of
      pixels that are nearly white, in the mean of the colours.
    """
    flat, opacity, white = Image.new("RGB", picture.size), np.zeros(256, np.int64), 0.0
    for box in strips(picture.size):
        strip = picture.crop(box).convert("RGBA")
        alpha = strip.getchannel("A")
        opacity += alpha.histogram()
        is_white = is_near_white(np.asarray(strip)[..., :3], 255).mean(axis=-1)
        white += float((is_white * np.asarray(alpha)).sum())
        ground = Image.new("RGBA", strip.size, colour)
        flat.paste(Image.alpha_composite(ground, strip).convert("RGB"), box)
    return flat, opacity, white


def strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture from top to bottom, so that little is converted at a time."""
    width, height = size
    rows = max(_STRIP // width, 1)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)

"""Pictures of Pillow's as squares."""

import numpy as np
from PIL import Image, ImageOps

from e3jax.shapes import UInt8


def to_picture(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Converts uint8 [h, w, c] to an image of Pillow's: grey or RGB, c 2 or 4 with opacity."""
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def to_square(picture: Image.Image, side: int, fit: str) -> Image.Image:
    """Resizes a greyscale or RGB picture to side x side.

    Args:
      picture: of mode L, RGB or F.
      side: in pixels.
      fit: "squash" scales both sides, "crop" keeps the largest square in the middle, "letterbox"
        adds black borders.
    """
    if fit == "crop":
        return ImageOps.fit(picture, (side, side))
    if fit == "squash":
        return picture.resize((side, side), reducing_gap=3)
    # ImageOps.pad fails for images that are one pixel wide or high: it rounds a side to 0.
    width, height = (max(round(side * n / max(picture.size)), 1) for n in picture.size)
    square = Image.new(picture.mode, (side, side))
    corner = (side - width) // 2, (side - height) // 2
    square.paste(picture.resize((width, height), reducing_gap=3), corner)
    return square

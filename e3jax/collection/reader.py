"""How pictures become arrays."""

from typing import NamedTuple

from e3jax.choices import FITS
from e3jax.errors import InputError
from e3jax.images.high_depth import ValueRange


class Reader(NamedTuple):
    """How pictures become arrays of one size.

    Attributes:
      side: of the images in pixels, even.
      resize: how an image that is not square becomes so, one of :data:`e3jax.choices.FITS`:
        "squash" scales both sides, "crop" keeps the largest square in the middle, "letterbox" adds
        black borders; "" of a bank of arrays, which were square.
      colour: True for RGB, False for grey, None for RGB if any image has colour. Arrays of one
        shape keep their channels.
      value_range: the (smallest, largest) value of float arrays; None: as they seem to have, which
        a warning says.
      file_range: black and white in files of more than 8 bits; what it does not have is found from
        the files.
    """

    side: int = 32
    resize: str = "squash"
    colour: bool | None = None
    value_range: tuple[float, float] | None = None
    file_range: ValueRange = ValueRange()

    def check(self) -> None:
        """Raises an InputError for a way to become square that is not known."""
        if self.resize not in FITS:
            raise InputError(
                f"resize is {self.resize!r}, expected one of {', '.join(FITS)}: choose one of them"
            )

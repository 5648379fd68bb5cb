"""Operations, and the paper's families of them."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

_ANGLES = (30, 60, 120, 150, 210, 240, 300, 330)


class Operation(NamedTuple):
    """One operation in words, applied in the order of the fields.

    Attributes:
      flip: whether to mirror left-right.
      shift: pixels (row, column); ``out[r, c] = in[m(r + shift[0]), m(c + shift[1])]``, where ``m``
        mirrors at the border and repeats the edge pixel.
      quarter_turns: counter-clockwise, as in :func:`numpy.rot90`.
      patches: the image is cut into 2 x 2 patches, numbered row by row; output patch j is input
        patch ``patches[j]``.
      angle: degrees, counter-clockwise, as in :func:`scipy.ndimage.rotate` with a cubic spline,
        cropped to the size of the image.
    """

    flip: bool = False
    shift: tuple[int, int] = (0, 0)
    quarter_turns: int = 0
    patches: tuple[int, ...] = (0, 1, 2, 3)
    angle: float = 0.0

    @property
    def name(self) -> str:
        """A readable name, for example ``flip·shift(-8,0)·turn90``."""
        parts = [
            "flip" if self.flip else "",
            "shift({},{})".format(*self.shift) if any(self.shift) else "",
            f"turn{90 * (self.quarter_turns % 4)}" if self.quarter_turns % 4 else "",
            "patches{}{}{}{}".format(*self.patches) if self.patches != (0, 1, 2, 3) else "",
            f"rotate{self.angle:g}" if self.angle % 360 else "",
        ]
        return "·".join(filter(None, parts)) or "identity"

    @property
    def family(self) -> str:
        """The paper's family: "PR" if patches move, else "IA" if rotated by an angle, else "RA"."""
        if self.patches != (0, 1, 2, 3):
            return "PR"
        return "IA" if self.angle % 360 else "RA"


class Family(NamedTuple):
    """A family of operations.

    Attributes:
      description: what its operations do, as a phrase for people.
      build: ``(side) -> operations``, for images of ``side`` x ``side`` pixels, in the order of
        their pseudo labels.
    """

    description: str
    build: Callable[[int], list[Operation]]


def _regular_affine(side: int) -> list[Operation]:
    step = side // 4
    shifts = (0, -step, step)
    return [
        Operation(flip=flip, shift=(row, column), quarter_turns=turns)
        for flip, row, column, turns in itertools.product((False, True), shifts, shifts, range(4))
    ]


def _irregular_affine(side: int) -> list[Operation]:
    return [Operation(flip=flip, angle=angle) for flip in (False, True) for angle in _ANGLES]


def _patch_rearrangement(side: int) -> list[Operation]:
    return [Operation(patches=p) for p in list(itertools.permutations(range(4)))[1:]]


# The paper's families, of 72, 16 and 23 operations.
FAMILIES = {
    "RA": Family("flips, shifts and quarter turns", _regular_affine),
    "IA": Family("rotations by oblique angles, with and without a flip", _irregular_affine),
    "PR": Family("rearranged patches", _patch_rearrangement),
}


def paper_operations(name: str = "RA+IA+PR", side: int = 32) -> list[Operation]:
    """The operations of some families, in the order of pseudo labels.

    With the default name they are the paper's 111 operations in the authors' order.

    Args:
      name: names of ``FAMILIES`` joined by "+", each once: "RA" (72 operations), "IA" (16) and
        "PR" (23).
      side: image side in pixels; shifts are a quarter of it (8 at the paper's 32).

    Returns:
      The operations of the families, one family after the other.

    Raises:
      ValueError: if ``name`` contains an unknown or repeated family.
    """
    families = name.split("+")
    if not set(families) <= set(FAMILIES) or len(set(families)) < len(families):
        raise ValueError(
            f"operation set {name!r}: expected families from {', '.join(FAMILIES)} joined by '+', "
            "each once"
        )
    return [operation for family in families for operation in FAMILIES[family].build(side)]

"""All views of one image on a labelled sheet; matplotlib is imported on the first use."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from e3jax import devices, operations
from e3jax.errors import InputError
from e3jax.images import to_unit
from e3jax.work import files

_COLUMNS = 12


class _Kind(NamedTuple):
    """A kind of figure files.

    Attributes:
      field: of its metadata, which names the program that drew the figure.
      mark: what this field becomes in the file.
    """

    field: str
    mark: str


_KINDS = {
    "png": _Kind("Software", "tEXtSoftware\0e3jax"),
    "pdf": _Kind("Creator", "/Creator (e3jax)"),
    "svg": _Kind("Creator", "<dc:title>e3jax</dc:title>"),
}


@devices.settings()
def plot_views(
    path: str | os.PathLike, image: np.ndarray, operation_set: operations.OperationSet
) -> None:
    """Draws all views of an image, one block per family of operations.

    Args:
      path: PNG, PDF or SVG file to write.
      image: uint8 [h, w, c], c = 1 or 3.
      operation_set: the operations, built for this side.

    Raises:
      InputError: see :func:`check_output`.
      ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    check_output(path)
    unit = to_unit(jnp.asarray(image))
    views = np.clip((operations.all_views(operation_set, unit[None])[0] + 1) / 2, 0, 1)
    views = np.broadcast_to(views, (*views.shape[:3], 3))  # grey as RGB
    members = {}
    for k, family in enumerate(operation_set.families):
        members.setdefault(family, []).append(k)
    rows = [math.ceil(len(of_family) / _COLUMNS) for of_family in members.values()]
    figure = Figure(figsize=(_COLUMNS * 1.1, sum(rows) * 1.5 + 0.4 * len(members)))
    blocks = figure.subfigures(len(members), 1, False, height_ratios=[r + 0.3 for r in rows])
    for block, family, r in zip(blocks[:, 0], members, rows, strict=True):
        block.suptitle(f"{family}: {len(members[family])} operations", x=0.01, ha="left", size=10)
        grid = block.subplots(r, _COLUMNS, squeeze=False).ravel()
        top = 0.97 - 0.35 / (r + 0.3)
        block.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=top, hspace=0.55)
        for axes in grid:
            axes.axis("off")
        for axes, k in zip(grid, members[family], strict=False):
            axes.imshow(views[k])
            axes.set_title(f"{k} {operation_set.names[k]}".replace("·", "\n"), size=6, pad=2)
    save_figure(path, figure)


def check_output(path: str | os.PathLike, inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Raises an InputError unless a figure may be written at ``path``, and changes nothing.

    It is PNG, PDF or SVG by its name; a file that is there is replaced if e3jax drew it.

    Args:
      path: of the figure.
      inputs: files that are read, which no figure replaces.
    """
    kind = _KINDS.get(_suffix(path))
    if kind is None:
        raise InputError(
            f"{files.printable(path)} has no ending of a figure: give it .png, .pdf or .svg"
        )
    files.check_output(path, kind.mark, inputs)


def save_figure(path: str | os.PathLike, figure) -> None:
    """Writes a matplotlib figure whole or not at all; the same figure gives the same SVG file.

    Raises:
      InputError: see :func:`check_output`.
    """
    import matplotlib

    check_output(path)
    suffix = _suffix(path)
    options = {"format": suffix, "dpi": 110, "bbox_inches": "tight"}
    options["metadata"] = {_KINDS[suffix].field: "e3jax"}
    with matplotlib.rc_context({"svg.hashsalt": "e3jax"}):
        files.write_atomically(path, lambda file: figure.savefig(file, **options))


def _suffix(path: str | os.PathLike) -> str:
    return Path(path).suffix[1:].lower()

"""All views of one image on a labelled sheet; matplotlib is imported on the first use."""

import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from e3jax import files, operations
from e3jax.images import to_unit

_COLUMNS = 12


def plot_views(
    path: str | os.PathLike, image: np.ndarray, operation_set: operations.OperationSet
) -> None:
    """Draws all views of an image, one block per family of operations.

    Args:
      path: PNG, PDF or SVG file to write.
      image: uint8 [h, w, c], c = 1 or 3.
      operation_set: the operations, built for this side.

    Raises:
      ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure

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


def save_figure(path: str | os.PathLike, figure) -> None:
    """Writes a matplotlib figure whole or not at all; the same figure gives the same SVG file."""
    import matplotlib

    options = {"format": Path(path).suffix[1:], "dpi": 110, "bbox_inches": "tight"}
    with matplotlib.rc_context({"svg.hashsalt": "e3jax"}):
        files.write_atomically(path, lambda file: figure.savefig(file, **options))

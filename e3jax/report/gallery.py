"""A ranked collection as one HTML file to look through, which needs no network and no server."""

import base64
import importlib.resources
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from e3jax import devices, operations
from e3jax.collection import reading
from e3jax.evidence import registered
from e3jax.report.ranking import Ranking
from e3jax.work import files
from e3jax.work.progress import Progress, no_progress

# A page of more takes a browser seconds to open.
_MOST = 20_000
_PIECE = 3 << 14
_MARK = '<meta name="generator" content="e3jax">'


def check_output(path: str | os.PathLike) -> None:
    """Raises an InputError where :func:`write_gallery` would replace what is not a gallery."""
    files.check_output(path, _MARK)


def write_gallery(
    path: str | os.PathLike,
    ranking: Ranking,
    pictures: Sequence[str | os.PathLike] | np.ndarray | None = None,
    title: str = "e3jax",
    on_progress: Progress = no_progress,
    thumbnails: Sequence[bytes] = (),
) -> None:
    """Writes images in the order of their scores, with a threshold to move and reasons to read.

    Of more than 20,000 images the most outlying 20,000 are shown; the histogram is of all.

    Args:
      path: HTML file.
      ranking: of the images, from :class:`e3jax.E3Outlier`.
      pictures: n files, which become small copies inside the page, or uint8 [n, h, w, c]; default:
        ``ranking.paths``.
      title: of the page.
      on_progress: called as ("gallery", images done, of how many).
      thumbnails: the small copies of n pictures, as files' contents; b"" where there is none yet.

    Raises:
      ValueError: not one picture for each score, or scores that are not finite.
      InputError: ``path`` has another program's file.
      OSError: the file cannot be written.

    >>> write_gallery("gallery.html", detector.ranking_)  # doctest: +SKIP
    """
    check_output(path)
    pictures = ranking.paths if pictures is None else pictures
    if len(ranking.scores) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures, expected {len(ranking.scores)}, one per score")
    if not np.isfinite(ranking.scores).all():
        raise ValueError("scores are not finite: training diverged, so there is no order to show")
    shown = ranking.order[:_MOST].copy()  # of many images, the order alone takes much memory
    chosen = list(pictures[shown]) if hasattr(pictures, "shape") else [pictures[i] for i in shown]
    are_files = isinstance(chosen[0], (str, os.PathLike))
    total = len(chosen)
    small = thumbnails[shown].tolist() if len(thumbnails) else [b""] * total
    missing = [i for i, content in enumerate(small) if not content]
    made = reading.thumbnails(
        [chosen[i] for i in missing],
        on_file=lambda done: on_progress("gallery", total - len(missing) + done, total),
        file_range=ranking.file_range,
    )
    for i, content in zip(missing, made, strict=True):
        small[i] = content
    on_progress("gallery", total, total)
    explained = ranking.explanation
    operation_set, most = explained.operation_set, np.log(explained.num_operations)
    data = {
        "title": title,
        "warning": ranking.health.warning,
        "threshold": ranking.threshold,
        "scores": [_packed(some, "<f8") for some in _pieces(np.sort(ranking.scores)[::-1])],
        "copies": ranking.copy_of[shown].tolist(),
        "names": [str(picture) for picture in chosen] if are_files else shown.astype(str).tolist(),
        "links": [Path(picture).absolute().as_uri() for picture in chosen] if are_files else [],
        "thumbnails": [base64.b64encode(content).decode() for content in small],
        "surprises": {
            registered(name).phrase: _packed(values[shown], "<f4")
            for name, values in explained.surprises.items()
        },
        # 0 to 255 for 0 to log k.
        "entropies": _packed(np.rint(explained.view_entropies[shown] * 255 / most), "u1"),
        "median": explained.median.tolist(),
        "most": most,
        "operations": operation_set.names,
        "families": operation_set.families,
        "descriptions": {name: family.description for name, family in operations.FAMILIES.items()},
        "side": operation_set.side,
        "tables": _packed(_sources(operation_set), "<u4"),
        "resize": explained.resize,
    }
    page = importlib.resources.files("e3jax.report").joinpath("gallery.html").read_text("utf-8")
    head, tail = page.split("{{data}}")
    # In a script element "<" alone could end it. Piece by piece, as the whole takes much memory.
    pieces = (piece.replace("<", "\\u003c") for piece in json.JSONEncoder().iterencode(data))
    files.write_lines(path, itertools.chain([head], pieces, [tail]))


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """Some values at a time, so many that base64 needs no padding between them."""
    return (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


@devices.settings()
def _sources(operation_set: operations.OperationSet) -> np.ndarray:
    """[k, p]: the pixel that each pixel of a view shows, the nearest one where it is rotated.

    It is p where a view shows what is outside of the image. Found by what the operations do to an
    image of its own coordinates.
    """
    side = operation_set.side
    row, column = np.indices((side, side)) / (side - 1)
    ramps = np.stack([row, column, np.ones_like(row)], axis=-1)
    views = np.asarray(operations.all_views(operation_set, ramps[None].astype(np.float32))[0])
    row, column, inside = np.moveaxis(views.reshape(len(operation_set), -1, 3), -1, 0)
    row, column = (np.clip(np.round(a * (side - 1)), 0, side - 1) for a in (row, column))
    return np.where(inside > 0.5, row * side + column, side * side)

"""A ranked collection as one HTML file to look through, which needs no network and no server."""

import base64
import importlib.resources
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e3jax import devices, operations
from e3jax.collection import reading
from e3jax.collection.lazy import AnyArray
from e3jax.evidence import registered
from e3jax.evidence.model import Explanation
from e3jax.images.high_depth import ValueRange
from e3jax.report.likeness import likeness
from e3jax.report.ranking import Ranking
from e3jax.work import files
from e3jax.work.progress import Progress, no_progress

# A page of more takes a browser seconds to open.
_MOST = 20_000
_PIECE = 3 << 14  # scores at a time, so many that base64 needs no padding between them
_MARK = '<meta name="generator" content="e3jax">'


def check_output(path: str | os.PathLike) -> None:
    """Raises an InputError where :func:`write_gallery` would replace what is not a gallery."""
    files.check_output(path, _MARK)


def write_gallery(
    path: str | os.PathLike,
    ranking: Ranking,
    pictures: Sequence[str | os.PathLike] | AnyArray | None = None,
    title: str = "e3jax",
    on_progress: Progress = no_progress,
    thumbnails: AnyArray | None = None,
) -> None:
    """Writes images in the order of their scores, with a threshold to move and reasons to read.

    Of more than 20,000 images 20,000 are shown, the most outlying and those that are decided to
    belong; the histogram is of all.

    Args:
      path: HTML file.
      ranking: of the images, from :class:`e3jax.E3Outlier`.
      pictures: n files, which become small copies inside the page, or uint8 [n, h, w, c]; default:
        ``ranking.paths``.
      title: of the page.
      on_progress: called as ("gallery", images done, of how many).
      thumbnails: the small copies of n pictures, as files' contents; b"" where there is none yet;
        None: there are none.

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
    shown, first = _shown(ranking)
    is_list = isinstance(pictures, Sequence)
    chosen: list[Any] = [pictures[i] for i in shown] if is_list else list(pictures[shown])
    small = [b""] * len(chosen) if thumbnails is None else thumbnails[shown].tolist()
    _fill(small, chosen, ranking.file_range, on_progress)
    are_files = isinstance(chosen[0], (str, os.PathLike))
    scores = np.sort(ranking.scores)[::-1]
    data = {
        "title": title,
        "warning": ranking.health.warning,
        "threshold": ranking.threshold,
        "scores": [_packed(scores[i : i + _PIECE], "<f8") for i in range(0, len(scores), _PIECE)],
        "first": first,
        "decisions": [] if ranking.decisions is None else ranking.decisions[shown].tolist(),
        "names": [str(picture) for picture in chosen] if are_files else shown.astype(str).tolist(),
        "links": [Path(picture).absolute().as_uri() for picture in chosen] if are_files else [],
        "thumbnails": [base64.b64encode(content).decode() for content in small],
    }
    alike = likeness(small, ranking.copy_of[shown], ranking.scores[shown] > ranking.threshold)
    data |= {name: values.tolist() for name, values in alike._asdict().items()}
    data |= _explained(ranking.explanation, shown)
    page = importlib.resources.files("e3jax.report").joinpath("gallery.html").read_text("utf-8")
    head, tail = page.split("{{data}}")
    # In a script element "<" by itself could end it. In pieces, as the whole takes much memory.
    pieces = (piece.replace("<", "\\u003c") for piece in json.JSONEncoder().iterencode(data))
    files.write_lines(path, itertools.chain([head], pieces, [tail]))


def _shown(ranking: Ranking) -> tuple[np.ndarray, int]:
    """The images to show, and how many of them are the most outlying ones.

    The others, the least outlying, are decided to belong, which no saved decisions may lack.
    """
    order, last = ranking.order, 0
    if len(order) > _MOST and ranking.decisions is not None:
        last = min(int((ranking.decisions > 0).sum()), _MOST // 2)
    first = min(_MOST - last, len(order))
    # Copied, as of many images the order itself takes much memory.
    return np.concatenate([order[:first], order[len(order) - last :]]), first


def _fill(
    thumbnails: list[bytes],
    pictures: Sequence,
    file_range: ValueRange,
    on_progress: Progress,
) -> None:
    """Makes the thumbnails of pictures that have none."""
    missing, total = [i for i, content in enumerate(thumbnails) if not content], len(pictures)
    made = reading.thumbnails(
        [pictures[i] for i in missing],
        on_file=lambda done: on_progress("gallery", total - len(missing) + done, total),
        file_range=file_range,
    )
    for i, content in zip(missing, made, strict=True):
        thumbnails[i] = content
    on_progress("gallery", total, total)


def _explained(explanation: Explanation, shown: np.ndarray) -> dict[str, Any]:
    """Why the images at these positions score as they do, and what draws their views."""
    operation_set, most = explanation.operation_set, np.log(explanation.num_operations)
    return {
        "surprises": {
            registered(name).phrase: _packed(values[shown], "<f4")
            for name, values in explanation.surprises.items()
        },
        "reasons": {
            registered(name).phrase: texts[shown].tolist()
            for name, texts in explanation.reasons.items()
        },
        # 0 to 255 for 0 to log k.
        "entropies": _packed(np.rint(explanation.view_entropies[shown] * 255 / most), "u1"),
        "median": explanation.median.tolist(),
        "most": most,
        "operations": operation_set.names,
        "families": operation_set.families,
        "descriptions": {name: family.description for name, family in operations.FAMILIES.items()},
        "side": operation_set.side,
        "tables": _packed(_sources(operation_set), "<u4"),
        "resize": explanation.resize,
    }


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

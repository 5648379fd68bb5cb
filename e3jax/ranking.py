"""Rankings: a collection ordered by how outlying its images are, and the tables of it.

The paper's scores fall with outlyingness; here, and nowhere else, they change their sign.
"""

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax import files, operations, reading, scoring
from e3jax.errors import InputError

SCORES = "scores.csv"
COLUMNS = ("rank", "path", "score", "outlier", "copy_of")
_ROWS = 8192  # in memory at a time


class HealthWarning(UserWarning):
    """A detector's scores are likely to mean little."""


class Health(NamedTuple):
    """What to know about a fit before believing its scores.

    Attributes:
      pretext_accuracy: share of views whose operation was recognised, in [0, 1].
      chance: what guessing would reach, 1 / k.
      spread: standard deviation of the scores, in nats.
      steps: length of the training.
      unreadable: files that were left out, :class:`e3jax.reading.Unreadable`.
      warning: what is wrong and what to do, in one sentence; "" if nothing is.
    """

    pretext_accuracy: float
    chance: float
    spread: float
    steps: int
    unreadable: list[reading.Unreadable]
    warning: str


class Evidence(NamedTuple):
    """Why images score as they do.

    Attributes:
      entropies: float [n, k] in nats, the entropy of each image under each operation.
      median: float [k], the fitted collection's median of each operation.
      learnt: the number of operations that the network tells apart, at least k.
      operation_set: the k operations.
      resize: how images became square.
      surprises: float [n] in nats by kind of evidence, see :mod:`e3jax.fusion`; {} where scores are
        the network's alone.
    """

    entropies: np.ndarray
    median: np.ndarray
    learnt: int
    operation_set: operations.OperationSet
    resize: str
    surprises: Mapping[str, np.ndarray]


class Ranking(NamedTuple):
    """What tables, gallery and quarantine are made of.

    Attributes:
      paths: str [n], files; image numbers for arrays.
      copy_of: int [n], the first image that each is a copy of to the eye, maybe itself, see
        :func:`e3jax.copies.near`.
      scores: float64 [n] in nats, larger = more outlying.
      evidence: what the scores follow from.
      threshold: images with larger scores are outliers.
      unreadable: files that were left out.
      health: how sound the fit is.
      file_scale: what is black and white in files of more than 8 bits.
    """

    paths: np.ndarray
    copy_of: np.ndarray
    scores: np.ndarray
    evidence: Evidence
    threshold: float
    unreadable: list[reading.Unreadable]
    health: Health
    file_scale: reading.FileScale = reading.FileScale()

    @property
    def is_outlier(self) -> np.ndarray:
        """Bool [n]."""
        return self.scores > self.threshold

    @property
    def order(self) -> np.ndarray:
        """Int [n], the images' positions, the most outlying first; ties in input order."""
        return np.argsort(-self.scores, kind="stable")


def view_entropies(scores: scoring.ViewScores) -> np.ndarray:
    """Entropies of views in nats, float32 [n, k] in [0, log k]: minus NE (eq. 6)."""
    return -scores.rules["ne"]


def image_entropies(entropies: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Scores of images, float64 [n], from the entropies of their views [n, k] and weights [k]."""
    return (entropies * weights).mean(axis=1)


def write_tables(folder: str | os.PathLike, ranking: Ranking) -> None:
    """Writes scores.csv and scores.jsonl, the most outlying first, and unreadable.csv.

    Columns are ``COLUMNS``, and the surprise of each kind of evidence in nats. ``copy_of`` is the
    path of the first of several copies, also its own; empty for images without copies.
    """
    folder, columns = Path(folder), (*COLUMNS, *ranking.evidence.surprises)
    files.write_csv(folder / SCORES, columns, (row.values() for row in _rows(ranking)))
    files.write_lines(folder / "scores.jsonl", (f"{json.dumps(row)}\n" for row in _rows(ranking)))
    files.write_csv(folder / "unreadable.csv", ("path", "reason"), ranking.unreadable)


def _rows(ranking: Ranking) -> Iterator[dict]:
    """The rows of the tables, of which a few are in memory at a time."""
    is_copied = np.bincount(ranking.copy_of, minlength=len(ranking.paths)) > 1
    order, surprises = ranking.order, ranking.evidence.surprises
    for start in range(0, len(order), _ROWS):
        some = order[start : start + _ROWS]
        first = ranking.copy_of[some]
        paths, firsts = (map(str, ranking.paths[at]) for at in (some, first))
        firsts = (path if n else "" for path, n in zip(firsts, is_copied[first], strict=True))
        scores = ranking.scores[some]
        outlier = (scores > ranking.threshold).astype(int)
        found = [values[some].tolist() for values in surprises.values()]
        ranks = range(start + 1, start + len(some) + 1)
        columns = (ranks, paths, scores.tolist(), outlier.tolist(), firsts, *found)
        for values in zip(*columns, strict=True):
            yield dict(zip((*COLUMNS, *surprises), values, strict=True))


def write_parquet(folder: str | os.PathLike, ranking: Ranking) -> None:
    """Writes the rows of :func:`write_tables` to scores.parquet, which needs pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = _rows(ranking)
    texts, numbers = ("path", "copy_of"), ("rank", "outlier")
    columns = (*COLUMNS, *ranking.evidence.surprises)
    kinds = {**dict.fromkeys(texts, pa.string()), **dict.fromkeys(numbers, pa.int64())}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in columns])

    def write(file) -> None:
        with pa.parquet.ParquetWriter(file, schema) as writer:
            while some := list(itertools.islice(rows, _ROWS)):
                some = [
                    {k: files.printable(v) if k in texts else v for k, v in row.items()}
                    for row in some
                ]
                writer.write_table(pa.Table.from_pylist(some, schema))

    files.write_atomically(Path(folder) / "scores.parquet", write)


def read_scores(folder: str | os.PathLike, most: int | None = None) -> list[dict[str, str]]:
    """The rows of :func:`write_tables`, or the first of them.

    Raises:
      InputError: the folder has no report.
    """
    path = Path(folder, SCORES)
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a report: run e3jax rank first")
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(itertools.islice(csv.DictReader(file), most))
    if not rows or not {"rank", "path", "score"} <= rows[0].keys():
        raise InputError(f"{path} is no report of e3jax: run e3jax rank again")
    return rows

"""Rankings: a collection ordered by how outlying its images are, and the tables of it.

The paper's scores fall with outlyingness; here, and nowhere else, they change their sign.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax.collection import collection, reading
from e3jax.evidence.health import Health
from e3jax.evidence.model import Explanation
from e3jax.report import tables
from e3jax.work import files

_ROWS = 8192  # in memory at a time


class Ranking(NamedTuple):
    """What tables, gallery and quarantine are made of.

    Attributes:
      paths: str [n], files; image numbers for arrays.
      copy_of: int [n], the first image that each is a copy of to the eye, maybe itself, see
        :func:`e3jax.collection.copies.near`.
      scores: float64 [n] in nats, larger = more outlying.
      explanation: what the scores follow from.
      threshold: images with larger scores are outliers.
      unreadable: files that were left out.
      health: how sound the fit is.
      file_range: what is black and white in files of more than 8 bits.
      states: int64 [n, 4], the :class:`e3jax.work.files.FileState` of each file as it was ranked;
        None for arrays.
    """

    paths: np.ndarray
    copy_of: np.ndarray
    scores: np.ndarray
    explanation: Explanation
    threshold: float
    unreadable: list[collection.Unreadable]
    health: Health
    file_range: reading.ValueRange = reading.ValueRange()
    states: np.ndarray | None = None

    @property
    def is_outlier(self) -> np.ndarray:
        """Bool [n]."""
        return self.scores > self.threshold

    @property
    def order(self) -> np.ndarray:
        """Int [n], the images' positions, the most outlying first; ties in input order."""
        return np.argsort(-self.scores, kind="stable")


def _marks(columns: Iterable[str]) -> list[str]:
    """A table's header, as it is written and as spreadsheets save it."""
    return [d.join(f"{q}{c}{q}" for c in columns) for d in tables.DELIMITERS for q in ("", '"')]


# By each table, what is in those of this program and in no other's.
_MARKS = {
    tables.SCORES: _marks(tables.COLUMNS),
    tables.LINES: ['{"rank": 1, "path"'],
    tables.UNREADABLE: _marks(collection.Unreadable._fields),
    tables.PARQUET: ["e3jax: the rows of a report"],
}


def check_outputs(folder: str | os.PathLike, bank: bool) -> None:
    """Raises an InputError where tables would replace what is not a table of e3jax.

    Args:
      folder: of the report.
      bank: whether scores.parquet is written, too.
    """
    for name in (
        tables.SCORES,
        tables.LINES,
        tables.UNREADABLE,
        *([tables.PARQUET] if bank else []),
    ):
        _check_output(Path(folder, name))


def _check_output(path: Path) -> None:
    files.check_output(path, _MARKS[path.name][0], is_ours=_is_ours)


def _is_ours(path: Path) -> bool:
    if path.name == tables.LINES and not tables.is_line(path):
        return False
    # Of files that were left out, a list may have other origins than a report.
    beside = {tables.SCORES, tables.LINES} if path.name == tables.UNREADABLE else ()
    return any(files.is_marked(path, mark) for mark in _MARKS[path.name]) and (
        not beside or any(_is_ours(path.with_name(name)) for name in beside)
    )


def write_tables(folder: str | os.PathLike, ranking: Ranking) -> None:
    """Writes scores.csv and scores.jsonl, the most outlying first, and unreadable.csv.

    Columns are :data:`e3jax.report.tables.COLUMNS`, and the surprise of each kind of evidence in
    nats.
    ``copy_of`` is the path of the first of several copies, also its own; empty for images without
    copies. The lines of scores.jsonl also have the fields of :class:`e3jax.work.files.FileState`,
    by which quarantine knows a file again; null for images of arrays.

    Raises:
      InputError: the folder has another program's file of such a name; nothing was written.
    """
    check_outputs(folder, bank=False)
    folder, columns = Path(folder), (*tables.COLUMNS, *ranking.explanation.surprises)
    files.write_csv(folder / tables.SCORES, columns, (row.values() for row in _rows(ranking)))
    lines = (f"{json.dumps(row)}\n" for row in _rows_with_states(ranking))
    files.write_lines(folder / tables.LINES, lines)
    files.write_csv(folder / tables.UNREADABLE, collection.Unreadable._fields, ranking.unreadable)


def _rows(ranking: Ranking) -> Iterator[dict]:
    """The rows of the tables, of which a few are in memory at a time."""
    is_copied = np.bincount(ranking.copy_of, minlength=len(ranking.paths)) > 1
    surprises = ranking.explanation.surprises
    for start, block in _blocks(ranking):
        first = ranking.copy_of[block]
        paths, firsts = (map(str, ranking.paths[at]) for at in (block, first))
        firsts = (path if n else "" for path, n in zip(firsts, is_copied[first], strict=True))
        scores = ranking.scores[block]
        outlier = (scores > ranking.threshold).astype(int)
        evidence = [values[block].tolist() for values in surprises.values()]
        ranks = range(start + 1, start + len(block) + 1)
        columns = (ranks, paths, scores.tolist(), outlier.tolist(), firsts, *evidence)
        for values in zip(*columns, strict=True):
            yield dict(zip((*tables.COLUMNS, *surprises), values, strict=True))


def _rows_with_states(ranking: Ranking) -> Iterator[dict]:
    """The rows, each with the state of its file; as it is now where the ranking has none."""
    for row, state in zip(_rows(ranking), _states(ranking), strict=True):
        yield row | dict(zip(tables.STATE, state, strict=True))


def _states(ranking: Ranking) -> Iterator[Iterable[int | None]]:
    for _, block in _blocks(ranking):
        if ranking.states is not None:
            yield from np.asarray(ranking.states[block]).tolist()
            continue
        for path in map(str, ranking.paths[block]):
            yield (None,) * len(tables.STATE) if tables.is_number(path) else files.state_of(path)


def _blocks(ranking: Ranking) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of the order, each with its start."""
    order = ranking.order
    return ((start, order[start : start + _ROWS]) for start in range(0, len(order), _ROWS))


def write_parquet(folder: str | os.PathLike, ranking: Ranking) -> None:
    """Writes the rows of scores.jsonl to scores.parquet, which needs pyarrow.

    A path is the file's name, character by character. One that is not valid UTF-8, which no such
    table can hold, is the file's URI instead, "file:///photos/%FF.png".

    Raises:
      InputError: the folder has another program's file of that name.
    """
    import pyarrow as pa
    import pyarrow.parquet

    _check_output(Path(folder, tables.PARQUET))
    rows = _rows_with_states(ranking)
    types = dict.fromkeys(("path", "copy_of"), pa.string())
    types |= dict.fromkeys(("rank", "outlier", *tables.STATE), pa.int64())
    columns = (*tables.COLUMNS, *ranking.explanation.surprises, *tables.STATE)
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in columns])
    schema = schema.with_metadata({"e3jax": _MARKS[tables.PARQUET][0]})

    def write(file) -> None:
        with pa.parquet.ParquetWriter(file, schema) as writer:
            while block := list(itertools.islice(rows, _ROWS)):
                for row in block:
                    row.update(path=_utf8(row["path"]), copy_of=_utf8(row["copy_of"]))
                writer.write_table(pa.Table.from_pylist(block, schema))

    files.write_atomically(Path(folder, tables.PARQUET), write)


def _utf8(path: str) -> str:
    try:
        path.encode()
        return path
    except UnicodeEncodeError:  # of a name with bytes that are no UTF-8
        return Path(path).absolute().as_uri()

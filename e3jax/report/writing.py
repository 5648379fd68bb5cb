"""Writes a ranking as tables; of many images a few rows are in memory at a time."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from e3jax.report import decisions, tables
from e3jax.report.ranking import Ranking
from e3jax.work import files

_ROWS = 8192


def write_tables(folder: str | os.PathLike, ranking: Ranking, parquet: bool = False) -> None:
    """Writes scores.csv and scores.jsonl, the most outlying first, and unreadable.csv.

    Columns are :data:`e3jax.report.tables.COLUMNS`, the surprise of each kind of evidence in nats,
    and, where there are decisions, the image's ``decision``. ``copy_of`` is the path of the first
    of several copies, also its own; empty for images without copies. The lines of scores.jsonl also
    have the fields of :class:`e3jax.work.files.FileState`, by which quarantine knows a file again;
    null for images of arrays.

    Args:
      folder: of the report.
      ranking: of a collection.
      parquet: also writes the rows of scores.jsonl to scores.parquet, which needs pyarrow. A path
        there is the file's name, character by character. One that is not valid UTF-8, which no such
        table can hold, is the file's URI instead, "file:///photos/%FF.png".

    Raises:
      InputError: the folder has another program's file of such a name; nothing was written.
    """
    check_outputs(folder, parquet)
    folder = Path(folder)
    scores = (row for columns in _columns(ranking) for row in zip(*columns.values(), strict=True))
    files.write_csv(folder / tables.SCORES.name, _names(ranking), scores)
    files.write_lines(folder / tables.LINES.name, _lines(ranking))
    files.write_csv(folder / tables.UNREADABLE.name, tables.UNREADABLE.columns, ranking.unreadable)
    if parquet:
        _write_parquet(folder / tables.PARQUET.name, ranking)


def check_outputs(folder: str | os.PathLike, parquet: bool) -> None:
    """Raises an InputError where :func:`write_tables` would replace what is not a table of e3jax.

    Args:
      folder: of the report.
      parquet: whether scores.parquet is written, too.
    """
    for table in tables.TABLES:
        if parquet or table is not tables.PARQUET:
            table.check_output(folder)


def _names(ranking: Ranking) -> list[str]:
    decided = [] if ranking.decisions is None else [tables.DECISION]
    return [*tables.COLUMNS, *ranking.explanation.surprises, *decided]


def _columns(ranking: Ranking, with_states: bool = False) -> Iterator[dict[str, list]]:
    """The columns of the next rows, by their names."""
    is_copied = np.bincount(ranking.copy_of, minlength=len(ranking.paths)) > 1
    order, surprises = ranking.order, ranking.explanation.surprises
    for start in range(0, len(order), _ROWS):
        block = order[start : start + _ROWS]
        first, scores = ranking.copy_of[block], ranking.scores[block]
        firsts = zip(ranking.paths[first], is_copied[first], strict=True)
        columns = {
            "rank": list(range(start + 1, start + len(block) + 1)),
            "path": list(map(str, ranking.paths[block])),
            "score": scores.tolist(),
            "outlier": (scores > ranking.threshold).astype(int).tolist(),
            "copy_of": [str(path) if has_copies else "" for path, has_copies in firsts],
        }
        columns |= {name: values[block].tolist() for name, values in surprises.items()}
        if ranking.decisions is not None:
            columns[tables.DECISION] = [decisions.NAMES[d] for d in ranking.decisions[block]]
        if with_states:
            states = zip(*_states(ranking, block, columns["path"]), strict=True)
            columns |= dict(zip(tables.STATE, map(list, states), strict=True))
        yield columns


def _states(ranking: Ranking, block: np.ndarray, paths: Iterable[str]) -> Iterable[Iterable]:
    """The state of each file; as it is now where the ranking has none."""
    if ranking.states is not None:
        return np.asarray(ranking.states[block]).tolist()
    nothing = [None] * len(tables.STATE)
    return [nothing if tables.is_number(path) else files.state_of(path) for path in paths]


def _lines(ranking: Ranking) -> Iterator[str]:
    for columns in _columns(ranking, with_states=True):
        for values in zip(*columns.values(), strict=True):
            yield f"{json.dumps(dict(zip(columns, values, strict=True)))}\n"


def _write_parquet(path: Path, ranking: Ranking) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = dict.fromkeys(("path", "copy_of", tables.DECISION), pa.string())
    types |= dict.fromkeys(("rank", "outlier", *tables.STATE), pa.int64())
    names = (*_names(ranking), *tables.STATE)
    schema = pa.schema([(name, types.get(name, pa.float64())) for name in names])
    schema = schema.with_metadata({"e3jax": tables.PARQUET.marks[0]})

    def write(file) -> None:
        with parquet.ParquetWriter(file, schema) as writer:
            for columns in _columns(ranking, with_states=True):
                for name in ("path", "copy_of"):
                    columns[name] = list(map(_utf8, columns[name]))
                writer.write_table(pa.table(columns, schema))

    files.write_atomically(path, write)


def _utf8(path: str) -> str:
    try:
        path.encode()
        return path
    except UnicodeEncodeError:  # of a name with bytes that are not UTF-8
        return Path(path).absolute().as_uri()

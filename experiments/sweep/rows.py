"""CSV files that commands add rows to: written whole or not at all, and only those of e3jax."""

import os
from collections.abc import Iterable, Sequence

import pandas as pd

from e3jax.work import files
from sweep.provenance import is_of_these_versions


def read(path: str | os.PathLike) -> pd.DataFrame:
    """The cells of a file as texts."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _read_if_there(path: str | os.PathLike) -> pd.DataFrame:
    return read(path) if os.path.exists(path) else pd.DataFrame()


def missing(cases: Sequence[tuple], rows: pd.DataFrame, columns: Sequence[str]) -> list[tuple]:
    """The cases, each of these columns' values, that have no row yet."""
    done = set(rows.reindex(columns=columns).astype(str).itertuples(index=False, name=None))
    return [case for case in cases if tuple(map(str, case)) not in done]


def of_these_versions(path: str | os.PathLike) -> pd.DataFrame:
    """The rows of a file that the present versions made, by its column ``versions``."""
    rows = _read_if_there(path)
    made = rows.get("versions", [""] * len(rows))
    return rows.loc[[*map(is_of_these_versions, made)]]


def check(path: str | os.PathLike, columns: Iterable[str]) -> None:
    """Raises an InputError unless a table may be written at ``path``; its header marks ours."""
    files.check_output(path, ",".join([*columns][:4]))


def append(
    path: str | os.PathLike, rows: Sequence[dict], columns: Iterable[str] | None = None
) -> None:
    """Adds rows to a file; its older columns stay, gaps are empty.

    Args:
      path: of the file; its folder is made.
      rows: values by column.
      columns: default: the first row's.

    Raises:
      InputError: see :func:`check`.
    """
    columns = [*(columns or rows[0])]
    check(path, columns)
    old = _read_if_there(path)
    write(path, [*old.to_dict("records"), *rows], dict.fromkeys([*columns, *old]))


def write(path: str | os.PathLike, rows: Sequence[dict], columns: Iterable[str]) -> None:
    """Writes these columns of rows.

    Raises:
      InputError: see :func:`check`.
    """
    columns = list(columns)
    check(path, columns)
    files.write_csv(path, columns, ([text(row.get(c)) for c in columns] for row in rows))


def text(value: object) -> str:
    """What a file says of a value: floats with six digits."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

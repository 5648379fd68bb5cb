"""Tables of a report: what they are called, how they are recognised and read; imports no JAX."""

import contextlib
import csv
import heapq
import itertools
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from e3jax.errors import InputError
from e3jax.work import files
from e3jax.work.files import FileState, printable

DELIMITERS = (",", ";", "\t")  # what spreadsheets write, by their language
COLUMNS = ("rank", "path", "score", "outlier", "copy_of")
DECISION = "decision"  # a column where there are decisions
STATE = FileState._fields


class Table(NamedTuple):
    """A file of a report.

    Attributes:
      name: of the file.
      columns: that each such table has; those of scores also have one for each kind of evidence.
      marks: texts of which one is near the start or the end of each such file, and of no other's.
    """

    name: str
    columns: tuple[str, ...]
    marks: list[str]

    def check_output(self, folder: str | os.PathLike) -> None:
        """Raises an InputError if writing it would replace another program's file."""
        files.check_output(Path(folder, self.name), self.marks[0], is_ours=self.is_ours)

    def is_ours(self, path: Path) -> bool:
        """Whether a file is such a table."""
        if not any(files.is_marked(path, mark) for mark in self.marks):
            return False
        if self is LINES:
            return _has_states(path)
        # Lists of files that were left out are written by other programs, too.
        return self is not UNREADABLE or any(t.is_ours(path.with_name(t.name)) for t in _RANKED)


def _headers(columns: Iterable[str]) -> list[str]:
    """A header, as it is written and as spreadsheets save it."""
    return [d.join(f"{q}{c}{q}" for c in columns) for d in DELIMITERS for q in ("", '"')]


SCORES = Table("scores.csv", COLUMNS, _headers(COLUMNS))
LINES = Table("scores.jsonl", (*COLUMNS, *STATE), ['{"rank": 1, "path"'])
PARQUET = Table("scores.parquet", (*COLUMNS, *STATE), ["e3jax: the rows of a report"])
UNREADABLE = Table("unreadable.csv", ("path", "reason"), _headers(("path", "reason")))
_RANKED = (SCORES, LINES)
TABLES = (SCORES, LINES, UNREADABLE, PARQUET)


def is_number(path: str) -> bool:
    """Whether it is an image of an array, which has a number for a path."""
    return not path or path.isdecimal()


def _has_states(path: Path) -> bool:
    """Whether a file begins as scores.jsonl does."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            line = json.loads(file.readline(1 << 16))
        return {*LINES.columns} <= line.keys()
    except (OSError, ValueError, AttributeError):
        return False


def read_scores(folder: str | os.PathLike, most: int | None = None) -> list[dict[str, str]]:
    """The rows of scores.csv in the order of their ranks, or the first of them.

    The table may have been sorted by something else, and saved by a spreadsheet.

    Raises:
      InputError: the folder has no report, or its ranks are not numbers of images.
    """
    path = Path(folder, SCORES.name)
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a report: run e3jax rank first")
    try:
        rows = _ranked(path, most)
        ranked = heapq.nsmallest(most, rows) if most is not None else sorted(rows)
    except csv.Error as error:
        raise InputError(f"{path} is damaged ({error}): run e3jax rank again") from error
    for (rank, line, _), (following, other, _) in itertools.pairwise(ranked):
        if rank == following:
            raise InputError(
                f"{path} has rank {rank} in row {line} and in row {other}: run e3jax rank again"
            )
    if not ranked:
        raise InputError(f"{path} is not a report of e3jax: run e3jax rank again")
    return [row for *_, row in ranked]


def _ranked(path: Path, most: int | None) -> Iterator[tuple[int, int, dict[str, str]]]:
    """Rank, number and content of each row, until the ``most`` first ones are complete."""
    first = 0
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header = file.readline()
        for delimiter in DELIMITERS:
            columns = next(csv.reader([header], delimiter=delimiter), [])
            if {"rank", "path", "score"} <= set(columns):
                break
        else:
            raise InputError(f"{path} is not a report of e3jax: run e3jax rank again")
        for number, values in enumerate(csv.reader(file, delimiter=delimiter), start=2):
            if not any(values):
                continue
            row = dict(zip(columns, values, strict=False))
            rank = row.get("rank", "").strip()
            if not (rank.isascii() and rank.isdecimal() and int(rank)) or "path" not in row:
                raise InputError(
                    f"{path} has no rank and path in row {number}, expected those that rank gave: "
                    "run e3jax rank again"
                )
            yield int(rank), number, row
            first += most is not None and int(rank) <= most
            if first == most:
                return


def first_files(folder: str | os.PathLike, number: int) -> dict[str, FileState]:
    """The most outlying files of a report, in order, and what each was when it was ranked.

    Raises:
      InputError: the folder has no report of files, or its tables contradict each other.
    """
    ranks = [(row["path"], int(row["rank"])) for row in read_scores(folder, number)]
    lines = _lines_of(folder, (path for path, _ in ranks))
    for path, rank in ranks:
        if path not in lines or lines[path]["rank"] != rank:
            raise InputError(
                f"{Path(folder, SCORES.name)} and {LINES.name} differ about {printable(path)}: run "
                "e3jax rank again"
            )
    return _states_of(lines[path] for path, _ in ranks)


def listed_files(folder: str | os.PathLike, paths: Iterable[str]) -> dict[str, FileState]:
    """Files of a report by their paths, in that order, and what each was when it was ranked.

    Raises:
      InputError: a path is not in the report, or the folder has no report of files.
    """
    paths = list(paths)
    lines = _lines_of(folder, paths)
    if strange := [path for path in paths if path not in lines]:
        raise InputError(
            f"the selection has {printable(strange[0])}, which is not in {folder}: give one "
            "of this report (nothing was moved)"
        )
    return _states_of(lines[path] for path in paths)


def renew_states(folder: str | os.PathLike, renew: Callable[[str, FileState], FileState]) -> None:
    """Writes new states of files into scores.jsonl, if it can be read and written.

    Args:
      folder: of the report, if there is one.
      renew: gives a file's new state by its absolute path and the state as it was ranked.
    """

    def renewed(text: str) -> str:
        line = json.loads(text)
        was = FileState(*(line[field] for field in STATE))
        now = renew(str(Path(line["path"]).absolute()), was)
        return text if now is was else f"{json.dumps(line | now._asdict())}\n"

    path = Path(folder, LINES.name)
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # gone, or damaged
        with open(path, encoding="utf-8") as file:
            files.write_lines(path, map(renewed, file))


def _states_of(lines: Iterable[dict]) -> dict[str, FileState]:
    return {line["path"]: FileState(*(line[field] for field in STATE)) for line in lines}


def _lines_of(folder: str | os.PathLike, paths: Iterable[str]) -> dict[str, dict]:
    """Lines of scores.jsonl by given paths; those that are not there are left out.

    Spreadsheets and macOS may have changed a path's Unicode normal form. It is the path of that
    form, or else the only one of another form.
    """
    path, lines, alike = Path(folder, LINES.name), {}, {}
    wanted = set(paths)
    forms = {unicodedata.normalize("NFC", name) for name in wanted}
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a report: run e3jax rank again")
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _line(text, path)
            form = unicodedata.normalize("NFC", line["path"])
            if line["path"] in wanted:
                lines[line["path"]] = line
            if form in forms:
                alike.setdefault(form, []).append(line)
            if len(lines) == len(wanted):
                break
    for name in wanted.difference(lines):
        if len(same := alike.get(unicodedata.normalize("NFC", name), ())) == 1:
            lines[name] = same[0]
    return lines


def _line(text: str, path: Path) -> dict:
    try:
        line = json.loads(text)
        if is_number(line["path"]):
            raise InputError(
                f"{path} ranks images of an array by their numbers, not files: rank a folder"
            )
        if {"rank", *STATE} <= line.keys():
            return line
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} does not say what each file was: run e3jax rank again")

"""Decisions: which images belong and which do not, as people say; imports no JAX."""

import csv
import io
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from e3jax.collection.lazy import AnyArray
from e3jax.errors import InputError
from e3jax.report import tables
from e3jax.work.files import printable

COLUMNS = ("file", "decision")
WORDS = {"belongs": 1, "does not belong": -1}
NAMES = {number: word for word, number in WORDS.items()} | {0: ""}


def read(path: str | os.PathLike) -> dict[str, str]:
    """The decisions in a file that the gallery saved, by the files' names.

    Raises:
      InputError: it is not such a file, or says something else of an image.
    """
    text = _text(path)
    delimiter = _delimiter(text)
    if delimiter is None:
        raise InputError(
            f"{path} does not begin with {','.join(COLUMNS)}, expected decisions: save them from "
            "the gallery"
        )
    rows = itertools.islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1, None)
    decisions = {}
    for number, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) < len(COLUMNS) or row[1].strip() not in WORDS:
            raise InputError(
                f"{path} has {printable(', '.join(row))!r} in row {number}, expected a file and "
                f"one of {', '.join(WORDS)}: correct that row"
            )
        decisions[_unquoted(row[0])] = row[1].strip()
    return decisions


def read_junk(path: str | os.PathLike) -> list[str]:
    """The names in a selection, which has one a line, or those in decisions that do not belong."""
    text = _text(path)
    if _delimiter(text):
        return [name for name, word in read(path).items() if WORDS[word] < 0]
    return list(map(_unquoted, filter(None, text.split("\n"))))


def _text(path: str | os.PathLike) -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the file that the gallery saved") from None


def _delimiter(text: str) -> str | None:
    """What separates the columns of decisions; None of another text."""
    header = text.partition("\n")[0].strip()
    return next((d for d in tables.DELIMITERS if header.replace('"', "") == d.join(COLUMNS)), None)


def _unquoted(name: str) -> str:
    """A name; the gallery quotes, as JSON does, what would not fit on one line."""
    try:
        text = json.loads(name) if name.startswith('"') else name
        return text if isinstance(text, str) else name
    except json.JSONDecodeError:
        return name


def for_images(source: Any, ids: AnyArray) -> np.ndarray:
    """Decisions about images, int8 [n]: 1 = belongs, -1 = does not belong, 0 = undecided.

    Args:
      source: "belongs" or "does not belong" by the images' paths or numbers, a file of
        :func:`read`, or None.
      ids: paths or numbers of the n images.

    Raises:
      InputError: something else is said of an image, or an image is not among them.
    """
    decided = np.zeros(len(ids), np.int8)
    if not source:
        return decided
    by_name = source if isinstance(source, Mapping) else read(source)
    rows = {os.path.abspath(str(path)): row for row, path in enumerate(ids)}
    for name, word in by_name.items():
        row = rows.get(os.path.abspath(str(name)))
        if row is None:
            raise InputError(
                f"the decisions name {printable(str(name))}, which is not among the {len(ids)} "
                "images that are ranked: rank them with it, or take it out of the decisions"
            )
        if word not in WORDS:
            raise InputError(
                f"the decision about {printable(str(name))} is {word!r}, expected one of "
                f"{', '.join(WORDS)}: choose one of them"
            )
        decided[row] = WORDS[word]
    return decided


def of_pictures(decided: np.ndarray, copy_of: np.ndarray) -> np.ndarray:
    """Decisions int8 [n] about the pictures that images are copies of.

    A picture belongs if any of its copies does, so that spare copies may be called junk.
    """
    n, is_junk = len(decided), decided < 0
    belongs, junk = (np.bincount(copy_of, of, n) > 0 for of in (decided > 0, is_junk))
    return (belongs - np.int8(1) * (junk & ~belongs))[copy_of]


def bounded(values: np.ndarray, decided: np.ndarray) -> np.ndarray:
    """Scores float64 [n], larger = more outlying, that no decision contradicts.

    Those of images that do not belong are above all others, and of those that belong below.
    """
    if not decided.any():
        return values
    values = np.where(decided < 0, np.nextafter(values.max(), np.inf), values)
    return np.where(decided > 0, np.nextafter(values.min(), -np.inf), values)

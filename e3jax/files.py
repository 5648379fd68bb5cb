"""Writing files whole or not at all, and where the cache folder is."""

import csv
import io
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file in the same folder, then moves it to ``path``.

    A process that is killed while writing leaves the previous file, or none, but never part of one.

    Args:
      path: the file; the temporary file's name starts with its name and ends in ".partial".
      write: called with the open temporary file.

    Raises:
      OSError: the file cannot be written; the temporary file is removed.
    """
    path = Path(path)
    # A process number would not be unique: containers that share a folder may all have the same.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file atomically; file names in it keep bytes that are not valid UTF-8."""
    content = text.encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write(content))


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Iterable]) -> None:
    """Writes a CSV file atomically: a header line, then one line per row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """``cache_dir``, else E3JAX_CACHE_DIR, else e3jax in XDG_CACHE_HOME, else ~/.cache/e3jax."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "e3jax")
    return Path(cache_dir or os.environ.get("E3JAX_CACHE_DIR") or shared).expanduser()


def printable(path: str | os.PathLike) -> str:
    """A file's name on one line, whatever it contains."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]

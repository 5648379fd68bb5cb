"""Writing files whole or not at all, and where the cache folder is."""

import csv
import io
import os
import tempfile
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
    write_text(path, "".join(map(_csv_line, [columns, *rows])))


def _csv_line(values: Iterable) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)  # it quotes what its own "\r\n" is made of
    return text.getvalue().removesuffix("\r\n") + "\n"


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """``cache_dir``, else E3JAX_CACHE_DIR, else e3jax in XDG_CACHE_HOME, else ~/.cache/e3jax.

    A user without a home gets a folder for temporary files.
    """
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "e3jax")
    try:
        return Path(cache_dir or os.environ.get("E3JAX_CACHE_DIR") or shared).expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir(), f"e3jax-{os.getuid()}")


def printable(path: str | os.PathLike) -> str:
    """A file's name on one line, whatever it contains."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]

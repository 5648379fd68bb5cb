"""Files are written whole or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside its place and moves it there: a kill leaves the old one or none.

    Args:
      path: of the file; a file beside it, ending in ".partial", is there while it is written.
      write: given the open file.

    Raises:
      OSError: the file cannot be written; nothing of it is left then.
    """
    path = Path(path)
    # Not the process's number: in containers that share a folder all may have the same.
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
    """Writes text whole or not at all; names of files in it may hold bytes that are no UTF-8."""
    content = text.encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write(content))


def printable(path: str | os.PathLike) -> str:
    """A file's name on one line, whatever it contains."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]

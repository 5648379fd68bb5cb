"""Files: written whole or not at all, recognised as ours, known by more than their names."""

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import platformdirs

from e3jax.errors import InputError
from e3jax.work import locks

_LONGEST = 255  # bytes of a name, with what it has while it is written
_SEARCHED = 1 << 16  # bytes at both ends of a file, where a mark is looked for


def partial(path: str | os.PathLike) -> Path:
    """The name that a file has while it is written; hidden, and no other program uses it."""
    path = Path(path)
    return path.with_name(f".{path.name}.e3jax.partial")


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file in the same folder, then moves it to ``path``.

    A process that is killed while writing leaves the previous file, or none, but never part of one.
    What it leaves under the temporary name goes with the next write. Two processes that write the
    same file do so one after the other. A folder that was removed meanwhile is made again.

    Args:
      path: the file.
      write: called with the open temporary file.

    Raises:
      OSError: the file cannot be written; the temporary file is removed.
    """
    path, temporary = Path(path), partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.opened(temporary, wait=True) as lock:
        try:
            lock.truncate(0)
            with open(lock.fileno(), "wb", closefd=False) as file:
                write(file)
            os.fsync(lock.fileno())
            if os.name == "nt":  # which renames no open file
                lock.close()
            os.replace(temporary, path)
        finally:
            # Still under lock: by now another process waits for this file, or none has it.
            with contextlib.suppress(OSError):
                if lock.closed or os.path.samestat(os.fstat(lock.fileno()), os.stat(temporary)):
                    temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file atomically; file names in it keep bytes that are not valid UTF-8."""
    write_lines(path, [text])


def write_lines(path: str | os.PathLike, lines: Iterable[str]) -> None:
    """Writes text as `write_text`, which need not be in memory as a whole."""

    def write(file: BinaryIO) -> None:
        for line in lines:
            file.write(line.encode("utf-8", "surrogateescape"))

    write_atomically(path, write)


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Iterable]) -> None:
    """Writes a CSV file atomically: a header line, then one line per row."""
    write_lines(path, map(_csv_line, itertools.chain([columns], rows)))


def _csv_line(values: Iterable) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)  # it quotes what its own "\r\n" is made of
    return text.getvalue().removesuffix("\r\n") + "\n"


def check_output(
    path: str | os.PathLike,
    mark: str,
    inputs: Iterable[str | os.PathLike] = (),
    is_ours: Callable[[Path], bool] | None = None,
) -> None:
    """Raises an InputError unless a file may be written at ``path``, and changes nothing.

    It may where nothing is, or a file that this program wrote.

    Args:
      path: of the output.
      mark: text near the start or the end of each such output, and of no other program's.
      inputs: files that are read, which no output replaces, however they are spelled.
      is_ours: whether a file is such an output, where a mark does not suffice.
    """
    path = Path(path)
    if len(os.fsencode(partial(path).name)) > _LONGEST:
        raise InputError(f"{printable(path)} is too long a name: choose a shorter one")
    if not os.path.lexists(path):
        return
    for source in inputs:
        if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
            raise InputError(
                f"{printable(path)} is an input of this command and would be overwritten: choose "
                "another name for the output"
            )
    if path.is_dir():
        raise InputError(f"{printable(path)} is a folder, expected a file: choose another name")
    if not (is_ours(path) if is_ours else is_marked(path, mark)):
        raise InputError(
            f"{printable(path)} exists and was not written by e3jax, so it is not overwritten: "
            "move it, or choose another place for the output"
        )


def is_marked(path: str | os.PathLike, mark: str) -> bool:
    """Whether a regular file has a mark near its start or its end."""
    try:
        if not os.path.isfile(path):  # opening a pipe would block
            return False
        with open(path, "rb") as file:
            start = file.read(_SEARCHED)
            file.seek(max(file.seek(0, io.SEEK_END) - _SEARCHED, 0))
            return mark.encode() in start or mark.encode() in file.read()
    except OSError:
        return False


class FileState(NamedTuple):
    """What tells whether a file is the one that it was; -1 for what does not exist.

    Attributes:
      device, inode: numbers of the file system and of the file there, 0 where files have none.
      size: in bytes.
      changed: time of the last change of the content, in nanoseconds.
    """

    device: int = -1
    inode: int = -1
    size: int = -1
    changed: int = -1

    def is_same(self, other: "FileState") -> bool:
        """Whether both are of one file that did not change.

        On another device, say a disk that was mounted again, inodes have other numbers.
        """
        alike = (self.size, self.changed) == (other.size, other.changed)
        return alike and (self.device != other.device or self.inode == other.inode)


def state_of(path: str | os.PathLike) -> FileState:
    """The state of a file, or of the file that a link leads to."""
    try:
        now = os.stat(path)
        has_inodes = _has_inodes(now.st_dev, path)
    except (OSError, ValueError):
        return FileState()
    inode = now.st_ino if has_inodes else 0
    state = (now.st_dev, inode, now.st_size, now.st_mtime_ns)
    return FileState(*(n & 0x7FFFFFFFFFFFFFFF for n in state))  # int64 does not hold all 64 bits


_with_inodes: dict[int, bool] = {}


def _has_inodes(device: int, path: str | os.PathLike) -> bool:
    """Whether files of a file system keep their numbers; those of FAT are made up at each use."""
    if device not in _with_inodes:
        _with_inodes[device] = not hasattr(os, "statvfs") or os.statvfs(path).f_files > 0
    return _with_inodes[device]


def printable(path: str | os.PathLike) -> str:
    """A file's name on one line, whatever it contains."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """``cache_dir``, else E3JAX_CACHE_DIR, else e3jax in the system's place for caches.

    On Linux that is XDG_CACHE_HOME, else ~/.cache.

    Raises:
      InputError: none of these is given, and the user has no home.
    """
    system = platformdirs.user_cache_path("e3jax", appauthor=False)
    try:
        return Path(cache_dir or os.environ.get("E3JAX_CACHE_DIR") or system).expanduser()
    except RuntimeError as error:
        raise InputError(
            "there is no home folder for the cache: set E3JAX_CACHE_DIR to another folder"
        ) from error

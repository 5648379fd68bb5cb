"""Writing files whole or not at all, what long work keeps, and where the cache folder is."""

import csv
import functools
import io
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np


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


_ABOUT = "about.txt"  # in each folder of parts


class Parts:
    """Results of a long computation, kept in a folder as they come, so that it can be stopped.

    Args:
      folder: where they are kept, in files of NumPy's; None keeps them in memory.
      what: names the computation. Parts of another one that are in the folder are deleted, and so
        is what is in folders inside it.

    Raises:
      FileExistsError: the folder has other files.
    """

    def __init__(self, folder: str | os.PathLike | None = None, what: str = ""):
        self.folder, self._found = folder and Path(folder), {}
        if self.folder:
            about = self.folder / _ABOUT
            if self.folder.exists() and not about.exists() and any(self.folder.iterdir()):
                raise FileExistsError(
                    f"{self.folder} has other files, and unfinished work is kept there: move them"
                )
            if not about.exists() or about.read_text() != what:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(about, what)

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists() if self.folder else name in self._found

    def __getitem__(self, name: str) -> Mapping[str, np.ndarray]:
        """A part, whose arrays are read when they are asked for."""
        return np.load(self._path(name)) if self.folder else self._found[name]

    def __setitem__(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        if self.folder:
            write = functools.partial(np.savez, **arrays)
            write_atomically(self._path(name), write)
        else:
            self._found[name] = arrays

    def mapped(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array, which takes no memory of the process where there is a folder."""
        if not self.folder:
            return array
        path = self.folder / f"{name}.npy"
        write_atomically(path, lambda file: np.lib.format.write_array(file, array))
        return np.load(path, mmap_mode="r").view(np.ndarray)

    def keep(self, name: str, make: Callable[[], Mapping]) -> dict[str, np.ndarray]:
        """The part of that name, made if it is not there."""
        if name not in self:
            self[name] = make()
        return dict(self[name])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def forget_parts(folder: Path) -> None:
    """Deletes a folder of :class:`Parts`, if it is one."""
    if (folder / _ABOUT).exists():
        shutil.rmtree(folder, ignore_errors=True)  # on NFS mapped files stay for now


def flat(tree: Mapping, at: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dictionaries by their paths, "a/b"."""
    found = {}
    for name, value in tree.items():
        inner = flat(value, f"{at}{name}/") if isinstance(value, Mapping) else {at + name: value}
        found |= inner
    return found


def nested(arrays: Mapping[str, np.ndarray]) -> dict:
    """The reverse of `flat`."""
    tree = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = array
    return tree


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

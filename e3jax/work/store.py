"""What long work keeps, so that it can be stopped and continued."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import numbers
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from e3jax.errors import InputError
from e3jax.version import versions
from e3jax.work.files import (
    is_marked,
    partial,
    write_atomically,
    write_text,
)

Arrays = Mapping[str, Any]  # NumPy's, scalars among them


def work_key(**values) -> str:
    """A name for work with these inputs, the same in every process, 32 hexadecimal digits.

    Versions of this program and of its libraries are always part of it.

    Raises:
      InputError: a value, a function say, has no content that another process would recognise.
    """
    text = json.dumps({name: _canonical(name, v) for name, v in values.items()}, sort_keys=True)
    return hashlib.sha256(f"{json.dumps(versions())} {text}".encode()).hexdigest()[:32]


def _canonical(name: str, value):
    """A value in JSON's terms."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        # Arrays are buffers, but to a type checker only from Python 3.12 on.
        digest = hashlib.sha256(np.ascontiguousarray(value))  # pyright: ignore[reportArgumentType]
        return [value.dtype.str, value.shape, digest.hexdigest()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [[_canonical(name, k), _canonical(name, v)] for k, v in sorted(value.items())]
    if isinstance(value, (tuple, list)):
        return [_canonical(name, item) for item in value]
    raise InputError(
        f"{name} is {value!r}, which another start of this work could not recognise: give it by "
        "name or number, or do the work in one go"
    )


_ABOUT, _MARK = "about.txt", "e3jax: unfinished work, which the command that began it continues\n"
# All that is kept in a computation's folder; in "training" the state of one, of TrainCheckpoint.
_KEPT = ("*.npz", "*.npy", ".*.e3jax.partial", "training/state.safetensors", "training/.*.partial")


class Store:
    """Results of a long computation, kept in a folder as they come, so that it can be stopped.

    Each computation has its own folder in ``folder``, and leaves all others as they are.

    Args:
      folder: where computations are kept, in files of NumPy's; None keeps this one in memory.
      name: of the computation, see :func:`work_key`.

    Raises:
      InputError: the computation's folder has files that are not ours.
    """

    def __init__(self, folder: str | os.PathLike | None = None, name: str | None = None):
        self.folder = Path(folder, name or "") if folder else None
        self._kept: dict[str, Arrays] = {}
        if self.folder:
            about = self.folder / _ABOUT
            self.folder.mkdir(parents=True, exist_ok=True)
            if not is_marked(about, _MARK):
                if any(path != partial(about) for path in self.folder.iterdir()):
                    raise InputError(f"{self.folder} has files that are not e3jax's: move them")
                write_text(about, _MARK)

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists() if self.folder else name in self._kept

    def __getitem__(self, name: str) -> Arrays:
        """A result, whose arrays are read when they are asked for."""
        return np.load(self._path(name)) if self.folder else self._kept[name]

    def __setitem__(self, name: str, arrays: Arrays) -> None:
        if not self.folder:
            self._kept[name] = arrays
            return
        if not self.folder.exists():  # it was deleted meanwhile
            write_text(self.folder / _ABOUT, _MARK)
        write_atomically(self._path(name), functools.partial(np.savez, **arrays))

    def as_memmap(self, name: str, array: np.ndarray) -> np.ndarray:
        """An array, which takes no memory of the process where there is a folder."""
        if not self.folder:
            return array
        path = self.folder / f"{name}.npy"
        write_atomically(path, lambda file: np.lib.format.write_array(file, array))
        return np.load(path, mmap_mode="r").view(np.ndarray)

    def get_or_compute(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The result of that name, computed if it is not there."""
        if name not in self:
            self[name] = compute()
        return dict(self[name])

    def forget(self) -> None:
        """Deletes what this computation kept, and its folder if nothing else is there.

        The newest goes first: what is left by a kill is what an earlier stop would have left.
        """
        if not self.folder or not is_marked(self.folder / _ABOUT, _MARK):
            return
        ours = [path for pattern in _KEPT for path in self.folder.glob(pattern)]
        with contextlib.suppress(OSError):  # on NFS mapped files stay for now
            for path in sorted(ours, key=lambda path: path.stat().st_mtime_ns, reverse=True):
                path.unlink(missing_ok=True)
            (self.folder / _ABOUT).unlink()
            with contextlib.suppress(FileNotFoundError):
                (self.folder / "training").rmdir()
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _path(self, name: str) -> Path:
        assert self.folder, "what is in memory has no path"
        return self.folder / f"{name}.npz"


def kept_work(folder: Path) -> list[Path]:
    """The folders of unfinished computations in a folder, which may not exist."""
    return sorted(about.parent for about in folder.glob(f"*/{_ABOUT}") if is_marked(about, _MARK))


def flat(tree: Mapping, at: str = "") -> dict[str, Any]:
    """Arrays of nested dictionaries by their paths, "a/b"."""
    leaves = {}
    for name, value in tree.items():
        inner = flat(value, f"{at}{name}/") if isinstance(value, Mapping) else {at + name: value}
        leaves |= inner
    return leaves


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    tree = {}
    for name, array in arrays.items():
        *parents, leaf = name.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = array
    return tree

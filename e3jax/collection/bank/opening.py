"""Banks become collections, whose files may have been moved together with the bank."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax.collection.bank import storage
from e3jax.collection.bank.storage import About, Shard
from e3jax.collection.collection import Collection, Skipped, Unreadable
from e3jax.collection.lazy import LazyArray
from e3jax.collection.reader import Reader
from e3jax.collection.reading import in_colours
from e3jax.errors import InputError
from e3jax.images import facts
from e3jax.images.high_depth import ValueRange
from e3jax.work import files
from e3jax.work.files import FileState


def open_bank(folder: str | os.PathLike) -> Collection:
    """Opens a bank that :func:`write`, :func:`write_arrays` or :func:`join` made.

    A bank that was moved together with its files finds them beside it. Where it does not, a
    :class:`e3jax.collection.Skipped` of the collection says so.

    Returns:
      A collection of :class:`LazyArray` images and paths, which stay on disk; if the bank is
      changed later, they raise an InputError. Images are RGB if any has colour.

    Raises:
      InputError: it is not a bank, unfinished or damaged.
    """
    return opened(members(folder))


def members(folder: str | os.PathLike) -> list[tuple[Path, About]]:
    """The banks that a bank was joined of, else the bank itself, with what they say."""
    folder = Path(folder).resolve()
    about = storage.about(folder)
    if about.banks is None:
        return [(folder, about)]
    moved = Moved(about.place, str(folder))
    banks = [Path(bank if storage.is_bank(bank) else moved(bank)) for bank in about.banks]
    return [(bank, storage.about(bank)) for bank in banks]


def opened(banks: Sequence[tuple[Path, About]]) -> Collection:
    """Opens banks as one collection, see :func:`open_bank`."""
    file_range, (_, made) = _common_range(banks), banks[0]
    places, counts, left_out, digests, channels = [], [], [], [np.empty(0, np.uint64)], 1
    for folder, about in banks:
        renamed, notes = names_now(folder, about)
        for number in range(about.shards):
            path = storage.shard_path(folder, number)
            place = _Place(path, files.state_of(path), renamed)
            shard = _load(place)
            places.append(place)
            counts.append(shard.count)
            digests.append(shard.digests())
            channels = max(channels, shard.channels)
            left_out += [Unreadable(*pair) for pair in shard.unreadable()]
        left_out += [Unreadable(renamed(path), why) for path, why in about.unreadable]
        left_out += [Skipped(*pair) for pair in about.skipped] + notes

    def column(values: Callable, like: np.ndarray, convert: Callable = np.asarray) -> LazyArray:
        return LazyArray(functools.partial(_Column, places, values), counts, like, convert)

    no_pixels = np.empty((0, made.side, made.side, channels), np.uint8)
    return Collection(
        column(Shard.pixels, no_pixels, functools.partial(in_colours, channels=channels)),
        column(Shard.paths, np.empty(0, object)) if made.has_paths else np.arange(sum(counts)),
        Reader(made.side, made.resize, channels == 3, None, file_range),
        left_out,
        np.concatenate(digests),
        column(Shard.states, np.empty((0, 4), np.int64)) if made.has_paths else None,
        column(Shard.facts, np.empty((0, facts.LENGTH), np.float32)) if made.has_paths else None,
        None,
        column(Shard.thumbnails, np.empty(0, object)),
    )


def _common_range(banks: Sequence[tuple[Path, About]]) -> ValueRange:
    """Black and white in files of more than 8 bits.

    Raises:
      InputError: banks are unfinished, or their images were not made alike.
    """
    (first, made), file_range = banks[0], ValueRange()
    for folder, about in banks:
        if about.format != storage.FORMAT or not about.side:
            raise InputError(f"{folder} is not a bank of this version: make one with e3jax bank")
        if not about.finished:
            raise InputError(f"{folder} is unfinished: {storage.AGAIN}")
        names = ("side", "resize", "has_paths")
        differs = [name for name in names if getattr(about, name) != getattr(made, name)]
        differs += ["scale"] * bool(file_range.conflicts(about.file_range))
        if differs:
            raise InputError(
                f"{folder} and {first} differ in {', '.join(differs)}: make one bank of their files"
            )
        file_range = file_range.filled(about.file_range)
    return file_range


# --- Columns -----------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a shard is.

    Attributes:
      path: of the shard.
      state: of its file as it was opened.
      renamed: what a picture's file is called now, by its path when it was read.
    """

    path: Path
    state: FileState
    renamed: Callable[[str], str]


def _load(place: _Place) -> Shard:
    """A shard, if it is still what was opened."""
    shard = storage.load(place.path, place.renamed)
    if not files.state_of(place.path).is_same(place.state):
        raise InputError(
            f"{place.path.parent} was changed, or removed, while it was being read: run the "
            "command again"
        )
    if shard is None:
        raise storage.damaged(place.path)
    return shard


_mapped = functools.lru_cache(192)(_load)  # each keeps a file mapped


class _Column:
    """Values of a shard, read where they are indexed; not a closure, as it is pickled."""

    def __init__(self, places: Sequence[_Place], values: Callable, number: int):
        self._place, self._values = places[number], values

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._values(_mapped(self._place), rows)


# --- Names of files ----------------------------------------------------------------------------


class Moved(NamedTuple):
    """What a file is called now that was moved together with its bank.

    Attributes:
      before, now: folder of the bank.
      stayed: branches, see `_branch`, of files that were not moved.
    """

    before: str
    now: str
    stayed: frozenset[str] = frozenset()

    def __call__(self, path: str) -> str:
        """What a file is called now."""
        folder, name = os.path.split(path)
        relative, branch = _branch(folder, self.before)
        if self.before == self.now or branch in self.stayed:
            return path
        return os.path.join(os.path.normpath(os.path.join(self.now, relative)), name)


@functools.lru_cache(4096)
def _branch(folder: str, bank: str) -> tuple[str, str]:
    """A folder relative to a bank, "../photos/2024", and where it branches off, "../photos"."""
    try:
        relative = os.path.relpath(folder, bank)
    except ValueError:  # on another drive of Windows, where it stays
        return folder, folder
    return relative, re.findall(r"(?:\.\.[/\\])*[^/\\]*", relative)[0]


def names_now(folder: Path, about: About) -> tuple[Callable[[str], str], list[Skipped]]:
    """What files of a bank are called now, and a note if any are gone; a few of them decide."""
    if not about.has_paths:
        return str, []
    moved = Moved(about.place, str(folder))
    stayed, left, gone = set(), set(), {}  # branches
    for path, state in _sample(folder):
        branch = _branch(os.path.dirname(path), moved.before)[1]
        there = [at for at in (path, moved(path)) if os.path.exists(at)]
        there.sort(key=lambda at: not state.is_same(files.state_of(at)))
        if there:
            (stayed if there[0] == path else left).add(branch)
        else:
            gone.setdefault(branch, path)
    notes = [
        Skipped(
            str(folder),
            f"files of {folder} are gone, neither where they were nor beside it as they were, "
            f"e.g. {path}: put them back before you look at them or move them",
        )
        for branch, path in gone.items()
        if branch not in stayed | left
    ]
    return (moved._replace(stayed=frozenset(stayed)) if left else str), notes[:1]


def _sample(folder: Path) -> Iterator[tuple[str, FileState]]:
    """A few files of a bank, from all over it, as they were when they were read."""
    paths = sorted(folder.glob(storage.SHARDS))
    for i in _evenly(len(paths)):
        if (shard := storage.load(paths[i])) is not None:
            rows = _evenly(len(shard))
            yield from zip(shard.paths(rows), map(FileState._make, shard.states(rows)), strict=True)


def _evenly(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, 8)).astype(int))

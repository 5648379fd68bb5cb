"""Banks: collections on disk, whose images are mapped into memory instead of read into it.

A bank is a folder. Its shard 7 consists of ``0000007.npy``, the images uint8 [m, h, w, c], with one
channel where all of them are grey, and of ``0000007.arrow``, a row per file: path, state, why it
cannot be read, digest of the pixels, thumbnail. A shard is whole once the second file is there.

``bank.json`` says how images were made, where the bank was then, and in the end that all are there.
It starts with a mark and a random word for its generation, which is another one before any shard
changes: whoever maps a shard, and then finds the generation that was opened, has what was opened.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
import re
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3jax import images
from e3jax.collection import collection, copies, reading, threads
from e3jax.collection.lazy import LazyArray
from e3jax.collection.reader import Reader
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.images.high_depth import HighDepthImage, ValueRange, common_range
from e3jax.work import files, locks
from e3jax.work.files import FileState

ABOUT = "bank.json"
_FORMAT = 2
_MARK = re.compile(rb'\s*\{\s*"e3jax"\s*:\s*"bank"\s*,\s*"generation"\s*:\s*"(\w+)"')
# Files of a shard, and of a task.
_SHARD, _TASK = 4096, 256
_MOST = 10**7  # shards that have names
_THUMBNAIL = 96
_ENDINGS = ("arrow", "npy", "npz")
_PARTIAL = re.compile(rf"\.(bank\.json|\d{{7}}\.({'|'.join(_ENDINGS)}))\.e3jax\.partial")
_AGAIN = "give the command that made it once more, which continues"
_DAMAGED = (OSError, ValueError, EOFError, KeyError)  # what reading half a file, or none, raises


def _path(folder: Path, shard: int, ending: str) -> Path:
    return folder / f"{shard:07d}.{ending}"


def _load_pixels(folder: Path, shard: int) -> np.ndarray:
    return np.load(_path(folder, shard, "npy"), mmap_mode="r")


def _load_table(folder: Path, shard: int):
    pa = _arrow()
    mapped = pa.memory_map(os.fsencode(_path(folder, shard, "arrow")))
    return pa.ipc.open_file(mapped).read_all().combine_chunks()


class _Shard(NamedTuple):
    """A shard of a bank as it was opened.

    Attributes:
      folder, number: where it is.
      generation: of the bank.
      count, channels: of its images.
      renamed: what a file is called now, by its path when it was read.
    """

    folder: Path
    number: int
    generation: str
    count: int
    channels: int
    renamed: Callable[[str], str] = str


def _pixels(shards: Sequence[_Shard], piece: int) -> np.ndarray:
    return _mapped(_load_pixels, *shards[piece][:3])


@functools.lru_cache(192)  # each holds a file open
def _mapped(load: Callable[[Path, int], Any], folder: Path, number: int, generation: str):
    """What a file of a shard holds, if it is still what was opened."""
    try:
        content = load(folder, number)
    except _DAMAGED:
        content = None
    _check_unchanged(folder, generation)
    if content is None:
        raise _damaged(folder, number)
    return content


def _check_unchanged(folder: Path, generation: str) -> None:
    if _generation(folder) != generation:
        raise InputError(
            f"{folder} was changed, or removed, while it was read: give the command once more"
        )


def _damaged(folder: Path, shard: int) -> InputError:
    return InputError(f"{folder} is damaged, shard {shard} is missing or not whole: {_AGAIN}")


class _Columns:
    """Columns of a shard, indexed by positions; a module's own class, since detectors are pickled.

    Args:
      shards, piece: the shard is ``shards[piece]``.
      names: of the columns.
      decode: ``(shard, columns) -> array``, of a part of each of them.
    """

    def __init__(self, shards: Sequence[_Shard], names: tuple, decode: Callable, piece: int):
        self._shard, self._decode = shards[piece], decode
        self._table = _mapped(_load_table, *self._shard[:3]).select(names)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self._decode(self._shard, *self._table.take(index).columns)


def _paths(shard: _Shard, column) -> np.ndarray:
    return _objects([shard.renamed(os.fsdecode(path)) for path in column.to_pylist()])


def _contents(shard: _Shard, column) -> np.ndarray:
    return _objects([content or b"" for content in column.to_pylist()])


def _states(shard: _Shard, *columns) -> np.ndarray:
    return np.stack([column.to_numpy() for column in columns], axis=1)


def _objects(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _arrow():
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise InputError(
            "large collections and banks need pyarrow: pip install e3jax[large]"
        ) from error
    return pyarrow


def is_bank(folder: str | os.PathLike) -> bool:
    """Whether a folder is a bank, finished or not."""
    return _generation(Path(folder)) is not None


def _generation(folder: Path) -> str | None:
    """The generation that a bank has at the moment; None of what is not a bank."""
    try:
        if not (folder / ABOUT).is_file():  # opening a pipe would block
            return None
        with open(folder / ABOUT, "rb") as file:
            mark = _MARK.match(file.read(256))
    except (OSError, ValueError):
        return None
    return mark and mark[1].decode()


def _about(folder: Path) -> dict:
    """What a bank says about itself; {} of what is not a bank."""
    try:
        content = (folder / ABOUT).read_bytes() if is_bank(folder) else b"{}"
        return json.loads(content)
    except (OSError, ValueError):
        return {}


def open_bank(
    folder: str | os.PathLike,
    side: int | None = None,
    fit: str | None = None,
    colour: bool | None = None,
) -> collection.Collection:
    """Opens a bank that :func:`write`, :func:`write_arrays` or :func:`join` made.

    A bank that was moved together with its files finds them beside it. Where it does not, a
    `Skipped` of the collection says so.

    Args:
      folder: of the bank.
      side, fit: what the bank must have been made with; default: anything.
      colour: as of :func:`e3jax.collection.reading.read_files`.

    Returns:
      A collection of :class:`LazyArray` images and paths, which stay on disk; if the bank is
      changed later, they raise an InputError.

    Raises:
      InputError: it is no bank, unfinished, damaged, or made with another side or fit.
    """
    return _open(_members(folder), side, fit, colour)


def join(folder: str | os.PathLike, folders: Sequence[str | os.PathLike]) -> collection.Collection:
    """Makes a bank of several banks, which stay where they are: nothing is copied.

    Args:
      folder: of the new bank; or of an earlier one of the same banks, or of a part of them.
      folders: of the others, in the order that their images take; of different files.

    Raises:
      InputError: they differ in how their images were made, or a file is in two of them; the new
        bank would be in one of them, or replace another one; or see :func:`open_bank` and
        :func:`write`.
    """
    folder = _resolved(folder)
    each_once = {_place(member[0]): member for each in folders for member in _members(each)}
    members = list(each_once.values())
    banks = {*map(_place, map(_resolved, folders)), *each_once}
    if banks & set(map(_place, (folder, *folder.parents))):
        raise InputError(f"{folder} is one of the banks to join, or in one: name a new folder")
    joined = _open(members)
    if joined.ids.dtype == object:
        _check_different(joined.ids)
    settings = {"format": _FORMAT, "banks": [str(member) for member, _ in members]}
    with _begun(folder, settings) as before:
        earlier = _members(folder) if "banks" in before else ()
        others = (member for member, _ in earlier if _place(member) not in banks)
        _check_same(folder, "banks", filter(is_bank, others))
        _write_about(folder, settings | {"finished": True})
    return joined


def _check_different(paths: LazyArray) -> None:
    """Raises an InputError if a file occurs twice. Of each only a digest of 8 bytes is held."""
    identity = identities()
    digests = np.fromiter((hash(identity(path)) for path in paths), np.int64, len(paths))
    ordered = np.sort(digests)
    twice = paths[np.isin(digests, ordered[1:][ordered[1:] == ordered[:-1]])]
    times = collections.Counter(map(identity, twice))
    if again := [path for path in twice if times[identity(path)] > 1]:
        raise InputError(f"{again[0]} is in two of the banks: join banks of different files")


def _resolved(folder: str | os.PathLike) -> Path:
    return Path(os.path.realpath(folder))


def _place(folder: str | os.PathLike) -> tuple:
    """Which folder it is, however it is spelled."""
    state = files.state_of(folder)
    return state[:2] if state != FileState() else (os.path.realpath(folder),)


def identities() -> Callable[[str], tuple]:
    """A function of paths that tells which file each is, however its folder is spelled."""
    place = functools.cache(_place)

    def identity(path: str) -> tuple:
        folder, name = os.path.split(path)
        return place(folder), name

    return identity


def _members(folder: str | os.PathLike) -> list[tuple[Path, dict]]:
    """The banks that a bank was joined of, else the bank itself, with what they say."""
    folder = _resolved(folder)
    about = _about(folder)
    if "banks" not in about:
        return [(folder, about)]
    moved = _Moved(about["place"], str(folder))
    members = []
    for member in map(Path, about["banks"]):
        at = member if is_bank(member) else Path(moved(str(member)))
        members.append((at, _about(at)))
    return members


def _open(
    members: Sequence[tuple[Path, dict]],
    side: int | None = None,
    fit: str | None = None,
    colour: bool | None = None,
) -> collection.Collection:
    """Opens banks as one collection, see :func:`open_bank`."""
    folders = [folder for folder, _ in members]
    abouts = [_checked(*member, side, fit) for member in members]
    about = _common(folders, abouts)
    opened = [_shards(*member) for member in zip(folders, abouts, strict=True)]
    shards = [shard for each, _, _ in opened for shard in each]
    digests = np.concatenate([np.empty(0, np.uint64), *(each for _, each, _ in opened)])
    counts, channels = [s.count for s in shards], max((s.channels for s in shards), default=1)
    channels = channels if colour is None else 3 if colour else 1
    like = np.empty((0, about["side"], about["side"], channels), np.uint8)
    convert = functools.partial(reading.in_colours, channels=channels)
    images = LazyArray(functools.partial(_pixels, shards), counts, like, convert)

    def columns(decode: Callable, like: np.ndarray, *names: str) -> LazyArray:
        return LazyArray(functools.partial(_Columns, shards, names, decode), counts, like)

    ids, states = np.arange(len(images)), None
    if about["has_paths"]:
        ids = columns(_paths, np.empty(0, object), "path")
        no_states = np.empty((0, len(FileState._fields)), np.int64)
        states = columns(_states, no_states, *FileState._fields)
    thumbnails = columns(_contents, np.empty(0, object), "thumbnail")
    left_out = [entry for _, _, each in opened for entry in each]
    reader = Reader(about["side"], about["fit"] or "squash", channels == 3, None, about["scale"])
    return collection.Collection(images, ids, reader, left_out, digests, states, thumbnails)


def _checked(folder: Path, about: dict, side: int | None, fit: str | None) -> dict:
    """What a bank says about itself, if it is finished and of this side and fit."""
    if about.get("format") != _FORMAT or "banks" in about:
        raise InputError(f"{folder} is no bank of this version: make one with e3jax bank")
    if not about["finished"]:
        raise InputError(f"{folder} is unfinished: {_AGAIN}")
    for name, wanted in (("image size", side), ("resize", fit)):
        has = about["side" if name == "image size" else "fit"]
        if None not in (wanted, has) and wanted != has:
            raise InputError(
                f"{folder} was made with {name} {has}, not {wanted}: use that, or make another bank"
            )
    return about | {"scale": _scale(about)}


def _scale(about: dict) -> ValueRange:
    return ValueRange(*(pair and tuple(pair) for pair in about["scale"]))


def _common(folders: Sequence[Path], abouts: Sequence[dict]) -> dict:
    """What banks have in common; an InputError if their images were not made alike."""
    first = dict(abouts[0])
    for folder, about in zip(folders, abouts, strict=True):
        differs = [name for name in ("side", "fit", "has_paths") if about[name] != first[name]]
        differs += ["scale"] if first["scale"].conflicts(about["scale"]) else []
        if differs:
            raise InputError(
                f"{folder} and {folders[0]} differ in {', '.join(differs)}: make one bank of "
                "their files"
            )
        first["scale"] = first["scale"].filled(about["scale"])
    return first


def _shards(
    folder: Path, about: dict
) -> tuple[list[_Shard], np.ndarray, list[collection.Unreadable]]:
    """The shards of a bank, each whole, digests of their images, and what was left out."""
    shapes = list(zip(about["counts"], about["channels"], strict=True))
    digests = [np.empty(0, np.uint64)]
    for number, (count, channels) in enumerate(shapes):
        try:
            digests.append(_load_table(folder, number)["digest"].to_numpy()[:count])
            shape = _load_pixels(folder, number).shape
        except _DAMAGED:
            shape = None
        if shape != (count, about["side"], about["side"], channels):
            _check_unchanged(folder, about["generation"])
            raise _damaged(folder, number)
    _check_unchanged(folder, about["generation"])
    renamed, notes = _renamed(folder, about) if about["has_paths"] else (str, [])
    shards = [
        _Shard(folder, n, about["generation"], *shape, renamed) for n, shape in enumerate(shapes)
    ]
    left_out = [collection.Unreadable(renamed(path), why) for path, why in about["unreadable"]]
    left_out += [collection.Skipped(*pair) for pair in about["not_looked_at"]]
    return shards, np.concatenate(digests), left_out + notes


class _Moved(NamedTuple):
    """What a file is called now that was moved together with its bank.

    Attributes:
      before, now: folder of the bank.
      stayed: branches, see `_branch`, of files that were not moved.
    """

    before: str
    now: str
    stayed: frozenset[str] = frozenset()

    def __call__(self, path: str) -> str:
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
    return relative, re.match(r"(\.\.[/\\])*[^/\\]*", relative)[0]


def _renamed(folder: Path, about: dict) -> tuple[Callable[[str], str], list[collection.Skipped]]:
    """What files of a bank are called now, and a note if any are gone; a few of them decide."""
    moved = _Moved(about["place"], str(folder))
    places = collections.defaultdict(set)  # of the files of a branch: True = where they were
    sample = [
        (path, _branch(os.path.dirname(path), moved.before)[1], state)
        for path, state in _sample(folder, range(_counted(about)))
    ]
    for path, branch, state in sample:
        there = [at for at in (path, moved(path)) if os.path.exists(at)]
        there.sort(key=lambda at: not state.is_same(files.state_of(at)))
        places[branch] |= {at == path for at in there[:1]}
    stayed = frozenset(branch for branch, were in places.items() if True in were)
    notes = [
        collection.Skipped(
            str(folder),
            f"files of {folder} are gone, neither where they were nor beside it as they were, "
            f"e.g. {path}: put them back before you look at them or move them",
        )
        for path, branch, _ in sample
        if not places[branch]
    ]
    was_moved = any(False in were for were in places.values())
    return (moved._replace(stayed=stayed) if was_moved else str), notes[:1]


def _sample(folder: Path, numbers: range) -> Iterator[tuple[str, FileState]]:
    """A few files of these shards of a bank, from all over it, as they were when they were read."""
    tables = _files_of_shards(folder, numbers, "arrow")
    for i in _evenly(len(tables)):
        with contextlib.suppress(*_DAMAGED):
            table = _load_table(folder, int(tables[i].stem))
            table = table.select(("path", *FileState._fields)).take(_evenly(len(table)))
            for path, *state in zip(*table.to_pydict().values(), strict=True):
                yield os.fsdecode(path), FileState(*state)


def _evenly(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, 8)).astype(int))


def write(
    folder: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    side: int = 32,
    fit: str = "squash",
    left_out: Sequence[collection.Unreadable] = (),
    on_file: Callable[[int], None] = lambda done: None,
    each: engines.Each = engines.processes,
) -> collection.Collection:
    """Reads image files into a bank, with thumbnails, see
    :func:`e3jax.collection.reading.read_files`.

    What a call that was stopped had finished stays, and so does what an earlier bank in the folder
    has of files that did not change since. Files that do not exist any more leave the bank.

    Args:
      folder: of the bank.
      paths: image files; one that comes twice, however its folder is spelled, is read once.
      side, fit: as of ``read_files``.
      left_out: what else the bank is to list as left out.
      on_file: called with the number of files done.
      each: decodes, see :mod:`e3jax.devices.engines`; decoders hold Python, so not in threads.

    Raises:
      InputError: the folder has other files, or a finished bank of other files or settings; another
        command is at work there; or fewer than two files can be read.
      OSError: it cannot be written.
    """
    folder, here = _resolved(folder), os.getcwd()
    paths = _each_once(os.path.join(here, os.fsdecode(path)) for path in paths)
    shards = [paths[start : start + _SHARD] for start in range(0, len(paths), _SHARD)]
    settings = {"format": _FORMAT, "side": side, "fit": fit, "has_paths": True}
    with _begun(folder, settings) as before:
        renamed = _renamed(folder, before)[0] if before else str
        _check_listed(folder, before, paths, renamed)
        counted = _counted(before)
        _check_free(folder, range(counted, len(shards)))
        names = _new_names(folder, shards, renamed)
        as_before = before.get("finished") and all(new == {} for new in names)
        if as_before and not _files_of_shards(folder, range(len(shards), counted)):
            generation, scale = before["generation"], _scale(before)
            on_file(len(paths))
        else:
            # Until all have their new names, those of before follow the bank from where it was.
            place = {"place": before.get("place", str(folder))}
            begun = {"finished": False, "shards": max(counted, len(shards))}
            generation = _write_about(folder, settings | place | begun)
            _forget(_files_of_shards(folder, range(len(shards), counted)))
            _fill(folder, shards, names, settings, on_file, each)
            scale = _develop(folder, len(shards))
        _finish(folder, settings, generation, len(shards), left_out, scale)
    collection = open_bank(folder)
    if len(collection.images) < 2:
        raise InputError(
            f"{len(collection.images)} of {len(paths)} files are readable images, expected at "
            "least 2: an outlier needs other images to differ from"
        )
    return collection


def _each_once(paths: Iterable[str]) -> list[str]:
    """Paths without those of a file that came before, with its folder spelled in another way."""
    identity, each_once = identities(), {}
    for path in paths:
        each_once.setdefault(identity(path), path)
    return list(each_once.values())


def write_arrays(folder: str | os.PathLike, arrays: Iterable[np.ndarray]) -> collection.Collection:
    """Writes images uint8 [n, h, w, c] that come in arrays of any lengths into a bank.

    After a stop the same call goes on. A finished bank is left as it is, if it has these images.

    Raises:
      InputError: no image, arrays of different sides, a finished bank of others, or see
        :func:`write`.
    """
    folder, blocks = _resolved(folder), _blocks(arrays)
    if (first := next(blocks, None)) is None:
        raise InputError("no arrays of images, expected at least one: there is nothing to write")
    settings = {"format": _FORMAT, "side": first.shape[1], "fit": None, "has_paths": False}
    with _begun(folder, settings) as before:
        counts, generation = before.get("counts"), before.get("generation")
        others = InputError(f"{folder} is a finished bank of other arrays: name another folder")
        begun = settings | {"finished": False, "shards": _counted(before)}
        if counts is None:
            generation = _write_about(folder, begun)
        for number, pixels in enumerate(itertools.chain([first], blocks)):
            digests = _digests(folder, number)
            if np.array_equal(digests, copies.digests(pixels)):
                continue
            if counts is not None:
                if digests is not None or number >= len(counts):
                    raise others
                generation = _write_about(folder, begun)  # a damaged shard
            if number >= begun["shards"]:
                _check_free(folder, range(number, number + 1))
                begun["shards"] = number + 1
                _write_about(folder, begun, generation)
            rows = [_Row(b"", FileState(), None)] * len(pixels)
            _write_pixels(folder, number, pixels, _table(rows))
        if counts is not None and number + 1 < len(counts):
            raise others
        _forget(_files_of_shards(folder, range(number + 1, begun["shards"])))
        _finish(folder, settings, generation, number + 1, (), ValueRange())
    return open_bank(folder)


def _blocks(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Images of arrays, uint8 [m, h, w, 3], as many as a shard has.

    Raises:
      InputError: they are of several sides.
    """
    checked = (reading.in_colours(images.checked(array, least=0), 3) for array in arrays)
    pictures, sides = itertools.chain.from_iterable(checked), set()
    while block := list(itertools.islice(pictures, _SHARD)):
        sides |= {len(image) for image in block}
        if len(sides) > 1:
            raise InputError("images of several sides, expected one: resize them")
        yield np.stack(block)


def _digests(folder: Path, shard: int) -> np.ndarray | None:
    """Digests of a shard's images; None if it is not whole."""
    try:
        digests = _load_table(folder, shard)["digest"].to_numpy()
        return digests if len(digests) == len(_load_pixels(folder, shard)) else None
    except _DAMAGED:
        return None


@contextlib.contextmanager
def _begun(folder: Path, settings: dict) -> Iterator[dict]:
    """A folder in which a bank may be made, and no other command does so meanwhile.

    Yields:
      What an earlier bank there says, which is of these settings; {} if there is none.

    Raises:
      InputError: see `write`.
    """
    _check_folder(folder)  # first, as a lock in a folder of pictures is a file there
    _arrow()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(folder, "bank"):
        _check_folder(folder)
        for path in folder.glob(".*"):
            if _PARTIAL.fullmatch(path.name) and _is_plain(path):
                path.unlink()
        before = _about(folder)
        if before and _kind(before) != _kind(settings):
            if before.get("finished"):
                raise InputError(
                    f"{folder} is a finished bank {_kind(before)}, not {_kind(settings)}: name "
                    "another folder"
                )
            _forget(_files_of_shards(folder, range(_counted(before))))
            before = {}
        yield before


def _is_plain(path: Path) -> bool:
    """Whether it is a regular file that has no other name, so that removing it removes it only."""
    state = os.lstat(path)
    return stat.S_ISREG(state.st_mode) and state.st_nlink == 1


def _check_folder(folder: Path) -> None:
    """Raises an InputError unless a folder is a bank, empty or not there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the bank: name another one")
    names = ()
    with contextlib.suppress(FileNotFoundError):  # or it has just been removed
        names = os.listdir(folder)
    others = [name for name in names if not name.endswith((locks.NAME, ".e3jax.partial"))]
    if others and not is_bank(folder):
        raise InputError(f"{folder} has other files, expected a new folder for the bank: name one")


def _kind(about: dict) -> str:
    """What makes a bank another one, in words."""
    if about.get("format") != _FORMAT:
        return "of another version"
    if "banks" in about:
        return "joined of banks"
    what, fit = "files" if about["has_paths"] else "arrays", about["fit"]
    return f"of {what} with image size {about['side']}" + (f" and resize {fit}" if fit else "")


def _counted(about: dict) -> int:
    """How many shards a bank may have files of; whatever else has such a name is not its own."""
    if "counts" in about:
        return len(about["counts"])
    return about.get("shards", _MOST if about else 0)


def _check_free(folder: Path, numbers: range) -> None:
    """Raises an InputError if files that the bank did not write have names of these shards."""
    names = (f"{number:07d}.{ending}" for number in numbers for ending in _ENDINGS)
    for name in names:
        if os.path.lexists(folder / name):
            raise InputError(
                f"{folder} has a file {name} that is not the bank's and would be overwritten: "
                "move it"
            )


def _check_listed(folder: Path, before: dict, paths: Iterable[str], renamed: Callable) -> None:
    """Raises an InputError if a finished bank has an image whose file exists and is not listed."""
    identity = identities()
    listed = set(map(identity, paths))
    for shard, count in enumerate(before.get("counts", ())):
        held = ()
        with contextlib.suppress(*_DAMAGED):
            held = _load_table(folder, shard)["path"].slice(0, count).to_pylist()
        held = map(renamed, map(os.fsdecode, held))
        others = (path for path in held if identity(path) not in listed)
        _check_same(folder, "files", filter(os.path.exists, others))


def _check_same(folder: Path, what: str, others: Iterable[str | os.PathLike]) -> None:
    """Raises an InputError if there are others that a finished bank has, and that are not given."""
    if (other := next(iter(others), None)) is not None:
        raise InputError(
            f"{folder} is a finished bank of other {what}, e.g. {files.printable(other)}: name "
            "another folder"
        )


def _new_names(
    folder: Path, shards: Sequence[Sequence[str]], renamed: Callable[[str], str]
) -> list[dict[str, str] | None]:
    """For each shard the files that have other names now, by those; None if it is to be read."""
    identity, names = identities(), []
    for shard, paths in enumerate(shards):
        try:
            table, n = _load_table(folder, shard), len(_load_pixels(folder, shard))
            before = list(map(os.fsdecode, table["path"].to_pylist()))
            states = zip(*(table[name].to_pylist() for name in FileState._fields), strict=True)
            has_thumbnail = table["thumbnail"].slice(0, n).is_valid().to_pylist()
        except _DAMAGED:
            names.append(None)
            continue
        listed = {identity(path): path for path in paths}
        now = [listed.get(identity(renamed(path))) for path in before]
        is_current = (
            n == table["reason"].null_count == len(has_thumbnail)
            # Files of more than 8 bits have none, and values that wait.
            and {i for i in range(n) if not has_thumbnail[i]}
            == _deep_rows(_path(folder, shard, "npz"))
            and len(now) == len(paths)
            and set(now) == set(listed.values())
            and all(
                FileState(*s).is_same(files.state_of(p)) for s, p in zip(states, now, strict=True)
            )
        )
        changed = {old: new for old, new in zip(before, now, strict=True) if old != new}
        names.append(changed if is_current else None)
    return names


class _Row(NamedTuple):
    """A file as it was read: pixels uint8 [h, w, 3], a `HighDepthImage`, or the reason why not."""

    path: bytes
    state: FileState
    pixels: Any
    thumbnail: bytes = b""


def _fill(
    folder: Path,
    shards: Sequence[Sequence[str]],
    names: Sequence[dict[str, str] | None],
    settings: dict,
    on_file: Callable[[int], None],
    each: engines.Each,
) -> None:
    """Makes a bank have these shards, of which those with `_new_names` are only renamed."""
    for shard, new in enumerate(names):
        if new:
            table = _load_table(folder, shard)
            paths = map(os.fsdecode, table["path"].to_pylist())
            table = _with(table, "path", [os.fsencode(new.get(path, path)) for path in paths])
            _write_table(folder, shard, table)
    missing = [shard for shard, new in enumerate(names) if new is None]
    done = sum(map(len, shards)) - sum(len(shards[shard]) for shard in missing)
    on_file(done)
    tasks = (
        (shards[shard][start : start + _TASK], settings["side"], settings["fit"])
        for shard in missing
        for start in range(0, len(shards[shard]), _TASK)
    )
    results = iter(each(_read, tasks))
    for shard in missing:
        rows = []
        while len(rows) < len(shards[shard]):
            rows += next(results)
            on_file(done + len(rows))
        done += len(rows)
        _write_shard(folder, shard, rows, settings["side"])
    for _ in results:  # none; else joblib would take the end for a stop
        pass


def _read(task: tuple[Sequence[str], int, str]) -> list[_Row]:
    """Reads a few files, in a process of its own or on another machine."""
    (paths, side, fit), rows = task, []
    states = list(map(files.state_of, paths))  # before: what changes meanwhile is read again
    results = reading.read_each(paths, side, fit, thumbnails=_THUMBNAIL, threads=1)
    for path, state, result in zip(paths, states, results, strict=True):
        file = (os.fsencode(path), state)
        if isinstance(result, Exception):
            rows.append(_Row(*file, threads.reason(result)))
        else:
            pixels, thumbnail = result
            rows.append(
                _Row(*file, pixels, b"" if isinstance(thumbnail, HighDepthImage) else thumbnail)
            )
    return rows


def _write_shard(folder: Path, shard: int, rows: Sequence[_Row], side: int) -> None:
    """Writes a shard, images of more than 8 bits black; their values wait in a file beside it."""
    good = [row for row in rows if not isinstance(row.pixels, str)]
    bad = [row for row in rows if isinstance(row.pixels, str)]
    deep = {i: row.pixels for i, row in enumerate(good) if isinstance(row.pixels, HighDepthImage)}
    black = np.zeros((side, side, 3), np.uint8)
    pixels = [black if i in deep else row.pixels for i, row in enumerate(good)]
    values = {f"{i}.{name}": value for i, d in deep.items() for name, value in d._asdict().items()}
    waiting = _path(folder, shard, "npz")
    is_ours = bool(_deep_rows(waiting))
    if deep and not is_ours and os.path.lexists(waiting):
        raise InputError(
            f"{waiting} is damaged or not the bank's, and would be overwritten: move it, and "
            f"{_AGAIN}"
        )
    _path(folder, shard, "arrow").unlink(missing_ok=True)  # first: without it a shard is not whole
    if is_ours:
        waiting.unlink()
    if deep:
        files.write_atomically(waiting, functools.partial(np.savez, **values))
    pixels = np.stack(pixels) if pixels else black[None][:0]
    _write_pixels(folder, shard, pixels, _table(good + bad))


def _table(rows: Sequence[_Row]):
    """All columns of a shard but the digests."""
    pa = _arrow()
    states = np.array([row.state for row in rows], np.int64).reshape(-1, len(FileState._fields))
    return pa.table(
        {
            "path": pa.array([row.path for row in rows], pa.binary()),
            **dict(zip(FileState._fields, states.T, strict=True)),
            "reason": pa.array(
                [row.pixels if isinstance(row.pixels, str) else None for row in rows], pa.string()
            ),
            "thumbnail": pa.array([row.thumbnail or None for row in rows], pa.binary()),
        }
    )


def _with(table, name: str, values: Sequence):
    """A table whose column has these values, which it may not have had."""
    pa = _arrow()
    if name in table.column_names:
        at = table.column_names.index(name)
        return table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    return table.append_column(name, pa.array(values))


def _write_pixels(folder: Path, shard: int, pixels: np.ndarray, table) -> None:
    """Writes the two files of a shard, whose readable rows come first."""
    if pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    _path(folder, shard, "arrow").unlink(missing_ok=True)
    # Not np.save: it goes through the file's descriptor, past write_atomically's buffer.
    files.write_atomically(
        _path(folder, shard, "npy"), lambda file: np.lib.format.write_array(file, pixels)
    )
    digests = np.zeros(len(table), np.uint64)
    digests[: len(pixels)] = copies.digests(pixels)
    _write_table(folder, shard, _with(table, "digest", digests))


def _write_table(folder: Path, shard: int, table) -> None:
    def write(file) -> None:
        with _arrow().ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    files.write_atomically(_path(folder, shard, "arrow"), write)


def _develop(folder: Path, shards: int) -> ValueRange:
    """Gives images of more than 8 bits the scale that all of the collection share."""
    waiting = {}
    for shard in range(shards):
        path = _path(folder, shard, "npz")
        if rows := _deep_rows(path):
            try:
                with np.load(path) as arrays:
                    values = {name: arrays[name][()] for name in arrays}
            except (*_DAMAGED, zipfile.BadZipFile) as error:
                raise InputError(f"{path} is damaged: remove it, and {_AGAIN}") from error
            waiting[shard] = {
                i: HighDepthImage(*(values[f"{i}.{field}"] for field in HighDepthImage._fields))
                for i in rows
            }
    scale = common_range([deep for each in waiting.values() for deep in each.values()])
    for shard, deeps in waiting.items():
        before = reading.in_colours(_load_pixels(folder, shard), 3)
        pixels = before.copy()
        for i, deep in deeps.items():
            pixels[i] = deep.to_uint8(scale)
        if not np.array_equal(pixels, before):
            _write_pixels(folder, shard, pixels, _load_table(folder, shard))
    return scale


def _finish(
    folder: Path, settings: dict, generation: str, shards: int, left_out, scale: ValueRange
) -> None:
    """Says of a bank that it is whole, and what is in it."""
    counts, channels, unreadable = [], [], []
    for shard in range(shards):
        pixels = _load_pixels(folder, shard)
        counts.append(len(pixels))
        channels.append(pixels.shape[-1])
        bad = _load_table(folder, shard).slice(len(pixels)).select(["path", "reason"]).to_pylist()
        unreadable += [(os.fsdecode(row["path"]), row["reason"]) for row in bad]
    notes = [entry for entry in left_out if isinstance(entry, collection.Skipped)]
    unreadable += [entry for entry in left_out if entry not in notes]
    about = settings | {"finished": True, "counts": counts, "channels": channels}
    about |= {"unreadable": unreadable, "not_looked_at": notes, "scale": scale}
    _write_about(folder, about, generation)


def _write_about(folder: Path, about: dict, generation: str = "") -> str:
    """Writes what a bank says about itself; returns its generation, which is new by default."""
    start = {"e3jax": "bank", "generation": generation or uuid.uuid4().hex, "place": str(folder)}
    files.write_text(folder / ABOUT, json.dumps(start | about))
    return start["generation"]


def _files_of_shards(folder: Path, numbers: range, ending: str = "*") -> list[Path]:
    """Files of these shards, tables first, where the folder is a bank; others have such names."""
    if not is_bank(folder):
        return []
    names = (f"{'[0-9]' * 7}.{each}" for each in _ENDINGS if ending in ("*", each))
    paths = [path for name in names for path in sorted(folder.glob(name))]
    paths = [path for path in paths if int(path.stem) in numbers]
    return [path for path in paths if path.suffix != ".npz" or _deep_rows(path)]


def _deep_rows(path: Path) -> set[int]:
    """Rows whose values of more than 8 bits are in a file; none if it is not ours, or not there."""
    try:
        with zipfile.ZipFile(path) if path.is_file() else contextlib.nullcontext() as archive:
            names = archive.namelist() if archive else []
    except (*_DAMAGED, zipfile.BadZipFile, NotImplementedError):
        return set()
    rows = {int(row) for row in (name.split(".")[0] for name in names) if row.isdecimal()}
    ours = {f"{row}.{field}.npy" for row in rows for field in HighDepthImage._fields}
    return rows if ours == set(names) else set()


def _forget(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()

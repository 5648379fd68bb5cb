"""Banks: collections on disk, whose images are mapped into memory instead of read into it.

A bank is a folder. Its shard 7 consists of ``0000007.npy``, the images uint8 [m, h, w, c], with one
channel where all of them are grey, and of ``0000007.arrow``, a row per file: path, size, time of
the last change, why it cannot be read, digest of the pixels, thumbnail. A shard is whole once the
second file is there. ``bank.json`` says how images were made, and in the end that all are there.
"""

import collections
import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3jax import copies, decoding, engines, files, locks, reading
from e3jax.decoding import Deep, FileScale
from e3jax.errors import InputError
from e3jax.images import ImageBank, as_bank

ABOUT = "bank.json"
_FORMAT = 1
# Files of a shard, and of a task.
_SHARD, _TASK = 4096, 256
_THUMBNAIL = 96
_AGAIN = "give the command that made it once more, which continues"
_DAMAGED = (OSError, ValueError, EOFError)  # what reading half a file, or none, raises


# --- Reading a bank ----------------------------------------------------------------------------


class Joined:
    """An array [n, ...] in pieces, each loaded when an index, a slice or positions, needs it.

    Args:
      load: ``piece -> array``, indexed by positions.
      counts: items of each piece.
      like: an empty array of the shape [0, ...] and dtype.
      convert: of what was indexed in a piece.
      rows: int [n], the items that these are; default: all.
    """

    def __init__(
        self,
        load: Callable[[int], Any],
        counts: Sequence[int],
        like: np.ndarray,
        convert: Callable[[Any], np.ndarray] = np.asarray,
        rows: np.ndarray | None = None,
    ):
        self._load, self._like, self._convert, self._rows = load, like, convert, rows
        self._counts, self._ends = tuple(counts), np.cumsum(counts)
        n = sum(self._counts) if rows is None else len(rows)
        self.shape, self.dtype, self.ndim = (n, *like.shape[1:]), like.dtype, like.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def of(self, rows: np.ndarray) -> "Joined":
        """Some of the items, by their positions int [m]."""
        rows = rows if self._rows is None else self._rows[rows]
        return Joined(self._load, self._counts, self._like, self._convert, rows)

    def __getitem__(self, index) -> np.ndarray:
        index = _positions(index, len(self))
        if index.ndim == 0:
            return self[index[None]][0]
        rows = index if self._rows is None else self._rows[index]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for piece, here, within in _by_piece(rows, self._ends):
            found[here] = self._convert(self._load(piece)[within])
        return found

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), _SHARD):
            yield from self[start : start + _SHARD]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def tolist(self) -> list:
        return self[:].tolist()


def _positions(index, n: int) -> np.ndarray:
    """An index of any kind as positions."""
    if isinstance(index, slice):
        return np.arange(*index.indices(n))
    index = np.asarray(index)
    if index.dtype == bool:
        return np.flatnonzero(index)
    if index.size and not -n <= index.min() <= index.max() < n:
        raise IndexError(f"an index beyond the {n} items")
    return index.astype(np.int64) % n


def _by_piece(rows: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields pieces, which of the rows they have, and where in the piece these are."""
    piece = np.searchsorted(ends, rows, side="right")
    order = np.argsort(piece, kind="stable")
    found, starts = np.unique(piece[order], return_index=True)
    for number, here in zip(found, np.split(order, starts)[1:], strict=True):
        yield int(number), here, rows[here] - (ends[number - 1] if number else 0)


def _path(folder: Path, shard: int, ending: str) -> Path:
    return folder / f"{shard:07d}.{ending}"


def _pixels(folder: Path, shard: int) -> np.ndarray:
    path = _path(folder, shard, "npy")
    return _mapped_pixels(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(128)  # each holds a file open
def _mapped_pixels(path: Path, changed: int) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _table(folder: Path, shard: int):
    path = _path(folder, shard, "arrow")
    return _mapped_table(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(64)
def _mapped_table(path: Path, changed: int):
    pa = _arrow()
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()


# Functions of this module, since a detector that holds them may be pickled.
def _name(value: bytes) -> str:
    return os.fsdecode(value)


def _content(value: bytes | None) -> bytes:
    return value or b""


class _Column:
    """A column of a shard, indexed by positions."""

    def __init__(self, shards: Sequence["_Shard"], name: str, decode: Callable, piece: int):
        shard = shards[piece]
        self._column, self._decode = _table(shard.folder, shard.number)[name], decode

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        found = np.empty(len(index), object)
        for at, value in enumerate(self._column.take(index).to_pylist()):
            found[at] = self._decode(value)
        return found


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
    return os.path.isfile(os.path.join(folder, ABOUT)) and "bank" in _about(Path(folder))


def _about(folder: Path) -> dict:
    try:
        found = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def open_bank(
    folder: str | os.PathLike,
    side: int | None = None,
    fit: str | None = None,
    colour: bool | None = None,
) -> reading.Collection:
    """Opens a bank that :func:`write`, :func:`write_arrays` or :func:`join` made.

    Args:
      folder: of the bank.
      side, fit: what the bank must have been made with; default: anything.
      colour: as of :func:`e3jax.reading.read_files`.

    Returns:
      A collection whose ``bank`` has :class:`Joined` images and paths, which stay on disk.

    Raises:
      InputError: it is no bank, unfinished, damaged, or made with another side or fit.
    """
    return _open(_members(folder), side, fit, colour)


def join(folder: str | os.PathLike, folders: Sequence[str | os.PathLike]) -> reading.Collection:
    """Makes a bank of several banks, which stay where they are: nothing is copied.

    Args:
      folder: of the new bank.
      folders: of the others, in the order that their images take; of different files.

    Raises:
      InputError: they differ in how their images were made, or a file is in two of them; or see
        :func:`open_bank` and :func:`write`.
    """
    folder = Path(folder).absolute()
    members = list(dict.fromkeys(member for each in folders for member in _members(each)))
    if folder in members:
        raise InputError(f"{folder} is one of the banks to join: name a new folder")
    found = _open(members)
    if found.bank.ids.dtype == object:
        _check_different(found.bank.ids)
    settings = {"bank": _FORMAT, "banks": list(map(str, members))}
    with _begun(folder, settings):
        files.write_text(folder / ABOUT, json.dumps(settings | {"finished": True}))
    return found


def _check_different(paths: Joined) -> None:
    """Raises an InputError if a path occurs twice. Of each only a digest of 8 bytes is held."""
    digests = np.fromiter((hash(path) for path in paths), np.int64, len(paths))
    ordered = np.sort(digests)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    times = collections.Counter(paths[np.isin(digests, twice)])
    if again := [path for path in times if times[path] > 1]:
        raise InputError(f"{again[0]} is in two of the banks: join banks of different files")


def _members(folder: str | os.PathLike) -> list[Path]:
    """The banks that a bank was joined of; else the bank itself."""
    folder = Path(folder).absolute()
    return [Path(member) for member in _about(folder).get("banks", [folder])]


class _Shard(NamedTuple):
    """A shard of a bank: its number, and how many images of how many channels it has."""

    folder: Path
    number: int
    count: int
    channels: int


def _open(
    folders: Sequence[Path],
    side: int | None = None,
    fit: str | None = None,
    colour: bool | None = None,
) -> reading.Collection:
    """Opens banks as one collection, see :func:`open_bank`."""
    abouts = [_checked(folder, side, fit) for folder in folders]
    about = _common(folders, abouts)
    found = [pair for pairs in map(_shards, folders, abouts) for pair in pairs]
    digests = np.concatenate([np.empty(0, np.uint64), *(digest for _, digest in found)])
    shards = [shard for shard, _ in found]
    counts, channels = [s.count for s in shards], max((s.channels for s in shards), default=1)
    channels = channels if colour is None else 3 if colour else 1
    like = np.empty((0, about["side"], about["side"], channels), np.uint8)
    convert = functools.partial(reading.in_colours, channels=channels)
    images = Joined(functools.partial(_piece, shards), counts, like, convert)

    def column(name: str, decode: Callable) -> Joined:
        load = functools.partial(_Column, shards, name, decode)
        return Joined(load, counts, np.empty(0, object))

    ids = column("path", _name) if about["has_paths"] else np.arange(len(images))
    unreadable = [reading.Unreadable(*pair) for each in abouts for pair in each["unreadable"]]
    unreadable += [reading.NotLookedAt(*pair) for each in abouts for pair in each["not_looked_at"]]
    bank, thumbnails = ImageBank(images, ids), column("thumbnail", _content)
    return reading.Collection(bank, unreadable, thumbnails, about["scale"], digests)


def _checked(folder: Path, side: int | None, fit: str | None) -> dict:
    """What a bank says about itself, if it is finished and of this side and fit."""
    about = _about(folder)
    if about.get("bank") != _FORMAT or "banks" in about:
        raise InputError(f"{folder} is no bank of this version: make one with e3jax bank")
    if not about["finished"]:
        raise InputError(f"{folder} is unfinished: {_AGAIN}")
    for name, wanted in (("image size", side), ("resize", fit)):
        has = about["side" if name == "image size" else "fit"]
        if None not in (wanted, has) and wanted != has:
            raise InputError(
                f"{folder} was made with {name} {has}, not {wanted}: use that, or make another bank"
            )
    return about | {"scale": FileScale(*(pair and tuple(pair) for pair in about["scale"]))}


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


def _shards(folder: Path, about: dict) -> Iterator[tuple[_Shard, np.ndarray]]:
    """The shards of a bank, each whole, and digests of their images."""
    for number, (count, channels) in enumerate(
        zip(about["counts"], about["channels"], strict=True)
    ):
        try:
            digest = _table(folder, number)["digest"].to_numpy()[:count]
            whole = _pixels(folder, number).shape == (count, *2 * [about["side"]], channels)
        except _DAMAGED:
            whole = False
        if not whole:
            raise InputError(
                f"{folder} is damaged, shard {number} is missing or not whole: {_AGAIN}"
            )
        yield _Shard(folder, number, count, channels), digest


def _piece(shards: Sequence[_Shard], piece: int) -> np.ndarray:
    return _pixels(shards[piece].folder, shards[piece].number)


# --- Writing a bank ----------------------------------------------------------------------------


def write(
    folder: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    side: int = 32,
    fit: str = "squash",
    left_out: Sequence[reading.Unreadable] = (),
    on_file: Callable[[int], None] = lambda done: None,
    each: engines.Each = engines.processes,
) -> reading.Collection:
    """Reads image files into a bank, with thumbnails, see :func:`e3jax.reading.read_files`.

    What a call that was stopped had finished stays, and so does what an earlier bank in the folder
    has of files that did not change since.

    Args:
      folder: of the bank.
      paths: image files.
      side, fit: as of ``read_files``.
      left_out: what else the bank is to list as left out.
      on_file: called with the number of files done.
      each: decodes, see :mod:`e3jax.engines`; decoders hold Python, so not in threads.

    Raises:
      InputError: the folder has other files, another command is at work there, or fewer than two
        files can be read.
      OSError: it cannot be written.
    """
    folder = Path(folder).absolute()
    settings = {"bank": _FORMAT, "side": side, "fit": fit, "has_paths": True}
    with _begun(folder, settings):
        starts = range(0, len(paths), _SHARD)
        _forget_from(folder, len(starts))
        shards = [(i, paths[start : start + _SHARD]) for i, start in enumerate(starts)]
        kept = [number for number, some in shards if _is_current(folder, number, some)]
        done = sum(len(shards[number][1]) for number in kept)
        on_file(done)
        missing = [shards[i] for i in range(len(shards)) if i not in set(kept)]
        pieces = (
            (some[start : start + _TASK], side, fit)
            for _, some in missing
            for start in range(0, len(some), _TASK)
        )
        results = iter(each(_read, pieces))
        for number, some in missing:
            rows = []
            while len(rows) < len(some):
                rows += next(results)
                on_file(done + len(rows))
            done += len(some)
            _write_shard(folder, number, rows, side)
        for _ in results:  # none; else joblib would take the end for a stop
            pass
        scale = _develop(folder, len(shards))
        _finish(folder, settings, len(shards), left_out, scale)
    found = open_bank(folder)
    if len(found.bank.images) < 2:
        raise InputError(
            f"{len(found.bank.images)} of {len(paths)} files are readable images, expected at "
            "least 2: an outlier needs other images to differ from"
        )
    return found


def write_arrays(folder: str | os.PathLike, arrays: Iterable[np.ndarray]) -> reading.Collection:
    """Writes images uint8 [n, h, w, c] that come in arrays of any lengths into a bank.

    Raises:
      InputError: no image, arrays of different sides, or see :func:`write`.
    """
    folder, number = Path(folder).absolute(), 0
    banks = (reading.in_colours(as_bank(array, least=0).images, 3) for array in arrays)
    images = (_Row(b"", 0, 0, image) for bank in banks for image in bank)
    if (first := next(images, None)) is None:
        raise InputError("no arrays of images, expected at least one: there is nothing to write")
    settings = {"bank": _FORMAT, "side": len(first.pixels), "fit": None, "has_paths": False}
    with _begun(folder, settings):
        _forget_from(folder, 0)
        images = itertools.chain([first], images)
        while rows := list(itertools.islice(images, _SHARD)):
            if len({len(row.pixels) for row in rows} | {settings["side"]}) > 1:
                raise InputError("images of several sides, expected one: resize them")
            _write_shard(folder, number, rows, settings["side"])
            number += 1
        _finish(folder, settings, number, (), FileScale())
    return open_bank(folder)


class _Row(NamedTuple):
    """A file as it was read: pixels uint8 [h, w, 3], a `Deep`, or the reason why not."""

    path: bytes
    size: int
    changed: int
    pixels: Any
    thumbnail: bytes = b""


def _read(task: tuple[Sequence[str | os.PathLike], int, str]) -> list[_Row]:
    """Reads a few files, in a process of its own or on another machine."""
    (paths, side, fit), rows = task, []
    states = [_state(path) for path in paths]  # before: what changes meanwhile is read again
    results = reading.read_each(paths, side, fit, thumbnails=_THUMBNAIL, threads=1)
    for path, state, result in zip(paths, states, results, strict=True):
        about = (os.fsencode(path), *state)
        if isinstance(result, Exception):
            rows.append(_Row(*about, reading.reason(result)))
        else:
            pixels, thumbnail = result
            rows.append(_Row(*about, pixels, b"" if isinstance(thumbnail, Deep) else thumbnail))
    return rows


def _state(path: str | os.PathLike) -> tuple[int, int]:
    """Size and time of the last change of a file, which tell whether it is another one now."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _is_current(folder: Path, shard: int, paths: Sequence[str | os.PathLike]) -> bool:
    """Whether a shard has these files, as they are."""
    try:
        table, n = _table(folder, shard), len(_pixels(folder, shard))
    except _DAMAGED:
        return False
    known = zip(*(table[name].to_pylist() for name in ("path", "size", "changed")), strict=True)
    now = {(os.fsencode(path), *_state(path)) for path in paths}
    is_whole = n == table["reason"].null_count and table.num_rows == len(paths)
    return is_whole and set(known) == now


@contextlib.contextmanager
def _begun(folder: Path, settings: dict) -> Iterator[None]:
    """A folder that becomes a bank with these settings, and that no other command changes."""
    if folder.is_dir() and not is_bank(folder) and any(folder.iterdir()):
        raise InputError(f"{folder} has other files, expected a new folder for the bank: name one")
    _arrow()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(folder, "bank"):
        if not settings.items() <= _about(folder).items():
            _forget_from(folder, 0)
        files.write_text(folder / ABOUT, json.dumps(settings | {"finished": False}))
        yield


def _forget_from(folder: Path, shard: int) -> None:
    """Deletes the shards of an earlier bank from a number on, tables first."""
    for ending in ("arrow", "npy", "npz"):
        for path in folder.glob(f"{'[0-9]' * 7}.{ending}"):
            if int(path.stem) >= shard:
                path.unlink()


def _write_shard(folder: Path, shard: int, rows: Iterable[_Row], side: int) -> None:
    """Writes a shard, images of more than 8 bits black; their values wait in a file beside it."""
    rows = list(rows)
    good = [row for row in rows if not isinstance(row.pixels, str)]
    deep = {i: row.pixels for i, row in enumerate(good) if isinstance(row.pixels, Deep)}
    black = np.zeros((side, side, 3), np.uint8)
    pixels = [black if i in deep else row.pixels for i, row in enumerate(good)]
    values = {f"{i}.{name}": value for i, d in deep.items() for name, value in d._asdict().items()}
    _path(folder, shard, "npz").unlink(missing_ok=True)
    if deep:
        write = functools.partial(np.savez, **values)
        files.write_atomically(_path(folder, shard, "npz"), write)
    good += [row for row in rows if isinstance(row.pixels, str)]
    _write_pixels(folder, shard, np.stack(pixels) if pixels else black[None][:0], good)


def _write_pixels(folder: Path, shard: int, pixels: np.ndarray, rows: Sequence[_Row]) -> None:
    """Writes the two files of a shard, whose readable rows come first."""
    if pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    _path(folder, shard, "arrow").unlink(missing_ok=True)
    # Not np.save: it goes through the file's descriptor, past write_atomically's buffer.
    files.write_atomically(
        _path(folder, shard, "npy"), lambda file: np.lib.format.write_array(file, pixels)
    )
    pa = _arrow()
    digests = [*copies.digests(pixels)] + [0] * (len(rows) - len(pixels))
    table = pa.table(
        {
            "path": pa.array([row.path for row in rows], pa.binary()),
            "size": pa.array([row.size for row in rows], pa.int64()),
            "changed": pa.array([row.changed for row in rows], pa.int64()),
            "reason": [row.pixels if isinstance(row.pixels, str) else None for row in rows],
            "digest": pa.array(digests, pa.uint64()),
            "thumbnail": pa.array([row.thumbnail or None for row in rows], pa.binary()),
        }
    )

    def write(file) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    files.write_atomically(_path(folder, shard, "arrow"), write)


def _develop(folder: Path, shards: int) -> FileScale:
    """Gives images of more than 8 bits the scale that all of the collection share."""
    waiting = {}
    for shard in range(shards):
        path = _path(folder, shard, "npz")
        if path.exists():
            with np.load(path) as arrays:
                found = {name: arrays[name][()] for name in arrays}
            names = {name.split(".")[0] for name in found}
            of = {i: Deep(*(found[f"{i}.{field}"] for field in Deep._fields)) for i in names}
            waiting[shard] = {int(i): deep for i, deep in of.items()}
    scale = decoding.common_scale([deep for some in waiting.values() for deep in some.values()])
    for shard, some in waiting.items():
        table = _table(folder, shard).to_pylist()
        rows = [
            _Row(row["path"], row["size"], row["changed"], row["reason"], row["thumbnail"] or b"")
            for row in table
        ]
        pixels = reading.in_colours(_pixels(folder, shard), 3).copy()
        for i, deep in some.items():
            pixels[i] = deep.to_uint8(scale)
        _write_pixels(folder, shard, pixels, rows)
    return scale


def _finish(folder: Path, settings: dict, shards: int, left_out, scale: FileScale) -> None:
    counts, channels, unreadable = [], [], []
    for shard in range(shards):
        pixels = _pixels(folder, shard)
        counts.append(len(pixels))
        channels.append(pixels.shape[-1])
        bad = _table(folder, shard).slice(len(pixels)).select(["path", "reason"]).to_pylist()
        unreadable += [(os.fsdecode(row["path"]), row["reason"]) for row in bad]
    notes = [entry for entry in left_out if isinstance(entry, reading.NotLookedAt)]
    unreadable += [entry for entry in left_out if entry not in notes]
    about = settings | {"finished": True, "counts": counts, "channels": channels}
    about |= {"unreadable": unreadable, "not_looked_at": notes, "scale": scale}
    files.write_text(folder / ABOUT, json.dumps(about))

"""Files, arrays and other banks become banks, which survive a stop at any moment."""

import collections
import contextlib
import itertools
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3jax import images
from e3jax.collection import copies, finding, reading
from e3jax.collection.bank import opening, storage
from e3jax.collection.bank.storage import About, Shard
from e3jax.collection.collection import Collection, Skipped, Unreadable, too_few
from e3jax.collection.lazy import LazyArray
from e3jax.collection.reader import Reader
from e3jax.collection.threads import reason
from e3jax.errors import InputError
from e3jax.images.high_depth import HighDepthImage, ValueRange, common_range
from e3jax.work import files, locks
from e3jax.work.files import FileState
from e3jax.work.progress import Progress, no_progress

_SHARD, _BLOCK = 4096, 256  # files of a shard, and those that are decoded in one call
_THUMBNAIL = 96
_PARTIAL = re.compile(r"\.(bank\.json|\d{7}\.arrow)\.e3jax\.partial")


def write(
    folder: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    reader: Reader = Reader(),
    left_out: Sequence[Unreadable] = (),
    on_progress: Progress = no_progress,
    executor: Executor | None = None,
) -> Collection:
    """Reads image files into a bank, with thumbnails, see :func:`e3jax.collection.read`.

    What a call that was stopped had finished stays, and so does what an earlier bank in the folder
    has of files that did not change since. Files that do not exist any more leave the bank.

    Args:
      folder: of the bank.
      paths: image files; one that comes twice, however its folder is spelled, is read once.
      reader: of the side and resize of the images.
      left_out: what else the bank is to list as left out.
      on_progress: called as ("reading", files done, of how many).
      executor: decodes; default: processes, one per core. Decoders hold Python, so not threads.

    Raises:
      InputError: the folder has other files, or a finished bank of other files or settings; another
        command is at work there; or fewer than two files can be read.
      OSError: it cannot be written.
    """
    reader.check()
    folder, listed = Path(folder).resolve(), _each_once(paths)
    about = About(side=reader.side, resize=reader.resize, place=str(folder))
    with _begun(folder, about) as before:
        planned = _planned(folder, before, listed)
        file_range = before.file_range
        is_same = before.finished and before.shards == len(planned)
        if is_same and all(shard.names == [] for shard in planned):
            on_progress("reading", len(listed), len(listed))
        else:
            # Until all have their new names, those of before follow the bank from where it was.
            about._replace(place=before.place or about.place).write(folder)
            storage.remove_shards(folder, len(planned))
            _fill(planned, reader, on_progress, executor)
            file_range = _develop(planned)
        _finish(folder, about._replace(file_range=file_range), len(planned), left_out)
    collection = opening.open_bank(folder)
    if len(collection.images) < 2:
        raise too_few(len(collection.images), len(listed), 2, collection.unreadable)
    return collection


def write_arrays(folder: str | os.PathLike, arrays: Iterable[np.ndarray]) -> Collection:
    """Writes images uint8 [n, h, w, c] that come in arrays of any lengths into a bank.

    After a stop the same call goes on. A finished bank is left as it is, if it has these images.

    Raises:
      InputError: no image, arrays of different sides, a finished bank of others, or see
        :func:`write`.
    """
    folder, images_of = Path(folder).resolve(), _images_of_shards(arrays)
    if (first := next(images_of, None)) is None:
        raise InputError("no arrays of images, expected at least one: there is nothing to write")
    others = InputError(f"{folder} is a finished bank of other arrays: name another folder")
    about, count = About(side=first.shape[1], has_paths=False, place=str(folder)), 0
    with _begun(folder, about) as before:
        for pixels in itertools.chain([first], images_of):
            path = storage.shard_path(folder, count)
            shard = storage.load(path)
            if shard is None or not np.array_equal(shard.digests(), copies.digests(pixels)):
                if before.finished and (shard is not None or count >= before.shards):
                    raise others
                storage.check_shard(path)
                about.write(folder)  # which is unfinished
                storage.write_shard(path, [{"pixels": i} for i in pixels], about.side)
            count += 1
        if count < before.shards:
            raise others
        storage.remove_shards(folder, count)
        _finish(folder, about, count)
    return opening.open_bank(folder)


def join(folder: str | os.PathLike, folders: Sequence[str | os.PathLike]) -> Collection:
    """Makes a bank of several banks, which stay where they are: nothing is copied.

    Args:
      folder: of the new bank; or of an earlier one of the same banks, or of a part of them.
      folders: of the others, in the order that their images take; of different files.

    Raises:
      InputError: they differ in how their images were made, or a file is in two of them; the new
        bank would be in one of them, or replace another one; or see :func:`open_bank` and
        :func:`write`.
    """
    folder, place = Path(folder).resolve(), finding.place_of
    each_once = {place(bank): (bank, a) for each in folders for bank, a in opening.members(each)}
    banks = {*map(place, folders), *each_once}
    if banks & set(map(place, (folder, *folder.parents))):
        raise InputError(f"{folder} is one of the banks to join, or in one: name a new folder")
    members = list(each_once.values())
    joined = opening.opened(members)
    if isinstance(joined.ids, LazyArray):
        _check_different(joined.ids)
    about = About(place=str(folder), banks=[str(member) for member, _ in members])
    with _begun(folder, about) as before:
        earlier = opening.members(folder) if before.banks else ()
        others = (member for member, _ in earlier if place(member) not in banks)
        _check_same(folder, "banks", filter(storage.is_bank, others))
        about._replace(finished=True).write(folder)
    return joined


# --- What may be written -----------------------------------------------------------------------


@contextlib.contextmanager
def _begun(folder: Path, about: About) -> Iterator[About]:
    """A folder in which a bank may be made, and no other command does so meanwhile.

    Yields:
      What an earlier bank there says, which is of this kind; an empty About if there is none.

    Raises:
      InputError: see :func:`write`.
    """
    _check_folder(folder)  # first, as a lock in a folder of pictures is a file there
    storage.arrow()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(folder, "bank"):
        _check_folder(folder)
        for path in folder.glob(".*"):
            if _PARTIAL.fullmatch(path.name) and _is_plain(path):
                path.unlink()
        before = storage.about(folder)
        if before.kind != about.kind:
            if before.finished:
                raise InputError(
                    f"{folder} is a finished bank {before.kind}, not {about.kind}: name another "
                    "folder"
                )
            storage.remove_shards(folder)
            before = About()
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
    if others and not storage.is_bank(folder):
        raise InputError(f"{folder} has other files, expected a new folder for the bank: name one")


def _check_same(folder: Path, what: str, others: Iterable[str | os.PathLike]) -> None:
    """Raises an InputError if there are others that a finished bank has, and that are not given."""
    if (other := next(iter(others), None)) is not None:
        raise InputError(
            f"{folder} is a finished bank of other {what}, e.g. {files.printable(other)}: name "
            "another folder"
        )


def _check_different(paths: LazyArray) -> None:
    """Raises an InputError if a file occurs twice. Of each only a digest of 8 bytes is held."""
    identity = finding.identities()
    digests = np.fromiter((hash(identity(path)) for path in paths), np.int64, len(paths))
    ordered = np.sort(digests)
    twice = paths[np.isin(digests, ordered[1:][ordered[1:] == ordered[:-1]])]
    times = collections.Counter(map(identity, twice))
    if again := [path for path in twice if times[identity(path)] > 1]:
        raise InputError(f"{again[0]} is in two of the banks: join banks of different files")


# --- What is written ---------------------------------------------------------------------------


def _each_once(paths: Iterable[str | os.PathLike]) -> dict[tuple, str]:
    """Absolute paths by what their files are, each once, however its folder is spelled."""
    identity, here, each_once = finding.identities(), os.getcwd(), {}
    for path in paths:
        path = os.path.join(here, os.fsdecode(path))
        each_once.setdefault(identity(path), path)
    return each_once


def _images_of_shards(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Images of arrays, uint8 [m, h, w, 3], as many as a shard has.

    Raises:
      InputError: they are of several sides.
    """
    checked = (reading.in_colours(images.checked(array, least=0), 3) for array in arrays)
    pictures, sides = itertools.chain.from_iterable(checked), set()
    while shard := list(itertools.islice(pictures, _SHARD)):
        sides |= {len(image) for image in shard}
        if len(sides) > 1:
            raise InputError("images of several sides, expected one: resize them")
        yield np.stack(shard)


class _Planned(NamedTuple):
    """A shard that a bank is to have.

    Attributes:
      path: of the shard.
      files: what it is made of.
      names: what the files of its rows are to be called; [] as they are; None if they are to be
        read.
    """

    path: Path
    files: Sequence[str]
    names: list[str] | None


def _planned(folder: Path, before: About, listed: dict[tuple, str]) -> list[_Planned]:
    """The shards for files, see `_each_once`.

    Raises:
      InputError: a finished bank has an image whose file exists and is not listed; or a shard
        would replace another program's file.
    """
    identity, paths, planned = finding.identities(), list(listed.values()), []
    renamed, _ = opening.names_now(folder, before)
    for number in range(max(math.ceil(len(paths) / _SHARD), before.shards)):
        path = storage.shard_path(folder, number)
        shard = storage.load(path, renamed)
        held = [] if shard is None else shard.paths().tolist()
        names = [listed.get(identity(file), "") for file in held]
        if before.finished and shard is not None:
            images = zip(held[: shard.count], names, strict=False)
            others = (file for file, name in images if not name and os.path.exists(file))
            _check_same(folder, "files", others)
        if expected := paths[number * _SHARD : (number + 1) * _SHARD]:
            is_current = shard is not None and _is_current(shard, names, expected)
            if not is_current:
                storage.check_shard(path)
            elif names == Shard(path).paths().tolist():
                names = []
            planned.append(_Planned(path, expected, names if is_current else None))
    return planned


def _is_current(shard: Shard, names: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether a shard, whose files have these names now, has the files of paths as they are."""
    if sorted(names) != sorted(paths):
        return False
    states = map(FileState._make, shard.states())
    return all(map(FileState.is_same, states, map(files.state_of, names)))


def _fill(
    planned: Sequence[_Planned], reader: Reader, on_progress: Progress, executor: Executor | None
) -> None:
    """Renames files of shards, and makes those that are to be read, block by block."""
    from e3jax.devices import engines  # which imports JAX

    for path, _, names in planned:
        if names:
            paths = map(os.fsencode, names)
            rows = [a | {"path": b} for a, b in zip(Shard(path).rows(), paths, strict=True)]
            storage.write_shard(path, rows, reader.side)
    missing = [shard for shard in planned if shard.names is None]
    total = sum(len(shard.files) for shard in planned)
    done = total - sum(len(shard.files) for shard in missing)
    on_progress("reading", done, total)
    blocks = (
        (shard.files[start : start + _BLOCK], reader)
        for shard in missing
        for start in range(0, len(shard.files), _BLOCK)
    )
    executor = engines.local() if executor is None else executor
    with contextlib.closing(engines.ordered_map(executor, _read_block, blocks)) as results:
        for shard in missing:
            rows = []
            while len(rows) < len(shard.files):
                rows += next(results)
                on_progress("reading", done + len(rows), total)
            done += len(rows)
            storage.write_shard(shard.path, rows, reader.side)


def _read_block(block: tuple[Sequence[str], Reader]) -> list[dict]:
    """Reads a few files, in a process of its own or on another machine; columns by their names."""
    paths, reader = block
    states = list(map(files.state_of, paths))  # before: what changes meanwhile is read again
    results = reading.read_each(paths, reader, thumbnails=_THUMBNAIL, threads=1)
    rows = []
    for path, state, result in zip(paths, states, results, strict=True):
        row = {"path": os.fsencode(path)} | state._asdict()
        rows.append(row)
        if isinstance(result, Exception):
            row["reason"] = reason(result)
            continue
        row["facts"] = result.facts
        if isinstance(result.pixels, HighDepthImage):
            row["values"] = storage.packed(result.pixels)
        else:
            row["pixels"], row["thumbnail"] = result.pixels, result.thumbnail
    return rows


def _develop(planned: Sequence[_Planned]) -> ValueRange:
    """Gives images of more than 8 bits the range that all of the collection share.

    It goes through the shards twice, since the values of all of them may not fit into memory.
    """
    summaries = [
        image._replace(values=None, alpha=None, inside=None)
        for shard in planned
        for _, image in Shard(shard.path).high_depth()
    ]
    file_range = common_range(summaries)
    for path, *_ in planned if summaries else ():
        shard = Shard(path)
        developed = {row: image.to_uint8(file_range) for row, image in shard.high_depth()}
        if any((shard.pixels()[row] != image).any() for row, image in developed.items()):
            rows = shard.rows()
            for row, image in developed.items():
                rows[row]["pixels"] = image
            storage.write_shard(path, rows, shard.side)
    return file_range


def _finish(folder: Path, about: About, shards: int, left_out: Iterable[Unreadable] = ()) -> None:
    """Says of a bank that it is whole, and what else was left out."""
    whole = about._replace(place=str(folder), finished=True, shards=shards)
    whole._replace(
        unreadable=[entry for entry in left_out if not isinstance(entry, Skipped)],
        skipped=[entry for entry in left_out if isinstance(entry, Skipped)],
    ).write(folder)

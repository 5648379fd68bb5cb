"""Quarantine: moves the most outlying images aside and back; deletes and overwrites nothing.

A command may be killed at any moment. The list of moves is written before any file is moved; every
file is whole at its old or its new place at any time (at both, for a moment, if these are on two
file systems); and the next command on the same quarantine clears up. A lock keeps a second one out.
"""

import contextlib
import ctypes
import dataclasses
import errno
import filecmp
import json
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from e3jax import files, locks
from e3jax.errors import InputError

FOLDER, MANIFEST = "quarantine", "manifest.json"
# Endings of files about a picture: ratings and edits, a cloud's description, Apple's edits.
SIDECARS = (".xmp", ".json", ".aae")


class Moved(NamedTuple):
    """What a command moved, by the places outside quarantine.

    pictures: the selected files.
    sidecars: the files about them that went along.
    shared:   sidecars that stayed, because a picture that stays shares them.
    """

    pictures: list[str]
    sidecars: list[str]
    shared: Sequence[str] = ()


class PartlyMoved(OSError):
    """Some files were moved and others were not; ``moved`` lists the places they were moved from.

    The sentence names the first of the others, the reason, and what to do.
    """

    def __init__(self, sentence: str, moved: Sequence[str] = ()):
        super().__init__(sentence)
        self.moved = moved


def move_aside(report: str | os.PathLike, paths: Iterable[str]) -> Moved:
    """Moves files into the report's quarantine folder, numbered, with a list of where they were.

    Files that are there already are left. Sidecars go along with the last of their pictures.

    Raises:
      InputError: a file is missing or no file, another one would be overwritten, another command is
        at work, or the first file cannot be moved. Nothing was moved.
      PartlyMoved: a file cannot be moved after others were; :func:`undo` moves those back.
      OSError: the list cannot be written. Nothing was moved.
    """
    paths = list(dict.fromkeys(str(Path(path).absolute()) for path in paths))
    with _opened(Path(report).absolute() / FOLDER) as quarantine:
        aside = {move["from"] for move in quarantine.moves if quarantine.holds(move)}
        _check_files(paths, aside)
        along, shared = _sidecars(paths, aside)
        new = []
        for path in paths:
            new += [quarantine.add(path)] if path not in aside else []
            new += [quarantine.add(sidecar, sidecar=True) for sidecar in along.get(path, [])]
        pairs = [(move["from"], quarantine.place(move)) for move in new]
        _check_free([target for _, target in pairs])
        quarantine.save()  # first: whatever stops the moves below, undo knows them
        _move_all(pairs, quarantine.partial, "quarantine --undo moves them back")
    return _moved(new)._replace(shared=shared)


def undo(report: str | os.PathLike) -> Moved:
    """Moves all files back to where they were, also if the folders were renamed in the meantime.

    A file whose folder is gone goes to the folder at the same place relative to the quarantine.

    Args:
      report: the folder that holds the quarantine folder, or the quarantine folder itself.

    Raises:
      InputError: nothing is in quarantine, a file's folder is gone, another file is where one was,
        another command is at work, or the first file cannot be moved. Nothing was moved.
      PartlyMoved: a file cannot be moved after others were, or is not in quarantine any more.
    """
    report = Path(report).absolute()
    folder = report if is_quarantine(report) else report / FOLDER
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: nothing to undo")
    with _opened(folder) as quarantine:
        back = [move for move in quarantine.moves if quarantine.holds(move)]
        gone = [quarantine.place(move) for move in quarantine.moves if not quarantine.holds(move)]
        if gone and not back and not quarantine.returned:
            raise InputError(
                f"{folder} holds none of the {len(gone)} files that quarantine moved there: put "
                "them back into it, or delete it if nobody needs them (nothing was moved)"
            )
        if not back and not quarantine.returned:
            raise InputError(f"{folder} holds nothing that quarantine moved: nothing to undo")
        pairs = [(quarantine.place(move), _existing_home(quarantine, move)) for move in back]
        _check_free([home for _, home in pairs])
        _move_all(pairs, quarantine.partial, "remove the cause and run --undo again for the rest")
        back += quarantine.returned
    moved = _moved(back)
    if gone:
        raise PartlyMoved(
            f"{len(back)} files were moved back, {len(gone)} are not in quarantine any more, e.g. "
            f"{files.printable(gone[0])}: put them there again and run --undo, or delete {folder}",
            moved.pictures + moved.sidecars,
        )
    return moved


def is_quarantine(folder: str | os.PathLike) -> bool:
    """Whether a folder, whatever its name, holds the list of what quarantine moved there."""
    path = Path(folder, MANIFEST)
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with open(path, "rb") as file:
            start = file.read(256)
            if re.match(rb'\s*\{\s*"e3jax"\s*:\s*"quarantine"', start):
                return True
            # The form of the first edition, a plain list; others may have such a name and form.
            if not re.match(rb'\s*\[\s*\{\s*"from"\s*:', start):
                return False
            return all(move.keys() == {"from", "to"} for move in json.loads(start + file.read()))
    except (OSError, ValueError, AttributeError):
        return False


# --- The list ----------------------------------------------------------------------------------


@dataclasses.dataclass
class _Quarantine:
    """A quarantine folder and its list.

    Attributes:
      folder: where files are moved to, absolute.
      id: distinguishes partial files of this quarantine from those of others.
      count: how many files were numbered so far.
      moves: per file "from", its absolute place before; "near", the same relative to the folder;
        "to", its name in the folder; "sidecar", whether it went along with a picture.
      added: names in the folder that this command gave.
      returned: moves that `settle` ended by keeping the file where it was before.
    """

    folder: Path
    id: str
    count: int
    moves: list[dict]
    added: set[str] = dataclasses.field(default_factory=set)
    returned: list[dict] = dataclasses.field(default_factory=list)

    @property
    def partial(self) -> str:
        """The name of an unfinished copy, in whatever folder; hidden, so that no walk finds it."""
        return f".e3jax-{self.id}.partial"

    def place(self, move: dict) -> str:
        return os.path.join(self.folder, move["to"])

    def holds(self, move: dict) -> bool:
        return os.path.lexists(self.place(move))

    def homes(self, move: dict) -> list[str]:
        """Where a file may go back to, best first."""
        return [move["from"], os.path.join(self.folder, move["near"])]

    def home(self, move: dict) -> str | None:
        return next((p for p in self.homes(move) if os.path.isdir(os.path.dirname(p))), None)

    def add(self, path: str, sidecar: bool = False) -> dict:
        """Numbers a file, since files of one name may come from several folders, and lists it."""
        self.count += 1
        name = _name(self.folder, self.count, os.path.basename(path))
        near = _relative(path, self.folder)
        self.added.add(name)
        self.moves.append({"from": path, "near": near, "to": name, "sidecar": sidecar})
        return self.moves[-1]

    def save(self) -> None:
        """Writes the list, or removes it if it is empty."""
        if not self.moves:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            return
        content = {"e3jax": "quarantine", "id": self.id, "count": self.count, "moves": self.moves}
        files.write_text(self.folder / MANIFEST, json.dumps(content, indent=1))

    def settle(self) -> None:
        """Clears up what an interrupted command left, so that the list is what is in the folder.

        Unfinished copies are removed. A file at both places is whole at both: it stays at the first
        one. A file that is back, or was never moved, leaves the list; one that was taken out of
        quarantine by hand stays on it.
        """
        folders = {os.path.dirname(home) for move in self.moves for home in self.homes(move)}
        unfinished = [os.path.join(folder, self.partial) for folder in (self.folder, *folders)]
        for path in (*unfinished, *self.folder.glob(f"{MANIFEST}.*.partial")):
            with contextlib.suppress(OSError):  # most do not exist
                os.unlink(path)
        listed, self.moves = self.moves, []
        for move in listed:
            place, home = self.place(move), self.home(move)
            held, back = self.holds(move), home is not None and os.path.lexists(home)
            if held and back and _same(place, home):
                os.unlink(place)
                self.returned.append(move)
                held = False
            # What this command gave a name and did not move never was in quarantine.
            if (held and not back) if move["to"] in self.added else (held or not back):
                self.moves.append(move)
        if len(self.moves) < len(listed):
            # On a full disk the longer list stays, which says nothing wrong about what is there.
            with contextlib.suppress(OSError):
                self.save()


def _read(folder: Path) -> _Quarantine:
    """Reads the list.

    Raises:
      InputError: it is damaged, or somebody else's.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return _Quarantine(folder, uuid.uuid4().hex, 0, [])
    try:
        if not is_quarantine(folder):
            raise ValueError("another program's")
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            content = {"id": "first", "count": len(content), "moves": content}
        moves = [_move_of(entry) for entry in content["moves"]]
        return _Quarantine(folder, content["id"], int(content["count"]), moves)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{files.printable(path)} is damaged or another program's: move the files back by hand "
            f"(nothing was moved)"
        ) from error


def _move_of(entry: dict) -> dict:
    """An entry of the list; the first edition's have absolute places in quarantine, and no more."""
    source, (folder, name) = os.fspath(entry["from"]), os.path.split(entry["to"])
    if not name.strip("."):
        raise ValueError("no name")
    near = os.fspath(entry["near"]) if "near" in entry else _relative(source, folder)
    return {"from": source, "near": near, "to": name, "sidecar": bool(entry.get("sidecar"))}


def _relative(path: str, folder: str | os.PathLike) -> str:
    """``path`` as seen from a folder; both may be behind links."""
    parent, name = os.path.split(path)
    try:
        parent = os.path.relpath(os.path.realpath(parent), os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return path
    return os.path.join(parent, name)


def _name(folder: Path, number: int, name: str) -> str:
    """A name that any file system takes, no longer than the folder's allows."""
    try:
        longest = max(os.pathconf(folder, "PC_NAME_MAX"), 60)  # 0: not known
    except (AttributeError, OSError, ValueError):
        longest = 255
    # What Windows and its file systems refuse, and bytes that are no UTF-8.
    stem, ending = os.path.splitext(re.sub(r'[\x00-\x1f\x7f<>:"\\|?*\ud800-\udfff]', "_", name))
    stem = f"{number:05d}-{stem}"
    while len(os.fsencode(stem + ending)) > longest and len(stem) > 6:
        stem = stem[:-1]
    return stem + ending


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[_Quarantine]:
    """A quarantine that no other command changes meanwhile, settled before and after."""
    with locks.held(folder, "quarantine"):
        quarantine = _read(folder)
        quarantine.settle()
        try:
            yield quarantine
        finally:
            with contextlib.suppress(OSError):  # the next command will
                quarantine.settle()


def _same(first: str, second: str) -> bool:
    """Whether two names are of one file, or of two with the same content."""
    stats = os.lstat(first), os.lstat(second)
    if os.path.samestat(*stats):
        return stats[0].st_nlink > 1  # else it is one name, reached through a linked folder
    if all(stat.S_ISLNK(s.st_mode) for s in stats):
        return os.readlink(first) == os.readlink(second)
    return all(stat.S_ISREG(s.st_mode) for s in stats) and filecmp.cmp(first, second, shallow=False)


# --- What is moved -----------------------------------------------------------------------------


def _moved(moves: Sequence[dict]) -> Moved:
    pictures, sidecars = ([m["from"] for m in moves if m["sidecar"] is s] for s in (False, True))
    return Moved(pictures, sidecars)


def _check_files(paths: Sequence[str], aside: set[str]) -> None:
    """Raises InputError unless each is aside, or a file that can be moved there."""
    in_quarantine = {folder: is_quarantine(folder) for folder in {*map(os.path.dirname, paths)}}
    for path in paths:
        there, why = os.path.lexists(path), None
        if path in aside:
            if there:
                why = "is a second file of that name, the first is in quarantine: rename it"
        elif not there:
            why = "is not there any more: rank the folder again"
        elif in_quarantine[os.path.dirname(path)]:
            why = "is in another quarantine: rank the folder again"
        elif not stat.S_ISLNK(mode := os.lstat(path).st_mode) and not stat.S_ISREG(mode):
            why = "is no file: rank the folder again"
        if why:
            raise InputError(f"{files.printable(path)} {why} (nothing was moved)")


def _check_free(paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise InputError(
                f"there is another file at {files.printable(path)}: move it away first (nothing "
                "was moved)"
            )


def _existing_home(quarantine: _Quarantine, move: dict) -> str:
    home = quarantine.home(move)
    if home is None:
        first, second = (os.path.normpath(os.path.dirname(p)) for p in quarantine.homes(move))
        raise InputError(
            f"{files.printable(os.path.basename(move['from']))} was in {files.printable(first)}, "
            f"and neither that folder nor {files.printable(second)} exists: make one of them, or "
            "move the photos back there (nothing was moved)"
        )
    return home


def _sidecars(paths: Sequence[str], aside: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The sidecars of pictures: a.jpg.xmp, a.jpg.anything.json or a.xmp, in any case.

    Args:
      paths: pictures that are moved, or were.
      aside: files whose places in quarantine are taken.

    Returns:
      {path: sidecars that go along with it}, and the sidecars of pictures of which not all move.
    """
    along, shared, by_folder = {}, [], {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    for folder, moving in by_folder.items():
        order = {name: number for number, name in enumerate(moving)}
        names = _files_in(folder)
        sidecars = sorted(n for n in names if n.lower().endswith(SIDECARS) and n not in order)
        by_name, by_stem = {}, {}
        for name in {*names, *moving}.difference(sidecars):
            by_name.setdefault(name.casefold(), []).append(name)
            by_stem.setdefault(_stem(name), []).append(name)
        for name in sidecars:
            stem, path = _stem(name), os.path.join(folder, name)
            owned_by = by_name.get(stem) or by_stem.get(stem) or by_name.get(_stem(stem), [])
            movers = [owner for owner in owned_by if owner in order]
            if movers and len(movers) == len(owned_by) and path not in aside:
                last = os.path.join(folder, max(movers, key=order.get))
                along.setdefault(last, []).append(path)
            elif movers:
                shared.append(path)
    return along, shared


def _stem(name: str) -> str:
    return os.path.splitext(name.casefold())[0]


def _files_in(folder: str) -> list[str]:
    """Names of files and links; none if the folder is gone, since its pictures are aside."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_symlink() or e.is_file(follow_symlinks=False)]
    return []


# --- Moving ------------------------------------------------------------------------------------


def _move_all(pairs: Sequence[tuple[str, str]], partial: str, advice: str) -> None:
    """Moves files, (from, to) each, until one cannot be moved."""
    for done, (source, target) in enumerate(pairs):
        try:
            _move(source, target, partial)
        except OSError as error:
            what = f"{files.printable(source)} cannot be moved: {error.strerror or error}"
            if not done:
                raise InputError(f"{what} (nothing was moved)") from error
            raise PartlyMoved(
                f"{what}; {done} of {len(pairs)} files were moved: {advice}",
                [source for source, _ in pairs[:done]],
            ) from error


def _move(source: str, target: str, partial: str) -> None:
    """Moves a file or link and overwrites nothing; on OSError, it is where it was, and only there.

    On another file system it is whole under its final name before it is removed from its first
    place: until then it has the name ``partial`` in the target's folder.
    """
    try:
        _rename(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    partial = os.path.join(os.path.dirname(target), partial)
    try:
        _copy(source, partial)
        _rename(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    _sync_folder(os.path.dirname(target))
    _remove(source, target)


def _rename(source: str, target: str) -> None:
    """Renames within a file system; raises FileExistsError where os.rename would overwrite."""
    names = os.fsencode(source), os.fsencode(target)
    number = errno.ENOSYS
    if sys.platform in ("linux", "darwin"):
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):  # the constants are AT_FDCWD and RENAME_NOREPLACE
            number = libc.renameat2(-100, names[0], -100, names[1], 1) and ctypes.get_errno()
        elif hasattr(libc, "renamex_np"):  # RENAME_EXCL
            number = libc.renamex_np(*names, 4) and ctypes.get_errno()
    if number == errno.EXDEV:
        raise OSError(number, os.strerror(number), source)
    if number == errno.EEXIST or (number and os.path.lexists(target)):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    if number:  # not on this file system; or what is wrong, it says
        os.rename(source, target)


def _remove(source: str, target: str) -> None:
    """Removes a file that is at both places from the first, or if that fails from the second."""
    try:
        os.unlink(source)
    except OSError:
        os.unlink(target)
        raise


def _sync_folder(path: str) -> None:
    """Waits until the disk has the names in a folder, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(source: str, target: str) -> None:
    """Copies a file or link with its times and rights, and waits until the disk has it."""
    before = os.lstat(source)
    if stat.S_ISLNK(before.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        with open(source, "rb") as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    shutil.copystat(source, target, follow_symlinks=False)
    after = os.lstat(source)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(errno.EBUSY, "another program changed it meanwhile", source)

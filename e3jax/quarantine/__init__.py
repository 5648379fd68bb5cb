"""Quarantine: moves the most outlying images aside and back; deletes and overwrites nothing.

A command may be killed at any moment. The list of moves is written before any file is moved; every
file is whole at its old or its new place at any time (at both, for a moment, if these are on two
file systems); and the next command on the same quarantine clears up. A lock keeps a second one out.

A file is moved only if it is the one that was ranked, see :class:`e3jax.work.files.FileState`. One
that comes back from another file system has another state there, which its report learns.
"""

import contextlib
import ctypes
import dataclasses
import errno
import filecmp
import functools
import json
import os
import re
import shutil
import stat
import sys
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from e3jax.collection.finding import MANIFEST, is_quarantine
from e3jax.errors import InputError
from e3jax.report.tables import LINES
from e3jax.work import exits, files, locks
from e3jax.work.files import FileState, printable, state_of

FOLDER = "quarantine"
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


class NotMoved(InputError):
    """No file was moved; ``left`` says why, in a few words for each path."""

    def __init__(self, sentence: str, left: Mapping[str, str]):
        super().__init__(sentence)
        self.left = left


class PartlyMoved(OSError):
    """Some files were moved and others were not.

    The sentence names the first of the others, the reason, and what to do.

    Attributes:
      moved: the paths that files were moved from.
      left: why the others were not moved, in a few words for each path.
    """

    def __init__(self, sentence: str, moved: Sequence[str], left: Mapping[str, str]):
        super().__init__(sentence)
        self.moved, self.left = moved, left


def move_aside(
    report: str | os.PathLike, paths: Iterable[str] | Mapping[str, FileState | None]
) -> Moved:
    """Moves files into the report's quarantine folder, numbered, with a list of where they were.

    Files that are there already are left. Sidecars follow once all their pictures are there.

    Args:
      report: its folder.
      paths: files; or, by path, what each was when it was ranked: it stays if it is another one.

    Raises:
      InputError: the folder is somebody else's, a name in it is taken, the list is damaged, or
        another command is at work. Nothing was moved.
      NotMoved: all files are missing, changed or no files, or cannot be moved.
      PartlyMoved: this is so for some of them; :func:`undo` moves the others back.
      OSError: the list cannot be written. Nothing was moved.
    """
    moved, states = [], dict(paths) if isinstance(paths, Mapping) else dict.fromkeys(paths)
    with _opened(Path(report).absolute() / FOLDER) as quarantine:
        if not quarantine.is_listed:
            _check_empty(quarantine.folder)
        held = [move for move in quarantine.moves if quarantine.holds(move)]
        aside = {move["from"] for move in held}
        states = quarantine.current(states, aside)
        left = {p: why for p, state in states.items() if (why := _obstacle(p, state, held, aside))}
        pictures = [path for path in states if path not in left]
        owners, shared = _sidecars(pictures, aside)
        new = quarantine.add(pictures, aside, owners)
        _check_free([quarantine.place(move) for move in new])
        quarantine.save()  # first: whatever stops the moves below, undo knows them
        for move in sorted(new, key=lambda move: move["sidecar"]):
            exits.check_interrupts()
            path = move["from"]
            if left.keys() & owners.get(path, ()):  # its picture stays
                continue
            why = _obstacle(path, states.get(path), held)
            why = why or _try_to_move(path, quarantine.place(move), quarantine.partial)
            if why:
                left[path] = why
            else:
                moved.append(move)
                held.append(move)
        quarantine.note_times(moved)
    _raise_if_left(left, [move["from"] for move in moved], "quarantine --undo moves them back")
    return _moved(moved)._replace(shared=shared)


def undo(report: str | os.PathLike) -> Moved:
    """Moves all files back to where they were, also if the folders were renamed in the meantime.

    A file whose folder is gone goes to the folder at the same place relative to the quarantine. If
    the quarantine itself was moved or copied, it goes there first: what is now where the file was
    may be another collection.

    Args:
      report: the folder that holds the quarantine folder, or the quarantine folder itself.

    Raises:
      InputError: nothing is in quarantine, another file is where one was, the list is damaged, or
        another command is at work. Nothing was moved.
      NotMoved: the folders of all files are gone, or no file can be moved.
      PartlyMoved: this is so for some of them, or some are not in quarantine any more.
    """
    report = Path(report).absolute()
    folder = report if is_quarantine(report) else report / FOLDER
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: nothing to undo")
    with _opened(folder) as quarantine:
        moved, left = list(quarantine.returned), {}
        back = [move for move in quarantine.moves if quarantine.holds(move)]
        gone = [quarantine.place(move) for move in quarantine.moves if not quarantine.holds(move)]
        if gone and not back and not moved:
            raise InputError(
                f"{folder} holds none of the {len(gone)} files that quarantine moved there: put "
                "them back into it, or delete it if nobody needs them (nothing was moved)"
            )
        if not back and not moved:
            raise InputError(f"{folder} holds nothing that quarantine moved: nothing to undo")
        homes = [quarantine.home(move) for move in back]
        _check_free(filter(None, homes))
        for move, home in zip(back, homes, strict=True):
            exits.check_interrupts()
            place = quarantine.place(move)
            quarantine.note_intact(move)
            why = _try_to_move(place, home, quarantine.partial) if home else quarantine.lost(move)
            if why:
                left[place] = why
            else:
                quarantine.restore_time(move, home)
                moved.append(move)
        left |= dict.fromkeys(gone, f"is not in quarantine any more (delete {folder} to forget it)")
    advice = "remove the cause and run --undo again for the rest"
    _raise_if_left(left, [move["from"] for move in moved], advice)
    return _moved(moved)


def _raise_if_left(left: Mapping[str, str], moved: Sequence[str], advice: str) -> None:
    """Raises NotMoved or PartlyMoved if any file is left."""
    if left:
        path, why = next(iter(left.items()))
        sentence = f"{printable(path)} {why}"
        if not moved:
            raise NotMoved(f"{sentence} (nothing was moved)", left)
        total = len(moved) + len(left)
        sentence = f"{sentence}; {len(moved)} of {total} files were moved: {advice}"
        raise PartlyMoved(sentence, moved, left)


# --- The list ----------------------------------------------------------------------------------


@dataclasses.dataclass
class _Quarantine:
    """A quarantine folder and its list.

    Attributes:
      folder: where files are moved to, absolute.
      origin: where it was when its list was first written, absolute and without links.
      is_listed: whether it had a list when the command began.
      id: distinguishes partial files of this quarantine from those of others.
      count: how many files were numbered so far.
      moves: per file "from", its absolute place before; "near", the same relative to the folder;
        "to", its name in the folder; "sidecar", whether it went along with a picture; "state", that
        of a picture before; "aside", that in the folder if its disk did not keep the time.
      added: names in the folder that this command gave.
      intact: names in the folder of pictures that this command moved back as they had come.
      returned: moves that `settle` ended by keeping the file where it was before.
      renewed: by `_form` of its path, the states of a picture before and after it came back.
      names: lists a folder, see `_names`.
    """

    folder: Path
    origin: str
    is_listed: bool
    id: str
    count: int
    moves: list[dict]
    added: set[str] = dataclasses.field(default_factory=set)
    intact: set[str] = dataclasses.field(default_factory=set)
    returned: list[dict] = dataclasses.field(default_factory=list)
    renewed: dict[str, list[tuple]] = dataclasses.field(default_factory=dict)
    names: Callable = dataclasses.field(default_factory=lambda: functools.cache(_names))

    @property
    def partial(self) -> str:
        """The name of an unfinished copy, in whatever folder; hidden, so that no walk finds it."""
        return f".{self.id}.e3jax.partial"

    def place(self, move: dict) -> str:
        return os.path.join(self.folder, move["to"])

    def holds(self, move: dict) -> bool:
        return os.path.lexists(self.place(move))

    @functools.cached_property
    def was_moved(self) -> bool:
        """Whether it was moved or copied to here, so that other files may be where it was."""
        try:
            here = os.path.realpath(self.folder)
            return here != self.origin and not os.path.samefile(here, self.origin)
        except (OSError, ValueError):  # nothing is there any more
            return True

    def homes(self, move: dict) -> list[str]:
        """Where a file was, by its path and as seen from the folder."""
        return [move["from"], os.path.join(self.folder, move["near"])]

    def home(self, move: dict) -> str | None:
        """Where a file goes back to."""
        for path in self.homes(move)[:: -1 if self.was_moved else 1]:
            folder = _on_disk(os.path.dirname(path), self.names)
            if os.path.isdir(folder):
                return os.path.join(folder, os.path.basename(path))
        return None

    def lost(self, move: dict) -> str:
        """Why a file without a home stays."""
        first, second = (os.path.normpath(os.path.dirname(p)) for p in self.homes(move))
        return (
            f"was in {printable(first)}, and neither that folder nor {printable(second)} exists: "
            "make one of them, or move the photos back there"
        )

    def add(
        self, pictures: Iterable[str], aside: set[str], owners: Mapping[str, Sequence[str]]
    ) -> list[dict]:
        """Lists pictures that are not aside, and each sidecar after the last of its owners."""
        along = {}
        for sidecar, owned_by in owners.items():
            along.setdefault(owned_by[-1], []).append(sidecar)
        new = []
        for path in pictures:
            new += [self._add(path, state_of(path))] if path not in aside else []
            new += [self._add(sidecar, None) for sidecar in along.get(path, [])]
        return new

    def _add(self, path: str, state: FileState | None) -> dict:
        """Numbers a file, since files of one name may come from several folders, and lists it."""
        self.count += 1
        name = _name(self.folder, self.count, os.path.basename(path))
        near = _relative(path, self.folder)
        self.added.add(name)
        move = {"from": path, "near": near, "to": name, "sidecar": state is None}
        self.moves.append(move | {"state": state, "aside": None})
        return self.moves[-1]

    def save(self) -> None:
        """Writes the list, or removes it if it is empty."""
        if not self.moves:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            return
        content = {"e3jax": "quarantine", "id": self.id, "place": self.origin}
        content |= {"count": self.count, "moves": self.moves}
        files.write_text(self.folder / MANIFEST, json.dumps(content, indent=1))

    def settle(self) -> None:
        """Clears up what an interrupted command left, so that the list is what is in the folder.

        Unfinished copies are removed. A file at both places is whole at both: it stays at the first
        one. A file that is back, or was never moved, leaves the list; one that was taken out of
        quarantine by hand stays on it. All this where files go back to, and nowhere else: of two
        copies of a collection, none touches the other's files.
        """
        folders = {os.path.dirname(home) for home in map(self.home, self.moves) if home}
        unfinished = [os.path.join(folder, self.partial) for folder in (self.folder, *folders)]
        for path in (*unfinished, files.partial(self.folder / MANIFEST)):
            with contextlib.suppress(OSError):  # most do not exist
                os.unlink(path)
        listed, self.moves = self.moves, []
        for move in listed:
            place, home = self.place(move), self.home(move)
            held, back = self.holds(move), home is not None and os.path.lexists(home)
            if held and back and _same(place, home):
                self.note_intact(move)
                os.unlink(place)
                self.returned.append(move)
                held = False
            # What this command gave a name and did not move never was in quarantine.
            if (held and not back) if move["to"] in self.added else (held or not back):
                self.moves.append(move)
            else:
                self._renew(move, home)
        if len(self.moves) < len(listed):
            # On a full disk the longer list stays, which says nothing wrong about what is there.
            with contextlib.suppress(OSError):
                self._tell_report()  # first: while a move is listed, the next command does it again
                self.save()

    # A file that comes back from another file system is as it was, and has another state.

    def note_times(self, moves: Sequence[dict]) -> None:
        """Lists the states of files on a disk that did not keep their times."""
        changed = False
        for move in moves:
            state = state_of(self.place(move))
            if move["state"] and not move["state"].is_same(state):
                move["aside"], changed = state, True
        if changed:
            with contextlib.suppress(OSError):  # on a full disk the files have to be ranked again
                self.save()

    def note_intact(self, move: dict) -> None:
        """Notes that a file in the folder, which goes back now, is as it came."""
        state, place = move["aside"] or move["state"], self.place(move)
        if state and os.path.exists(place) and state.is_same(state_of(place)):
            self.intact.add(move["to"])

    def restore_time(self, move: dict, home: str) -> None:
        """Gives a file that is back the time that the disk of the folder did not keep."""
        if move["aside"] and move["to"] in self.intact and not os.path.islink(home):
            with contextlib.suppress(OSError):
                os.utime(home, ns=(os.stat(home).st_atime_ns, move["state"].changed))

    def current(
        self, states: Mapping[str, FileState | None], aside: set[str]
    ) -> dict[str, FileState | None]:
        """Paths as the file system spells them, with states as of now if these files came back."""
        forms = {_form(path): path for path in aside}
        current = {}
        for path, state in states.items():
            path = str(Path(path).absolute())
            if path not in aside and not os.path.lexists(path):
                path = forms.get(_form(path)) or _on_disk(path, self.names)
            current[path] = state and self._current(path, state)
        return current

    def _current(self, path: str, state: FileState) -> FileState:
        renewed = self.renewed.get(_form(path), ())
        return next((now for was, now in renewed if was.is_same(state)), state)

    def _renew(self, move: dict, home: str | None) -> None:
        """Notes the state of a file that is back, if it surely is the one that was moved."""
        if was := home and move["state"]:
            now = state_of(home)
            alike = (was.size, was.changed) == (now.size, now.changed)
            if not was.is_same(now) and (alike or move["to"] in self.intact):
                self.renewed.setdefault(_form(move["from"]), []).append((was, now))

    def _tell_report(self) -> None:
        """Writes the new states of files into the report; else they have to be ranked again."""
        path = self.folder.parent / LINES

        def renewed(text: str) -> str:
            line = json.loads(text)
            was = FileState(*(line[field] for field in FileState._fields))
            now = self._current(str(Path(line["path"]).absolute()), was)
            return text if now is was else f"{json.dumps(line | now._asdict())}\n"

        if self.renewed and path.is_file():
            # Also InputError: a command that writes this report takes the states anew.
            errors = (OSError, KeyError, TypeError, ValueError)
            with contextlib.suppress(*errors), locks.held(self.folder.parent, "quarantine"):
                with open(path, encoding="utf-8") as file:
                    files.write_lines(path, map(renewed, file))


def _read(folder: Path) -> _Quarantine:
    """Reads the list.

    Raises:
      InputError: it is damaged, or somebody else's.
    """
    path, here = folder / MANIFEST, os.path.realpath(folder)
    if not os.path.lexists(path):
        return _Quarantine(folder, here, False, uuid.uuid4().hex, 0, [])
    try:
        if not is_quarantine(folder):
            raise ValueError("another program's")
        content = json.loads(path.read_text(encoding="utf-8"))
        moves = [_move_of(entry) for entry in content["moves"]]
        origin = os.fspath(content.get("place", here))  # earlier lists lack it
        return _Quarantine(folder, origin, True, content["id"], int(content["count"]), moves)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{printable(path)} is damaged or another program's: move the files back by hand "
            f"(nothing was moved)"
        ) from error


def _move_of(entry: dict) -> dict:
    """An entry of the list, checked."""
    move = {key: os.fspath(entry[key]) for key in ("from", "near", "to")}
    if os.path.basename(move["to"]) != move["to"] or not move["to"].strip("."):
        raise ValueError("no name")
    states = {key: entry[key] and FileState(*map(int, entry[key])) for key in ("state", "aside")}
    return move | {"sidecar": bool(entry["sidecar"])} | states


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
    """A quarantine that no other command changes meanwhile, settled before and after.

    An empty folder goes with its list; one that never had a list stays, unless it was made here.
    """
    is_listed = False
    try:
        with locks.held(folder, "quarantine"):
            quarantine = _read(folder)
            is_listed = quarantine.is_listed
            quarantine.settle()
            try:
                yield quarantine
            finally:
                with contextlib.suppress(OSError):  # the next command will
                    quarantine.settle()
    finally:
        if is_listed:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


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


def _obstacle(
    path: str, state: FileState | None, held: Sequence[dict], aside: Iterable[str] = ()
) -> str:
    """Why a file cannot go to quarantine, in a few words; "" if it can, or is there.

    Args:
      path: of the file.
      state: what it was when it was ranked, if that is known.
      held: the moves of files that are in quarantine.
      aside: those of them that are not expected outside, by their places there.
    """
    there = os.path.lexists(path)
    if path in aside:
        second = "is a second file of that name, the first is in quarantine: rename it"
        return second if there else ""
    if not there:
        return "is not there any more: rank the folder again"
    if is_quarantine(os.path.dirname(path)):
        return "is in another quarantine: rank the folder again"
    if not stat.S_ISLNK(mode := os.lstat(path).st_mode) and not stat.S_ISREG(mode):
        return "is no file: rank the folder again"
    if state and not state.is_same(now := state_of(path)):
        # A link to a ranked picture leads nowhere once that is in quarantine, and may follow it.
        follows = now == FileState() and any(m["state"] and state.is_same(m["state"]) for m in held)
        if not follows:
            return "was changed or replaced since it was ranked: rank the folder again"
    return ""


def _check_empty(folder: Path) -> None:
    """Raises an InputError if a folder without a list holds anything but hidden files."""
    if any(not name.startswith(".") for name in os.listdir(folder)):
        raise InputError(
            f"{printable(folder)} holds files that quarantine did not move there: rename that "
            "folder first (nothing was moved)"
        )


def _check_free(paths: Iterable[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise InputError(
                f"there is another file at {printable(path)}: move it away first (nothing "
                "was moved)"
            )


def _sidecars(paths: Sequence[str], aside: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The sidecars of pictures: a.jpg.xmp, a.jpg.anything.json or a.xmp, in any case.

    Args:
      paths: pictures that are moved, or were.
      aside: files whose places in quarantine are taken.

    Returns:
      By each sidecar that may follow, its pictures in the order of ``paths``; and the sidecars of
      pictures of which not all move.
    """
    owners, shared, by_folder = {}, [], {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    for folder, moving in by_folder.items():
        order = {name: number for number, name in enumerate(moving)}
        names = _files_in(folder)
        sidecars = sorted(n for n in names if n.lower().endswith(SIDECARS) and n not in order)
        by_name, by_stem = {}, {}
        for name in {*names, *moving}.difference(sidecars):
            by_name.setdefault(_caseless(name), []).append(name)
            by_stem.setdefault(_stem(name), []).append(name)
        for name in sidecars:
            stem, path = _stem(name), os.path.join(folder, name)
            owned_by = by_name.get(stem) or by_stem.get(stem) or by_name.get(_stem(stem), [])
            movers = sorted((owner for owner in owned_by if owner in order), key=order.get)
            if movers and len(movers) == len(owned_by) and path not in aside:
                owners[path] = [os.path.join(folder, owner) for owner in movers]
            elif movers:
                shared.append(path)
    return owners, shared


def _stem(name: str) -> str:
    return os.path.splitext(_caseless(name))[0]


def _caseless(name: str) -> str:
    return _form(_form(name).casefold())


def _form(name: str) -> str:
    """A name in the Unicode normal form C; macOS writes D, and spreadsheets either."""
    return unicodedata.normalize("NFC", name)


def _on_disk(path: str, names: Callable[[str], Mapping[str, list[str]]]) -> str:
    """The path as the file system spells it, if one in another normal form is there."""
    parent, name = os.path.split(path)
    if path.isascii() or parent == path or os.path.lexists(path):
        return path
    parent = _on_disk(parent, names)
    alike = names(parent).get(_form(name), ())
    return os.path.join(parent, alike[0] if len(alike) == 1 else name)


def _names(folder: str) -> dict[str, list[str]]:
    """All names in a folder, by their normal form C."""
    names = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            names.setdefault(_form(name), []).append(name)
    return names


def _files_in(folder: str) -> list[str]:
    """Names of files and links; none if the folder is gone, since its pictures are aside."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return [e.name for e in entries if e.is_symlink() or e.is_file(follow_symlinks=False)]
    return []


# --- Moving ------------------------------------------------------------------------------------


def _try_to_move(source: str, target: str, partial: str) -> str:
    """Moves a file, see `_move`; returns why it cannot be moved, or ""."""
    try:
        _move(source, target, partial)
    except OSError as error:
        return f"cannot be moved: {error.strerror or error}"
    return ""


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
    """Copies a file or link as `mv` does, and waits until the disk has the content."""
    before = os.lstat(source)
    if stat.S_ISLNK(before.st_mode):
        os.symlink(os.readlink(source), target)
    else:
        # For the time being nobody can open it who cannot open the source.
        rights = stat.S_IRUSR | stat.S_IWUSR | (before.st_mode & 0o077)
        opener = functools.partial(os.open, mode=rights)
        with open(source, "rb") as reader, open(target, "xb", opener=opener) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    _copy_attributes(source, target, before)
    after = os.lstat(source)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError(errno.EBUSY, "another program changed it meanwhile", source)


def _copy_attributes(source: str, target: str, state: os.stat_result) -> None:
    """Copies owner, extended attributes, rights and times, each if the target's disk takes it.

    Network shares and disks of cameras refuse some or all. The order matters: a new owner clears
    rights, and without the right to write no attribute can be set.
    """
    is_link, rights = stat.S_ISLNK(state.st_mode), stat.S_IMODE(state.st_mode)
    refused = contextlib.suppress(OSError, AttributeError, NotImplementedError)  # or unknown here
    with refused:
        os.chown(target, -1, state.st_gid, follow_symlinks=False)
    with refused:
        os.chown(target, state.st_uid, -1, follow_symlinks=False)
    with refused:
        for name in os.listxattr(source, follow_symlinks=False):
            with refused:
                value = os.getxattr(source, name, follow_symlinks=False)
                os.setxattr(target, name, value, follow_symlinks=False)
    if not is_link:
        owner = os.stat(target)
        if (owner.st_uid, owner.st_gid) != (state.st_uid, state.st_gid):
            rights &= ~(stat.S_ISUID | stat.S_ISGID)  # which would be another one's
        with refused:
            os.chmod(target, rights)
    with refused:
        times = (state.st_atime_ns, state.st_mtime_ns)
        os.utime(target, ns=times, follow_symlinks=not is_link)

"""The list of moves, written before any file is moved, so that a kill loses nothing.

It also knows a file that comes back from another file system: that one is as it was, and has
another :class:`e3jax.work.files.FileState`, which its report learns.
"""

import contextlib
import dataclasses
import filecmp
import functools
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from e3jax.collection.finding import MANIFEST, is_quarantine
from e3jax.errors import InputError
from e3jax.quarantine import names
from e3jax.report import tables
from e3jax.work import files, locks
from e3jax.work.files import FileState, printable, state_of


class Move(NamedTuple):
    """An entry of the list.

    Attributes:
      path: where the file was, absolute.
      near: the same relative to the quarantine folder.
      name: of the file in that folder.
      state: of a picture as it was ranked; None for a sidecar.
      aside: of the file in the folder; None until it is there.
    """

    path: str
    near: str
    name: str
    state: FileState | None = None
    aside: FileState | None = None


@dataclasses.dataclass
class Quarantine:
    """A quarantine folder and its list.

    Attributes:
      folder: where files are moved to, absolute.
      origin: where it was when its list was first written, absolute and without links.
      id: distinguishes partial files of this quarantine from those of others.
      moves: the list.
      renewed: states of pictures that are back, by their paths' normal form and states before.
      names: lists a folder, see `names.names_in`.
    """

    folder: Path
    origin: str
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    moves: list[Move] = dataclasses.field(default_factory=list)
    renewed: dict[tuple[str, FileState], FileState] = dataclasses.field(default_factory=dict)
    names: Callable = dataclasses.field(default_factory=lambda: functools.cache(names.names_in))

    @property
    def partial(self) -> str:
        """The name of an unfinished copy, in any folder; hidden, so that no walk finds it."""
        return f".{self.id}.e3jax.partial"

    def place(self, move: Move) -> str:
        """Where a file is in quarantine."""
        return os.path.join(self.folder, move.name)

    def holds(self, move: Move) -> bool:
        """Whether a file is in quarantine."""
        return os.path.lexists(self.place(move))

    @functools.cached_property
    def was_moved(self) -> bool:
        """Whether it was moved or copied to here, so that other files may be where it was."""
        with contextlib.suppress(OSError, ValueError):  # nothing is there any more
            return not os.path.samefile(self.folder, self.origin)
        return True

    def homes(self, move: Move) -> list[str]:
        """Where a file was, by its path and as seen from the folder."""
        return [move.path, os.path.join(self.folder, move.near)]

    def home(self, move: Move) -> str | None:
        """Where a file goes back to; None if its folder is gone."""
        for path in self.homes(move)[:: -1 if self.was_moved else 1]:
            folder = names.on_disk(os.path.dirname(path), self.names)
            if os.path.isdir(folder):
                return os.path.join(folder, os.path.basename(path))
        return None

    def lost(self, move: Move) -> str:
        """Why a file without a home stays."""
        first, second = (os.path.normpath(os.path.dirname(p)) for p in self.homes(move))
        return (
            f"was in {printable(first)}, and neither that folder nor {printable(second)} exists: "
            "make one of them, or move the photos back there"
        )

    def entries(self, states: Mapping[str, FileState | None]) -> list[Move]:
        """New entries for files, numbered since those of one name may come from several folders.

        Args:
          states: of pictures, by path; None for sidecars.
        """
        first = 1 + max((names.number_of(move.name) for move in self.moves), default=0)
        return [
            Move(path, names.relative(path, self.folder), names.portable(number, path), state)
            for number, (path, state) in enumerate(states.items(), first)
        ]

    def save(self) -> None:
        """Writes the list, or removes it if it is empty."""
        path, moves = self.folder / MANIFEST, [move._asdict() for move in self.moves]
        if moves:
            content = {"e3jax": "quarantine", "id": self.id, "origin": self.origin, "moves": moves}
            files.write_text(path, json.dumps(content, indent=1))
        else:
            path.unlink(missing_ok=True)

    def settle(self) -> None:
        """Clears up what an interrupted command left, so that the list is what is in the folder.

        Unfinished copies are removed. A file at both places is whole at both: it stays at the first
        one. A file that is back, or was never moved, leaves the list; one that was taken out of
        quarantine by hand stays on it. All this where files go back to, and nowhere else: of two
        copies of a collection, none touches the other's files.
        """
        homes = {move: self.home(move) or "" for move in self.moves}
        folders = {os.fspath(self.folder), *(os.path.dirname(h) for h in homes.values() if h)}
        unfinished = [os.path.join(folder, self.partial) for folder in folders]
        for path in (*unfinished, files.partial(self.folder / MANIFEST)):
            with contextlib.suppress(OSError):  # most do not exist
                os.unlink(path)
        self.moves = []
        for move, home in homes.items():
            place, is_back = self.place(move), os.path.lexists(home)
            if is_back and not self.holds(move):
                self.note_return(move, home)
            elif is_back and _same(place, home):
                self.note_return(move, home, self.is_as_it_came(move))
                os.unlink(place)
            else:
                self.moves.append(move)
        # On a full disk the longer list stays, which says nothing wrong about what is there.
        with contextlib.suppress(OSError):
            self._tell_report()  # first: while a move is listed, the next command does it again
            self.save()

    # A file that comes back from another file system is as it was, and has another state.

    def is_as_it_came(self, move: Move) -> bool:
        """Whether a picture in the folder is the one that was moved there, and did not change."""
        state, place = move.aside or move.state, self.place(move)
        return state is not None and os.path.exists(place) and state.is_same(state_of(place))

    def note_return(self, move: Move, home: str, as_it_came: bool = False) -> None:
        """Notes the state of a picture that is back, if it surely is the one that was moved.

        It gets back its time, if the disk of the folder did not keep it.
        """
        if (was := move.state) is None:
            return
        if as_it_came and was.changed != state_of(home).changed and not os.path.islink(home):
            with contextlib.suppress(OSError):
                os.utime(home, ns=(os.stat(home).st_atime_ns, was.changed))
        now = state_of(home)
        is_alike = as_it_came or (was.size, was.changed) == (now.size, now.changed)
        if is_alike and not was.is_same(now):
            self.renewed[names.form(move.path), was] = now

    def renew(self, path: str, state: FileState) -> FileState:
        """The state of a picture as of now, if it came back."""
        return self.renewed.get((names.form(path), state), state)

    def current(
        self, states: Mapping[str | os.PathLike, FileState | None], aside: Iterable[str]
    ) -> dict[str, FileState | None]:
        """Paths as the file system spells them, with states as of now if these files came back."""
        forms, current = {names.form(path): path for path in aside}, {}
        for path, state in states.items():
            path = str(Path(path).absolute())
            if path not in aside and not os.path.lexists(path):
                path = forms.get(names.form(path)) or names.on_disk(path, self.names)
            current[path] = state and self.renew(path, state)
        return current

    def _tell_report(self) -> None:
        """Writes the new states of files into the report; else they have to be ranked again."""
        if self.renewed:
            # InputError: a command that writes this report takes the states anew.
            with contextlib.suppress(InputError), locks.held(self.folder.parent, "quarantine"):
                tables.renew_states(self.folder.parent, self.renew)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Quarantine]:
    """A quarantine that no other command changes meanwhile, settled before and after.

    An empty folder goes with its list; one that never had a list stays, unless it was made here.

    Raises:
      InputError: the list is damaged or another program's, or another command is at work.
    """
    had_list = is_quarantine(folder)
    try:
        with locks.held(folder, "quarantine"):
            quarantine = _read(folder)
            quarantine.settle()
            try:
                yield quarantine
            finally:
                with contextlib.suppress(OSError):  # the next command will
                    quarantine.settle()
    finally:
        if had_list:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _read(folder: Path) -> Quarantine:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return Quarantine(folder, os.path.realpath(folder))
    try:
        if not is_quarantine(folder):
            raise ValueError("another program's")
        content = json.loads(path.read_text(encoding="utf-8"))
        moves = [_checked(Move(**entry)) for entry in content["moves"]]
        return Quarantine(folder, os.fspath(content["origin"]), content["id"], moves)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{printable(path)} is damaged or another program's: move the files back by hand "
            f"(nothing was moved)"
        ) from error


def _checked(move: Move) -> Move:
    """An entry as it was read; raises ValueError or TypeError if it is not one."""
    os.path.join(move.path, move.near)  # both are text
    if os.path.basename(move.name) != move.name or not names.number_of(move.name):
        raise ValueError("not a name in quarantine")
    state, aside = (s and FileState(*map(int, s)) for s in (move.state, move.aside))
    return move._replace(state=state, aside=aside)


def _same(first: str, second: str) -> bool:
    """Whether two names are of one file, or of two with the same content."""
    stats = os.lstat(first), os.lstat(second)
    if os.path.samestat(*stats):
        return stats[0].st_nlink > 1  # else it is one name, reached through a linked folder
    if all(stat.S_ISLNK(s.st_mode) for s in stats):
        return os.readlink(first) == os.readlink(second)
    return all(stat.S_ISREG(s.st_mode) for s in stats) and filecmp.cmp(first, second, shallow=False)

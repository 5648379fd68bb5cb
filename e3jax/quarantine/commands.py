"""Moves files aside and back, each command whole or with a list of what it left and why."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from e3jax.collection.finding import is_quarantine
from e3jax.errors import InputError
from e3jax.quarantine import journal, moving, sidecars
from e3jax.work import exits
from e3jax.work.files import FileState, printable, state_of

FOLDER = "quarantine"


class Moved(NamedTuple):
    """What a command moved, by the places outside quarantine.

    Attributes:
      pictures: the selected files.
      sidecars: the files about them that went along.
      shared: sidecars that stayed, because a picture that stays shares them.
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
    report: str | os.PathLike,
    paths: Iterable[str | os.PathLike] | Mapping[str | os.PathLike, FileState | None],
) -> Moved:
    """Moves files into the report's quarantine folder, numbered, with a list of where they were.

    Files that are there already are left. Sidecars follow once all their pictures are there.

    Args:
      report: its folder.
      paths: files; or, by path, what each was when it was ranked: it stays if it is another one.

    Returns:
      What was moved.

    Raises:
      InputError: the folder has other files, a name in it is taken, the list is damaged, or another
        command is at work. Nothing was moved.
      NotMoved: all files are missing, changed or not files, or cannot be moved.
      PartlyMoved: this is so for some of them; :func:`undo` moves the others back.
      OSError: the list cannot be written. Nothing was moved.
    """
    states = dict(paths) if isinstance(paths, Mapping) else dict.fromkeys(paths)
    with journal.opened(Path(report).absolute() / FOLDER) as quarantine:
        if not quarantine.moves:
            _check_empty(quarantine.folder)
        held = [move for move in quarantine.moves if quarantine.holds(move)]
        aside = {move.path for move in held}
        states = quarantine.current(states, aside)
        left = {
            path: "is a second file of that name, the first is in quarantine: rename it"
            for path in aside.intersection(states)
            if os.path.lexists(path)
        }
        outside = {path: state for path, state in states.items() if path not in aside}
        left |= {p: why for p, state in outside.items() if (why := _obstacle(p, state, held))}
        pictures = [path for path in states if path not in left]
        owners, shared = sidecars.sidecars_of(pictures, aside)
        new = {p: state or state_of(p) for p, state in outside.items() if p not in left}
        new = quarantine.entries(new | dict.fromkeys(owners))
        _check_free(map(quarantine.place, new))
        before = quarantine.moves
        quarantine.moves = before + new
        quarantine.save()  # first: whatever stops the moves below, undo knows them
        try:
            _move_each(quarantine, new, owners, held, left)
        finally:
            # Not those that other programs took away, or whose names they took.
            new = [move for move in new if move.path not in left and quarantine.holds(move)]
            new = [move._replace(aside=state_of(quarantine.place(move))) for move in new]
            quarantine.moves = before + new
    return _result(new, left, "quarantine --undo moves them back")._replace(shared=shared)


def undo(report: str | os.PathLike) -> Moved:
    """Moves all files back to where they were, also if the folders were renamed in the meantime.

    A file whose folder is gone goes to the folder at the same place relative to the quarantine. If
    the quarantine itself was moved or copied, it goes there first: what is now where the file was
    may be another collection.

    Args:
      report: the folder that holds the quarantine folder, or the quarantine folder itself.

    Returns:
      What was moved back.

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
    with journal.opened(folder) as quarantine:
        homes = {move: quarantine.home(move) for move in quarantine.moves if quarantine.holds(move)}
        gone = [quarantine.place(move) for move in quarantine.moves if move not in homes]
        if not homes and gone:
            raise InputError(
                f"{folder} holds none of the {len(gone)} files that quarantine moved there: put "
                "them back into it, or delete it if they are not needed (nothing was moved)"
            )
        if not homes:
            raise InputError(f"{folder} holds nothing that quarantine moved: nothing to undo")
        _check_free(filter(None, homes.values()))
        moved, left = [], {}
        for move, home in homes.items():
            exits.check_interrupts()
            place, as_it_came = quarantine.place(move), quarantine.is_as_it_came(move)
            if home is None:
                left[place] = quarantine.lost(move)
            elif why := moving.try_to_move(place, home, quarantine.partial):
                left[place] = why
            else:
                quarantine.note_return(move, home, as_it_came)
                moved.append(move)
        left |= dict.fromkeys(gone, f"is no longer in quarantine (delete {folder} to forget it)")
    return _result(moved, left, "remove the cause and run --undo again for the rest")


def _move_each(
    quarantine: journal.Quarantine,
    moves: Iterable[journal.Move],
    owners: Mapping[str, Sequence[str]],
    held: Iterable[journal.Move],
    left: dict[str, str],
) -> None:
    """Moves files aside, and adds those that stay, with the reasons, to ``left``."""
    held = list(held)
    for move in moves:
        exits.check_interrupts()
        if left.keys() & owners.get(move.path, ()):  # its picture stays
            continue
        why = _obstacle(move.path, move.state, held)
        why = why or moving.try_to_move(move.path, quarantine.place(move), quarantine.partial)
        if why:
            left[move.path] = why
        else:
            held.append(move)


def _result(moved: Sequence[journal.Move], left: Mapping[str, str], advice: str) -> Moved:
    """What was moved; raises NotMoved or PartlyMoved if any file is left."""
    if left:
        path, why = next(iter(left.items()))
        sentence = f"{printable(path)} {why}"
        if not moved:
            raise NotMoved(f"{sentence} (nothing was moved)", left)
        total = len(moved) + len(left)
        sentence = f"{sentence}; {len(moved)} of {total} files were moved: {advice}"
        raise PartlyMoved(sentence, [move.path for move in moved], left)
    pictures = [move.path for move in moved if move.state]
    return Moved(pictures, [move.path for move in moved if not move.state])


def _obstacle(path: str, state: FileState | None, held: Sequence[journal.Move]) -> str:
    """Why a file cannot go to quarantine, in a few words; "" if it can.

    Args:
      path: of the file.
      state: what it was when it was ranked, if that is known.
      held: the moves of files that are in quarantine.
    """
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return "no longer exists: rank the folder again"
    if is_quarantine(os.path.dirname(path)):
        return "is in another quarantine: rank the folder again"
    if not stat.S_ISLNK(mode) and not stat.S_ISREG(mode):
        return "is not a file: rank the folder again"
    if state and not state.is_same(now := state_of(path)):
        # A link to a ranked picture leads nowhere once that is in quarantine, and may follow it.
        follows = now == FileState() and any(m.state and state.is_same(m.state) for m in held)
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

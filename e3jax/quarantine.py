"""Quarantine: moves the most outlying images aside and back; deletes and overwrites nothing."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from e3jax import files
from e3jax.images import InputError

FOLDER, _MANIFEST = "quarantine", "manifest.json"


def move_aside(report: Path, paths: Iterable[str]) -> int:
    """Moves files into the report's quarantine folder, numbered, with a list of where they were.

    Files that are there already are left; if one cannot be moved, none is.

    Returns:
      the number of files moved.

    Raises:
      InputError: a file is missing, or another one would be overwritten.
    """
    folder, moves = _read(report)
    aside = {move["from"] for move in moves if os.path.lexists(move["to"])}
    # Numbered, since files of one name may come from several folders.
    new = [
        {"from": path, "to": str(folder / f"{number:05d}-{Path(path).name}")}
        for number, path in enumerate((p for p in paths if p not in aside), start=len(moves) + 1)
    ]
    for move in new:
        if not os.path.lexists(move["from"]):
            raise InputError(
                f"{files.printable(move['from'])} is not there any more: rank the folder again "
                "(nothing was moved)"
            )
    _check_free([move["to"] for move in new])
    folder.mkdir(exist_ok=True)
    # First: whatever stops the moves below, undo knows them.
    files.write_text(folder / _MANIFEST, json.dumps(moves + new, indent=1))
    for move in new:
        shutil.move(move["from"], move["to"])
    return len(new)


def undo(report: Path) -> int:
    """Moves all files back to where they were; returns their number.

    Raises:
      InputError: nothing was moved, or another file is where one was.
    """
    folder, moves = _read(report)
    if not moves:
        raise InputError(f"{folder} holds nothing that quarantine moved: nothing to undo")
    back = [move for move in moves if os.path.lexists(move["to"])]
    _check_free([move["from"] for move in back])
    for move in back:
        Path(move["from"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(move["to"], move["from"])
    (folder / _MANIFEST).unlink()
    with contextlib.suppress(OSError):  # not empty: somebody put a file there
        folder.rmdir()
    return len(back)


def _read(report: Path) -> tuple[Path, list[dict[str, str]]]:
    """The folder, and all moves into it."""
    folder = report.absolute() / FOLDER
    manifest = folder / _MANIFEST
    return folder, json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else []


def _check_free(paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise InputError(
                f"there is another file at {files.printable(path)}: move it away first (nothing "
                "was moved)"
            )

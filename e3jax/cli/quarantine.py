"""``e3jax quarantine``: moves the most outlying images aside and back; imports no JAX."""

import argparse
import json

from e3jax import quarantine
from e3jax.cli import console
from e3jax.errors import InputError
from e3jax.report import tables
from e3jax.work.files import FileState


def run(args: argparse.Namespace, screen: console.Console) -> int:
    """Moves files aside, or back; returns the exit code."""
    try:
        if args.undo:
            screen.print(f"{_count(quarantine.undo(args.report))} moved back")
            return 0
        moved = quarantine.move_aside(args.report, _chosen(args))
    except (quarantine.NotMoved, quarantine.PartlyMoved) as error:
        if len(error.left) > 1:  # else the error itself says it
            console.list_files(
                screen, "stays", [f"{path} {why}" for path, why in error.left.items()]
            )
        raise
    folder = args.report.absolute() / quarantine.FOLDER
    screen.print(f"{_count(moved)} moved to {folder}; --undo moves them back")
    console.list_files(screen, "stays, since other files of its name stay", moved.shared)
    return 0


def _count(moved: quarantine.Moved) -> str:
    along = f", with {len(moved.sidecars)} sidecars," if moved.sidecars else ""
    return f"{len(moved.pictures)} files{along}"


def _chosen(args: argparse.Namespace) -> dict[str, FileState]:
    """Files to move, and what each was when it was ranked."""
    if args.top is not None:
        if args.top < 1:
            raise InputError(f"--top is {args.top}, expected at least 1")
        return tables.first_files(args.report, args.top)
    text = args.list.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return tables.listed_files(args.report, map(_unquoted, filter(None, text.split("\n"))))


def _unquoted(line: str) -> str:
    """A line of a selection; the gallery quotes names that would not fit on one."""
    try:
        name = json.loads(line) if line.startswith('"') else line
        return name if isinstance(name, str) else line
    except json.JSONDecodeError:
        return line

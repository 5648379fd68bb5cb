"""``e3jax quarantine``: moves the most outlying images aside and back; imports no JAX."""

from pathlib import Path

from e3jax import quarantine
from e3jax.cli import console
from e3jax.errors import InputError
from e3jax.report import decisions, tables
from e3jax.work.files import FileState


def run(
    screen: console.Console, report: Path, listing: Path | None, undo: bool, top: int = 0
) -> int:
    """Moves files aside, or back; returns the exit code."""
    try:
        if undo:
            screen.print(f"{_count(quarantine.undo(report))} moved back")
            return 0
        moved = quarantine.move_aside(report, _chosen(report, listing, top))
    except (quarantine.NotMoved, quarantine.PartlyMoved) as error:
        if len(error.left) > 1:  # else the error itself says it
            console.list_files(
                screen, "stays", [f"{path} {why}" for path, why in error.left.items()]
            )
        raise
    folder = report.absolute() / quarantine.FOLDER
    screen.print(f"{_count(moved)} moved to {folder}; --undo moves them back")
    console.list_files(screen, "stays, because other files of its name stay", moved.shared)
    return 0


def _count(moved: quarantine.Moved) -> str:
    along = f", with {len(moved.sidecars)} sidecars," if moved.sidecars else ""
    return f"{len(moved.pictures)} files{along}"


def _chosen(report: Path, listing: Path | None, top: int) -> dict[str, FileState]:
    """Files to move, and what each was when it was ranked."""
    if listing:
        return tables.listed_files(report, decisions.read_junk(listing))
    if top < 1:
        raise InputError(f"--top is {top}, expected at least 1")
    return tables.first_files(report, top)

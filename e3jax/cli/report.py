"""The report of rank and score, and the work that is kept beside it."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from e3jax.cli import console
from e3jax.cli.source import Photos, print_left_out
from e3jax.collection import Collection
from e3jax.collection.lazy import LazyArray
from e3jax.detector import saving
from e3jax.detector.estimator import E3Outlier
from e3jax.errors import InputError
from e3jax.evidence import FEATURES
from e3jax.evidence.health import Health
from e3jax.report import gallery, tables, writing
from e3jax.report.ranking import Ranking
from e3jax.work import exits, locks
from e3jax.work.files import printable
from e3jax.work.progress import Progress
from e3jax.work.store import kept_work

WORK = "unfinished"  # beside the report
WHOLE = (1, 1)  # a shard
_GALLERY = "gallery.html"


@contextlib.contextmanager
def folder(out: Path, command: str, photos: Photos, shard: tuple[int, int]) -> Iterator[None]:
    """The folder for the report, where nothing of the user's is replaced, for this command only.

    Args:
      out: the folder.
      command: rank or score.
      photos: to rank.
      shard: others of the same work share the folder.
    """
    if shard != WHOLE and not photos.bank:
        raise InputError("--shard needs a bank, which all of them can read: run e3jax bank first")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder for the report: choose another")
    writing.check_outputs(out, parquet=photos.is_large)
    gallery.check_output(out / _GALLERY)
    if out.exists() and not os.access(out, os.W_OK):
        raise InputError(f"{out} cannot be written to: choose another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Shards share a folder; all other commands that use it are told to wait.
    with locks.held(out, command, shared=shard != WHOLE):
        yield


def check_model(path: Path, out: Path) -> None:
    """Raises an InputError if a detector cannot be saved there, maybe in the report's folder.

    Args:
      path: of the detector.
      out: the folder, which need not exist yet.
    """
    if os.path.realpath(path.parent) == os.path.realpath(out):
        if path.name in {_GALLERY, *(table.name for table in tables.TABLES)}:
            raise InputError(
                f"{path} is a part of the report: choose another name for the detector"
            )
        if not out.exists():
            return
    saving.check_target(path)


def print_shard(screen: console.Console, shard: tuple[int, int]) -> int:
    """Reports that others are missing; returns the exit code."""
    screen.print(f"Shard {shard[0]}/{shard[1]} done. The last shard to finish writes the report.")
    return exits.DONE


def forget_work(screen: console.Console, out: Path, detector: E3Outlier) -> None:
    """Deletes what was kept beside a report."""
    detector.forget_work()
    for kept in kept_work(out / WORK):
        screen.print(f"{kept} has unfinished work from other options or versions")


def write(
    out: Path,
    ranking: Ranking,
    collection: Collection,
    photos: Sequence[Path],
    on_progress: Progress,
) -> None:
    """Writes the tables and the gallery; ``photos`` give it its title."""
    is_on_disk = isinstance(collection.images, LazyArray)
    writing.write_tables(out, ranking, parquet=is_on_disk)
    title = f"e3jax: {', '.join(path.absolute().name for path in photos[:3])}"
    pictures = collection.images if collection.ids.dtype.kind == "i" else None
    thumbnails = collection.thumbnails
    gallery.write_gallery(out / _GALLERY, ranking, pictures, title, on_progress, thumbnails)


def sum_up(screen: console.Console, out: Path, ranking: Ranking, detector: E3Outlier) -> None:
    """Prints the most outlying images, to standard output, and how many there are."""
    first = ranking.order[: console.SHOWN]
    pairs = zip(ranking.scores[first], ranking.paths[first], strict=True)
    lines = [f"{score:.3f}  {printable(str(path))}\n" for score, path in pairs]
    try:
        print("".join(lines), end="", flush=True)
    except OSError:  # a reader that has enough, a full disk
        console.ignore(sys.stdout)
    marked, total = int(ranking.is_outlier.sum()), len(ranking.scores)
    screen.print(f"{marked} of {total} images are marked; scores are in nats")
    if FEATURES in ranking.explanation.surprises:
        screen.print(f"Features of {printable(str(detector.features))} took part")
    print_left_out(screen, ranking.unreadable, ranking.file_range)
    screen.print(f"The report is in {out}/: open {_GALLERY}, or read {tables.SCORES.name}")


def judge(screen: console.Console, health: Health) -> int:
    """Prints a detector's warning, if it has one; returns the exit code."""
    if health.warning:
        screen.print(f"warning: {health.warning}", style="yellow")
    return exits.DOUBTFUL if health.warning else exits.DONE

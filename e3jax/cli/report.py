"""The report of rank and score, and the work that is kept beside it."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e3jax.cli import console
from e3jax.cli.source import Source, say_left_out
from e3jax.detector.estimator import E3Outlier
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.report import gallery, ranking, tables
from e3jax.work import exits, locks
from e3jax.work.files import printable
from e3jax.work.store import kept_work

WORK = "unfinished"  # beside the report
_GALLERY = "gallery.html"


@contextlib.contextmanager
def folder(args: argparse.Namespace, found: Source) -> Iterator[None]:
    """The folder for the report, where nothing of the user's is replaced, for this command only."""
    out = args.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder for the report: choose another")
    ranking.check_outputs(out, found.is_large)
    gallery.check_output(out / _GALLERY)
    save = getattr(args, "save", None)
    names = (tables.SCORES, tables.LINES, tables.PARQUET, tables.UNREADABLE, _GALLERY)
    if save and save.name in names and save.absolute().parent == out.absolute():
        raise InputError(f"{save} is a part of the report: choose another name for the detector")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise InputError(f"{out} cannot be written to: choose another folder with --out")
    # Shards share a folder; all other commands that use it are told to wait.
    with locks.held(out, args.command, shared=args.shard != (1, 1)):
        yield


def sharing(args: argparse.Namespace) -> dict[str, Any]:
    """How the scoring of a bank is shared, for ``fit_in`` and ``rank_in``."""
    how = {"shard": args.shard}
    if args.engine == "ray":
        how["each"] = engines.on_ray(args.ray_address)
    return how


def say_part(screen: console.Console, args: argparse.Namespace) -> int:
    part, parts = args.shard
    screen.print(f"Part {part} of {parts} is done; whichever --shard ends last writes the report")
    return 0


def forget_work(args: argparse.Namespace, detector: E3Outlier, screen: console.Console) -> None:
    """Deletes what was kept beside a report, unless other shards may still read it."""
    if args.shard == (1, 1):
        detector.forget_work()
        for folder in kept_work(args.out / WORK):
            screen.print(f"{folder} has unfinished work of other options or versions")


def write(args, ranked: ranking.Ranking, found: Source, on_progress) -> None:
    """Writes the tables and the gallery."""
    ranked = ranked._replace(unreadable=found.closed + ranked.unreadable)
    ranking.write_tables(args.out, ranked)
    if found.is_bank:
        ranking.write_parquet(args.out, ranked)
    title = f"e3jax: {', '.join(photos.absolute().name for photos in args.photos[:3])}"
    gallery.write_gallery(
        args.out / _GALLERY, ranked, found.pictures, title, on_progress, found.thumbnails
    )


def sum_up(screen: console.Console, out: Path, ranked: ranking.Ranking, closed) -> None:
    count = int(ranked.is_outlier.sum())
    first = ranked.order[: min(count, console.SHOWN)]
    pairs = zip(ranked.scores[first], ranked.paths[first], strict=True)
    lines = [f"{score:.3f}  {printable(str(path))}\n" for score, path in pairs]
    try:
        print("".join(lines), end="", flush=True)
    except OSError:  # a reader that has enough, a full disk
        console.ignore(sys.stdout)
    if count > console.SHOWN:
        screen.print(f"... and {count - console.SHOWN} more")
    total = len(ranked.scores)
    screen.print(f"{count} of {total} images do not seem to belong, scores in nats")
    say_left_out(screen, closed + ranked.unreadable, ranked.file_range)
    screen.print(f"The report is in {out}/: open {_GALLERY}, or read {tables.SCORES}")


def judge(screen: console.Console, detector: E3Outlier) -> int:
    """Prints a detector's warning, if it has one; returns the exit code."""
    warning = detector.health_.warning
    if warning:
        screen.print(f"warning: {warning}", style="yellow")
    return exits.DOUBTFUL if warning else exits.DONE

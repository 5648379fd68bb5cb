"""The command line: finds the images of a folder that do not belong.

Exit codes: 0 done; 1 done, but the scores are likely to mean little (a warning says why); 2 bad
input or arguments, nothing was changed; 3 quarantine moved some files, which are listed, and not
the others (what it had moved aside, --undo moves back); 130 stopped by Ctrl-C (likewise).
"""

import argparse
import contextlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from e3jax import checkpoint, gallery, operations, quarantine, ranking, reading, runtime, sheet
from e3jax.estimator import EVIDENCE, E3Outlier
from e3jax.files import printable
from e3jax.images import FITS, InputError
from e3jax.ranking import HealthWarning
from e3jax.version import VERSION

_GALLERY = "gallery.html"
_SHOWN = 20


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="e3jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"e3jax {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rank(commands)
    _add_score(commands)
    _add_views(commands)
    _add_quarantine(commands)
    return parser.parse_args(arguments)


def _add_rank(commands) -> None:
    parser = _command(commands, "rank", rank, "learn a folder of images and rank its images")
    add = parser.add_argument
    _add_photos(parser, "PHOTOS")
    add("--out", type=_path, default="report", help="folder for the report")
    add("--contamination", type=_contamination, default=0.1, help="share of outliers, or auto")
    add("--save", type=_path, metavar="MODEL", help="save the trained detector to this file")
    add("--seed", type=int, default=0, help="seed of all randomness")
    add("--time-budget", type=_seconds, metavar="TIME", help="approximate, e.g. 90s, 5m or 1h")
    add("--steps", type=int, help="length of the training (default: by the number of images)")
    add("--evidence", default="all", choices=EVIDENCE, help="network: the paper's method alone")
    add("--network", default="auto", help="e.g. wrn-10-4 (auto: by the hardware)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    add("--image-size", type=int, default=32, help="side to which images are resized, even")
    add("--resize", default="squash", choices=FITS, help="how images become square")


def _add_photos(parser: argparse.ArgumentParser, name: str) -> None:
    text = "folders, of which all images below them are taken, and files"
    parser.add_argument("photos", type=_path, nargs="+", metavar=name, help=text)


def _add_score(commands) -> None:
    parser = _command(commands, "score", score, "score new images with a saved detector")
    parser.add_argument("model", type=_path, metavar="MODEL", help="file of rank --save")
    _add_photos(parser, "NEW_PHOTOS")
    # Not the default of rank, whose report it would replace.
    parser.add_argument("--out", type=_path, default="report-new", help="folder for the report")


def _add_views(commands) -> None:
    parser = _command(commands, "views", views, "draw all views of an image")
    parser.add_argument("image", type=_path, metavar="IMAGE", help="file")
    parser.add_argument("--operations", default="RA+IA+PR", help="families of operations")
    parser.add_argument("--out", type=_path, default="views.png", help="PNG or PDF")


def _add_quarantine(commands) -> None:
    parser = _command(
        commands, "quarantine", set_aside, "move the most outlying images aside; deletes nothing"
    )
    parser.add_argument("report", type=_path, metavar="REPORT", help="folder of rank or score")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--top", type=int, metavar="N", help="how many to move")
    what.add_argument("--list", type=_path, metavar="FILE", help="move those the gallery saved")
    what.add_argument("--undo", action="store_true", help="move all of them back")


def _command(commands, name: str, do, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(do=do)
    return parser


def _path(text: str) -> Path:
    if not text:  # as of a variable of the shell that is not set; Path would take it for "."
        raise argparse.ArgumentTypeError("an empty name: name a file or folder")
    return Path(text)


def _contamination(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        _ignore(self.file)


def _ignore(stream) -> None:
    """For a stream whose reader has closed it, having read enough: the work goes on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = parse_args(arguments)
    console = _Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_: console.print(f"warning: {text}")
            return args.do(args, console)
    except quarantine.PartlyMoved as error:
        _list_files(console, "moved", error.moved)
        console.print(f"error: {error}", style="red")
        return 3
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red")
        return 2
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        console.print(
            "error: not enough memory: give fewer images, or a smaller --image-size or --network",
            style="red",
        )
        return 2
    except KeyboardInterrupt:
        console.print("Stopped. What quarantine had moved, quarantine --undo moves back.")
        return 130


# --- rank and score ----------------------------------------------------------------------------


def rank(args: argparse.Namespace, console: Console) -> int:
    detector = E3Outlier(
        contamination=args.contamination,
        evidence=args.evidence,
        network=args.network,
        operations=args.operations,
        steps="auto" if args.steps is None else args.steps,
        time_budget=args.time_budget,
        image_size=args.image_size,
        resize=args.resize,
        random_state=args.seed,
    )
    # All that can be wrong is told before hours of work, not after them.
    detector.check_parameters()
    if args.save:
        checkpoint.check_target(args.save)
    paths, closed = _find(args)
    _check_folder(args.out)
    runtime.prepare()
    runtime.devices()
    with _bars(console) as on_progress:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # said at the end
            detector.set_params(on_progress=on_progress).fit(paths)
        rows = _report(args, detector.ranking_, closed, on_progress)
        if args.save:
            checkpoint.save(detector, args.save)
    _sum_up(console, args.out, rows, closed + detector.health_.unreadable, detector.file_scale_)
    health = detector.health_
    console.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if args.save:
        console.print(f"The detector is in {args.save}")
    return _judge(console, detector)


def score(args: argparse.Namespace, console: Console) -> int:
    detector = checkpoint.load(args.model)
    paths, closed = _find(args)
    _check_folder(args.out)
    runtime.prepare()
    runtime.devices()
    with _bars(console) as on_progress:
        detector.on_progress = on_progress
        found = detector.rank(paths)
        rows = _report(args, found, closed, on_progress)
    _sum_up(console, args.out, rows, closed + found.unreadable, found.file_scale)
    return _judge(console, detector)


def _judge(console: Console, detector: E3Outlier) -> int:
    """Prints a detector's warning, if it has one; returns the exit code."""
    warning = detector.health_.warning
    if warning:
        console.print(f"warning: {warning}", style="yellow")
    return 1 if warning else 0


def _find(args: argparse.Namespace) -> tuple[list[Path], list[reading.Unreadable]]:
    """The images of PHOTOS, by absolute paths, each once, without those in a quarantine."""
    paths, closed = {}, []
    for photos in args.photos:
        found, left_out = [photos.absolute()], []
        if not photos.is_file():
            found, left_out = reading.find_files(photos.absolute())
        paths |= dict.fromkeys(found)
        closed += left_out
    return list(paths), closed


@contextlib.contextmanager
def _bars(console: Console) -> Iterator:
    """Shows a progress bar per stage on a terminal, and one line per stage elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    tasks = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
                if not console.is_terminal:
                    unit = "steps" if what == "training" else "images"
                    console.print(f"{what}: {total} {unit}")
            progress.update(tasks[what], completed=done)

        yield show


def _check_folder(folder: Path) -> None:
    """Makes the folder for the report."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the report: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to: choose another folder with --out")


def _report(args, found: ranking.Ranking, closed: list, on_progress) -> list[dict]:
    """Writes the tables and the gallery; returns the rows of the first."""
    found = found._replace(unreadable=closed + found.unreadable)
    rows = ranking.write_tables(args.out, found)
    title = f"e3jax: {', '.join(photos.absolute().name for photos in args.photos[:3])}"
    gallery.write_gallery(args.out / _GALLERY, found, title=title, on_progress=on_progress)
    return rows


def _sum_up(console: Console, out: Path, rows: list[dict], left_out, scale) -> None:
    outliers = [row for row in rows if row["outlier"]]
    lines = [f"{row['score']:.3f}  {printable(row['path'])}" for row in outliers[:_SHOWN]]
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError:
        _ignore(sys.stdout)
    if len(outliers) > _SHOWN:
        console.print(f"... and {len(outliers) - _SHOWN} more")
    console.print(f"{len(outliers)} of {len(rows)} images do not seem to belong, scores in nats")
    unreadable = [entry for entry in left_out if not isinstance(entry, reading.NotLookedAt)]
    for path, reason in unreadable[:_SHOWN]:
        console.print(f"left out: {printable(path)}: {reason}")
    if len(unreadable) > _SHOWN:
        console.print(f"... and {len(unreadable) - _SHOWN} more files")
    for note in [entry.reason for entry in left_out if entry not in unreadable] + scale.notes:
        console.print(printable(note))
    console.print(f"The report is in {out}/: open {_GALLERY}, or read {ranking.SCORES}")


# --- views -------------------------------------------------------------------------------------


def views(args: argparse.Namespace, console: Console) -> int:
    bank = reading.read_files([args.image], least=0).bank
    operation_set = operations.operation_set(args.operations)
    try:
        sheet.plot_views(args.out, bank.images[0], operation_set)
    except ModuleNotFoundError as error:
        raise InputError(f"views needs {error.name}: pip install e3jax[report]") from error
    console.print(f"{len(operation_set)} views in {args.out}")
    return 0


# --- quarantine --------------------------------------------------------------------------------


def set_aside(args: argparse.Namespace, console: Console) -> int:
    if args.undo:
        console.print(f"{_count(quarantine.undo(args.report))} moved back")
        return 0
    moved = quarantine.move_aside(args.report, _chosen(args))
    folder = args.report.absolute() / quarantine.FOLDER
    console.print(f"{_count(moved)} moved to {folder}; --undo moves them back")
    _list_files(console, "stays, since other files of its name stay", moved.shared)
    return 0


def _count(moved: quarantine.Moved) -> str:
    along = f", with {len(moved.sidecars)} sidecars," if moved.sidecars else ""
    return f"{len(moved.pictures)} files{along}"


def _list_files(console: Console, what: str, paths: Sequence[str]) -> None:
    for path in paths[:_SHOWN]:
        console.print(f"{what}: {printable(path)}")
    if len(paths) > _SHOWN:
        console.print(f"... and {len(paths) - _SHOWN} more files")


def _chosen(args: argparse.Namespace) -> list[str]:
    if args.top is not None and args.top < 1:
        raise InputError(f"--top is {args.top}, expected at least 1")
    ranked = [row["path"] for row in ranking.read_scores(args.report)]
    if not all(ranked) or any(path.isdecimal() for path in ranked):
        raise InputError(
            f"{args.report} ranks images of an array by their numbers, not files: rank a folder "
            "(nothing was moved)"
        )
    if args.top is not None:
        return ranked[: args.top]
    text = args.list.read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = filter(None, text.split("\n"))
    # The gallery quotes what would not fit on a line.
    listed = [json.loads(line) if line.startswith('"') else line for line in lines]
    strange = set(listed) - set(ranked)
    if strange:
        raise InputError(
            f"{args.list} lists {printable(min(strange))}, which is not in {args.report}: give "
            "a selection from the same report (nothing was moved)"
        )
    return list(dict.fromkeys(listed))


if __name__ == "__main__":
    sys.exit(main())

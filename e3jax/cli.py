"""The command line: finds the images of a folder that do not belong.

Exit codes: 0 done; 1 done, but the scores are likely to mean little (a warning says why); 2 bad
input or arguments, nothing was changed; 3 quarantine moved some files, which are listed, and not
the others (what it had moved aside, --undo moves back); 4 a fault of e3jax, whose traceback is in a
file that is named; 130 stopped by Ctrl-C (--undo likewise).
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from e3jax import (
    bank,
    checkpoint,
    engines,
    exits,
    gallery,
    locks,
    operations,
    quarantine,
    ranking,
    reading,
    runtime,
    sheet,
)
from e3jax.errors import InputError
from e3jax.estimator import EVIDENCE, LARGE, E3Outlier
from e3jax.files import FileState, printable
from e3jax.images import FITS
from e3jax.ranking import HealthWarning
from e3jax.version import VERSION

_GALLERY, _WORK = "gallery.html", "unfinished"
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
    _add_bank(commands)
    _add_score(commands)
    _add_views(commands)
    _add_quarantine(commands)
    args = parser.parse_args(arguments)
    if getattr(args, "ray_address", None) and args.engine != "ray":
        parser.error("--ray-address needs --engine ray")
    return args


def _add_rank(commands) -> None:
    parser = _command(commands, "rank", rank, "learn a folder of images and rank its images")
    add = parser.add_argument
    _add_photos(parser, "PHOTOS")
    add("--out", type=_path, default="report", help="folder for the report")
    add("--contamination", type=_contamination, default=0.1, help="share of outliers, or auto")
    add("--save", type=_path, metavar="MODEL", help="save the trained detector to this file")
    add("--seed", type=int, default=0, help="seed of all randomness")
    add("--time-budget", type=_seconds, metavar="TIME", help="approximate, e.g. 90s, 5m or 1h")
    add("--steps", type=int, help="length of the training (default: by the images' number)")
    add("--evidence", default="all", choices=EVIDENCE, help="network: the paper's method alone")
    add("--network", default="auto", help="e.g. wrn-10-4 (auto: by the hardware)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    add("--score-operations", type=int, metavar="N", help="how many score (default: by the images)")
    _add_shape(parser)
    _add_engine(parser)
    _add_shard(parser)


def _add_bank(commands) -> None:
    text = "read folders of images once, or join banks, into a bank that rank and score take"
    parser = _command(commands, "bank", make_bank, text)
    _add_photos(parser, "PHOTOS")
    parser.add_argument("--out", type=_path, default="bank", help="folder for the bank")
    _add_shape(parser)
    _add_engine(parser)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-size", type=int, default=32, help="side to which images are resized, even")
    add("--resize", default="squash", choices=FITS, help="how images become square")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where large work is done")
    add("--ray-address", help="of the cluster (default: RAY_ADDRESS, or one on this machine)")


def _add_shard(parser: argparse.ArgumentParser) -> None:
    text = "score a part of a bank alone"
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help=text)


def _add_photos(parser: argparse.ArgumentParser, name: str) -> None:
    text = "folders, of which all images below them are taken, and files"
    parser.add_argument("photos", type=_path, nargs="+", metavar=name, help=text)


def _add_score(commands) -> None:
    parser = _command(commands, "score", score, "score new images with a saved detector")
    parser.add_argument("model", type=_path, metavar="MODEL", help="file of rank --save")
    _add_photos(parser, "NEW_PHOTOS")
    # Not the default of rank, whose report it would replace.
    parser.add_argument("--out", type=_path, default="report-new", help="folder for the report")
    _add_engine(parser)
    _add_shard(parser)


def _add_views(commands) -> None:
    parser = _command(commands, "views", views, "draw all views of an image")
    parser.add_argument("image", type=_path, metavar="IMAGE", help="file")
    parser.add_argument("--operations", default="RA+IA+PR", help="families of operations")
    parser.add_argument(
        "--out", type=_path, default="views.png", help="file to draw to: .png, .pdf or .svg"
    )


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
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(do=do)
    return parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of each option that has one, unless its text does."""

    def _get_help_string(self, action: argparse.Action) -> str:
        says_it = action.default is None or action.default is False or "default" in action.help
        return action.help if says_it else super()._get_help_string(action)


def _path(text: str) -> Path:
    if not text:  # as of a variable of the shell that is not set; Path would take it for "."
        raise argparse.ArgumentTypeError("an empty name: name a file or folder")
    path = Path(text)
    # The shell leaves "~" as it is in --out=~/report.
    with contextlib.suppress(RuntimeError):  # no such home
        return path if os.path.lexists(path) else path.expanduser()
    return path


def _contamination(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        message = f"{text!r} is no share of outliers: write 0.1 or auto"
        raise argparse.ArgumentTypeError(message) from None


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 1/3, 2/3 or 3/3")
    return int(found[1]), int(found[2])


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
        with warnings.catch_warnings(), _logged(console):
            warnings.showwarning = lambda text, *_: console.print(f"warning: {text}")
            return args.do(args, console)
    except KeyboardInterrupt:
        console.print("Stopped. What quarantine had moved, quarantine --undo moves back.")
        return exits.STOPPED
    except Exception as error:
        sentence, code = _explained(error)
        if isinstance(error, quarantine.PartlyMoved):
            _list_files(console, "moved", error.moved)
        console.print(f"error: {sentence}", style="red")
        return code


@contextlib.contextmanager
def _logged(console: Console) -> Iterator[None]:
    """Shows what the library reports meanwhile."""
    logger, handler = logging.getLogger("e3jax"), logging.Handler()
    handler.emit = lambda record: console.print(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one sentence, and the exit code."""
    if isinstance(error, quarantine.PartlyMoved):
        return str(error), exits.PARTLY
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_of_input(error)):
        return str(error), exits.BAD_INPUT
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        text = "not enough memory: give fewer images, or a smaller --image-size or --network"
        return text, exits.BAD_INPUT
    return exits.crash(error)


def _is_of_input(error: ValueError) -> bool:
    """Whether e3jax raised it, not a library that was called in a way that it does not take."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parent in Path(last[0].f_code.co_filename).parents


# --- rank and score ----------------------------------------------------------------------------


class _Source(NamedTuple):
    """What is ranked: files, or a bank with its thumbnails."""

    X: list[Path] | Path
    closed: list[reading.Unreadable]
    thumbnails: Sequence[bytes] = ()
    pictures: Any = None

    @property
    def is_bank(self) -> bool:
        return isinstance(self.X, Path)


def rank(args: argparse.Namespace, console: Console) -> int:
    detector = E3Outlier(
        contamination=args.contamination,
        evidence=args.evidence,
        network=args.network,
        operations=args.operations,
        steps="auto" if args.steps is None else args.steps,
        score_operations="auto" if args.score_operations is None else args.score_operations,
        time_budget=args.time_budget,
        image_size=args.image_size,
        resize=args.resize,
        random_state=args.seed,
    )
    # All that can be wrong is told before hours of work, not after them.
    detector.check_parameters()
    if args.save:
        checkpoint.check_target(args.save)
    found = _find(args)
    runtime.prepare()
    runtime.devices()
    with _report_folder(args, found), _bars(console) as on_progress:
        found = _on_disk(found, args, args.image_size, args.resize, console, on_progress)
        detector.set_params(on_progress=on_progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # said at the end
            if not found.is_bank:
                detector.fit(found.X)
            elif not _fit_in_parts(detector, found, args):
                return _say_part(console, args)
        ranked = detector.ranking_
        _report(args, ranked, found, on_progress)
        if args.save:
            checkpoint.save(detector, args.save)
        _forget_work(args, detector, console)
    _sum_up(console, args.out, ranked, found.closed)
    health = detector.health_
    console.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if args.save:
        console.print(f"The detector is in {args.save}")
    return _judge(console, detector)


def _fit_in_parts(detector: E3Outlier, found: _Source, args: argparse.Namespace) -> bool:
    """Fits on a bank, keeping what is done beside the report; returns whether all of it is."""
    how = _shared(args)
    if importlib.util.find_spec("orbax"):
        how["checkpoint"] = checkpoint.TrainCheckpoint
    return detector.fit_in(args.out / _WORK, found.X, **how)


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    """How the scoring of a bank is shared, for ``fit_in`` and ``rank_in``."""
    how = {"shard": args.shard}
    if args.engine == "ray":
        how["each"] = engines.on_ray(args.ray_address)
    return how


def _say_part(console: Console, args: argparse.Namespace) -> int:
    part, parts = args.shard
    console.print(f"Part {part} of {parts} is done; whichever --shard ends last writes the report")
    return 0


def _forget_work(args: argparse.Namespace, detector: E3Outlier, console: Console) -> None:
    """Deletes what was kept beside a report, unless other shards may still read it."""
    if args.shard == (1, 1):
        detector.forget_work()
        if (args.out / _WORK).is_dir():
            console.print(
                f"{args.out / _WORK} has work of other options or versions, which was not finished "
                "and is not needed for this report"
            )


def score(args: argparse.Namespace, console: Console) -> int:
    detector = checkpoint.load(args.model)
    found = _find(args)
    runtime.prepare()
    runtime.devices()
    used = (runtime.describe_devices(), detector.network_, detector.precision_)
    console.print(f"Device: {', '.join(used)}")
    with _report_folder(args, found), _bars(console) as on_progress:
        shape = (detector.image_size, detector.resize)
        found = _on_disk(found, args, *shape, console, on_progress)
        detector.on_progress = on_progress
        if not found.is_bank:
            ranked = detector.rank(found.X)
        elif not (ranked := detector.rank_in(args.out / _WORK, found.X, **_shared(args))):
            return _say_part(console, args)
        _report(args, ranked, found, on_progress)
        _forget_work(args, detector, console)
    _sum_up(console, args.out, ranked, found.closed)
    return _judge(console, detector)


def make_bank(args: argparse.Namespace, console: Console) -> int:
    if len(args.photos) > 1 and all(map(bank.is_bank, args.photos)):
        made = bank.join(args.out, args.photos)
    else:
        found = _find(args)
        if found.is_bank:
            raise InputError(f"{found.X} is a bank already: give folders of images")
        with _bars(console) as on_progress:
            made = _write_bank(args.out, found, args, args.image_size, args.resize, on_progress)
    _say_left_out(console, made.unreadable, made.scale)
    console.print(f"{len(made.bank.images)} images in {args.out}: e3jax rank {args.out}")
    return 0


def _on_disk(found: _Source, args, side: int, fit: str, console, on_progress) -> _Source:
    """A source as a bank if it is one, or large: then one is made beside the report."""
    if found.is_bank:
        folder, opened = found.X, bank.open_bank(found.X, side, fit)
    else:
        has_pyarrow = importlib.util.find_spec("pyarrow") is not None
        if len(found.X) <= LARGE or not has_pyarrow:
            return found
        folder = args.out / "bank"
        console.print(
            f"{len(found.X)} files are many: they are read into {folder} first, which may be "
            "ranked again instead of them"
        )
        opened = _write_bank(folder, found, args, side, fit, on_progress)
    pictures = opened.bank.images if opened.bank.ids.dtype.kind == "i" else None
    return _Source(folder, [], opened.thumbnails, pictures)


def _write_bank(folder: Path, found: _Source, args, side: int, fit: str, on_progress):
    total = len(found.X)
    on_ray = getattr(args, "engine", "local") == "ray"
    return bank.write(
        folder,
        found.X,
        side,
        fit,
        found.closed,
        lambda done: on_progress("reading", done, total),
        engines.on_ray(args.ray_address) if on_ray else engines.processes,
    )


def _judge(console: Console, detector: E3Outlier) -> int:
    """Prints a detector's warning, if it has one; returns the exit code."""
    warning = detector.health_.warning
    if warning:
        console.print(f"warning: {warning}", style="yellow")
    return 1 if warning else 0


def _find(args: argparse.Namespace) -> _Source:
    """The images of PHOTOS, by absolute paths, each once, without those in a quarantine."""
    paths, closed = {}, []
    if any(map(bank.is_bank, args.photos)):
        if len(args.photos) > 1:
            raise InputError(
                "a bank is taken alone: give one, or folders and files of images; e3jax bank "
                "joins several banks to one"
            )
        return _Source(args.photos[0].absolute(), [])
    if getattr(args, "shard", (1, 1)) != (1, 1):
        raise InputError("--shard needs a bank, which all of them can read: run e3jax bank first")
    for photos in args.photos:
        found, left_out = [photos.absolute()], []
        if not photos.is_file():
            found, left_out = reading.find_files(photos.absolute())
        paths |= dict.fromkeys(found)
        closed += left_out
    return _Source(list(paths), closed)


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
            exits.check_interrupts()
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
                if not console.is_terminal:
                    unit = "steps" if what == "training" else "images"
                    console.print(f"{what}: {total} {unit}")
            progress.update(tasks[what], completed=done)

        yield show


@contextlib.contextmanager
def _report_folder(args: argparse.Namespace, found: _Source) -> Iterator[None]:
    """The folder for the report, where nothing of the user's is replaced, for this command only."""
    folder = args.out
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the report: choose another")
    ranking.check_outputs(folder, found.is_bank or len(found.X) > LARGE)
    gallery.check_output(folder / _GALLERY)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to: choose another folder with --out")
    # Shards share a folder; all other commands that use it are told to wait.
    with locks.held(folder, args.command, shared=args.shard != (1, 1)):
        yield


def _report(args, ranked: ranking.Ranking, found: _Source, on_progress) -> None:
    """Writes the tables and the gallery."""
    ranked = ranked._replace(unreadable=found.closed + ranked.unreadable)
    ranking.write_tables(args.out, ranked)
    if found.is_bank:
        ranking.write_parquet(args.out, ranked)
    title = f"e3jax: {', '.join(photos.absolute().name for photos in args.photos[:3])}"
    gallery.write_gallery(
        args.out / _GALLERY, ranked, found.pictures, title, on_progress, found.thumbnails
    )


def _sum_up(console: Console, out: Path, ranked: ranking.Ranking, closed) -> None:
    count = int(ranked.is_outlier.sum())
    first = ranked.order[: min(count, _SHOWN)]
    pairs = zip(ranked.scores[first], ranked.paths[first], strict=True)
    lines = [f"{score:.3f}  {printable(str(path))}\n" for score, path in pairs]
    try:
        print("".join(lines), end="", flush=True)
    except BrokenPipeError:
        _ignore(sys.stdout)
    if count > _SHOWN:
        console.print(f"... and {count - _SHOWN} more")
    total = len(ranked.scores)
    console.print(f"{count} of {total} images do not seem to belong, scores in nats")
    _say_left_out(console, closed + ranked.unreadable, ranked.file_scale)
    console.print(f"The report is in {out}/: open {_GALLERY}, or read {ranking.SCORES}")


def _say_left_out(console: Console, left_out, scale) -> None:
    unreadable = [entry for entry in left_out if not isinstance(entry, reading.NotLookedAt)]
    _list_files(console, "left out", [f"{path}: {reason}" for path, reason in unreadable])
    for note in [entry.reason for entry in left_out if entry not in unreadable] + scale.notes:
        console.print(printable(note))


# --- views -------------------------------------------------------------------------------------


def views(args: argparse.Namespace, console: Console) -> int:
    sheet.check_output(args.out, [args.image])
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
    try:
        if args.undo:
            console.print(f"{_count(quarantine.undo(args.report))} moved back")
            return 0
        moved = quarantine.move_aside(args.report, _chosen(args))
    except (quarantine.NotMoved, quarantine.PartlyMoved) as error:
        if len(error.left) > 1:  # else the error itself says it
            _list_files(console, "stays", [f"{path} {why}" for path, why in error.left.items()])
        raise
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


def _chosen(args: argparse.Namespace) -> dict[str, FileState]:
    """Files to move, and what each was when it was ranked."""
    if args.top is not None:
        if args.top < 1:
            raise InputError(f"--top is {args.top}, expected at least 1")
        return ranking.first_files(args.report, args.top)
    text = args.list.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return ranking.listed_files(args.report, map(_unquoted, filter(None, text.split("\n"))))


def _unquoted(line: str) -> str:
    """A line of a selection; the gallery quotes names that would not fit on one."""
    try:
        name = json.loads(line) if line.startswith('"') else line
        return name if isinstance(name, str) else line
    except json.JSONDecodeError:
        return line


if __name__ == "__main__":
    sys.exit(main())

"""The command line: finds the images of a folder that do not belong.

Exit codes: 0 done; 1 done, but the scores are likely to mean little (a warning says why); 2 bad
input or arguments, nothing was changed; 130 stopped by Ctrl-C (what quarantine had moved, --undo
moves back).
"""

import argparse
import contextlib
import csv
import importlib.metadata
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from e3jax import checkpoint, files, gallery, images, operations, runtime, sheet
from e3jax.estimator import E3Outlier, HealthWarning, mean_entropy
from e3jax.images import InputError

_SCORES, _GALLERY, _MANIFEST = "scores.csv", "gallery.html", "manifest.json"
_SHOWN = 20


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="e3jax",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"e3jax {importlib.metadata.version('e3jax')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_rank(commands)
    _add_score(commands)
    _add_views(commands)
    _add_quarantine(commands)
    return parser.parse_args(arguments)


def _add_rank(commands) -> None:
    parser = _command(commands, "rank", rank, "learn a folder of images and rank its images")
    add = parser.add_argument
    add("photos", type=Path, metavar="PHOTOS", help="folder; all images below it are taken")
    add("--out", type=Path, default="report", help="folder for the report")
    add("--contamination", type=_contamination, default=0.1, help="share of outliers, or auto")
    add("--save", type=Path, metavar="MODEL", help="keep the trained detector in this file")
    add("--seed", type=int, default=0, help="of all randomness")
    add("--time-budget", type=_seconds, metavar="TIME", help="about, e.g. 90s, 5m or 1h")
    add("--steps", type=int, help="length of the training (default: by the number of images)")
    add("--network", default="auto", help="e.g. wrn-10-4 (auto: by the hardware)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    add("--image-size", type=int, default=32, help="side to which images are resized, even")
    add("--resize", default="squash", choices=images.FITS, help="how images become square")


def _add_score(commands) -> None:
    parser = _command(commands, "score", score, "score new images with a detector that was kept")
    parser.add_argument("model", type=Path, metavar="MODEL", help="file of rank --save")
    parser.add_argument("photos", type=Path, metavar="NEW_PHOTOS", help="folder")
    # Another one than rank's, which it would replace.
    parser.add_argument("--out", type=Path, default="report-new", help="folder for the report")


def _add_views(commands) -> None:
    parser = _command(commands, "views", views, "draw all views of an image on a sheet")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="file")
    parser.add_argument("--operations", default="RA+IA+PR", help="families of operations")
    parser.add_argument("--out", type=Path, default="views.png", help="PNG or PDF")


def _add_quarantine(commands) -> None:
    parser = _command(
        commands, "quarantine", quarantine, "move the most outlying images aside; deletes nothing"
    )
    parser.add_argument("report", type=Path, metavar="REPORT", help="folder of rank or score")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--top", type=int, metavar="N", help="move so many")
    what.add_argument("--list", type=Path, metavar="FILE", help="move those the gallery saved")
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


def _contamination(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    asked = parse_arguments(arguments)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        return asked.do(asked, console)
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


def rank(asked: argparse.Namespace, console: Console) -> int:
    _check_folder(asked.out)
    paths, closed = _find(asked)
    runtime.prepare()
    with _bars(console) as on_progress:
        detector = E3Outlier(
            contamination=asked.contamination,
            network=asked.network,
            operations=asked.operations,
            steps="auto" if asked.steps is None else asked.steps,
            time_budget=asked.time_budget,
            image_size=asked.image_size,
            resize=asked.resize,
            random_state=asked.seed,
            on_progress=on_progress,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # said at the end
            detector.fit(paths)
        if asked.save:
            checkpoint.save(detector, asked.save)
        entropies, paths = detector.view_entropies_, detector.paths_
        unreadable = closed + detector.health_.unreadable
        rows = _write_report(asked, detector, paths, entropies, unreadable)
    health = detector.health_
    _sum_up(console, asked.out, rows, unreadable)
    console.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if asked.save:
        console.print(f"The detector is in {asked.save}")
    if health.warning:
        console.print(f"warning: {health.warning}", style="yellow")
    return 1 if health.warning else 0


def score(asked: argparse.Namespace, console: Console) -> int:
    _check_folder(asked.out)
    runtime.prepare()
    detector = checkpoint.load(asked.model)
    paths, closed = _find(asked)
    with _bars(console) as on_progress:
        detector.on_progress = on_progress
        bank, unreadable = detector.read(paths)
        entropies = -detector.view_scores(bank.images).ne
        unreadable = closed + unreadable
        rows = _write_report(asked, detector, bank.ids, entropies, unreadable)
    _sum_up(console, asked.out, rows, unreadable)
    if detector.health_.warning:
        console.print(f"warning: {detector.health_.warning}", style="yellow")
    return 1 if detector.health_.warning else 0


def _find(asked: argparse.Namespace) -> tuple[list[Path], list[images.Unreadable]]:
    """The images below PHOTOS, by absolute paths, without those that are in quarantine."""
    paths, closed = images.find_files(asked.photos.absolute())
    aside = asked.out.absolute() / "quarantine"
    return [path for path in paths if aside not in path.parents], closed


@contextlib.contextmanager
def _bars(console: Console) -> Iterator:
    """A bar for reading, training and scoring each, on a terminal; elsewhere a line each."""
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
    """Complains before hours of work, not after them."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the report: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} may not be written to: choose another folder with --out")


def _write_report(asked, detector: E3Outlier, paths, entropies, unreadable) -> list[dict]:
    """Writes the tables and the gallery; returns the rows of the first."""
    scores = mean_entropy(entropies)
    rows = _write_tables(asked.out, paths, scores, scores > detector.threshold_, unreadable)
    gallery.write_gallery(
        asked.out / _GALLERY,
        detector,
        paths,
        entropies,
        title=f"e3jax: {asked.photos.absolute().name}",
        on_picture=lambda done, total: detector.on_progress("gallery", done, total),
    )
    return rows


def _write_tables(out: Path, paths, scores, is_outlier, unreadable) -> list[dict]:
    """Writes scores.csv and scores.jsonl, the most outlying first, and unreadable.csv."""
    order = (-scores).argsort(kind="stable")
    rows = [
        {"rank": r, "path": str(paths[i]), "score": float(scores[i]), "outlier": int(is_outlier[i])}
        for r, i in enumerate(order, start=1)
    ]
    _write(out / _SCORES, _csv(("rank", "path", "score", "outlier"), (r.values() for r in rows)))
    _write(out / "scores.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    _write(out / "unreadable.csv", _csv(("path", "reason"), unreadable))
    return rows


def _sum_up(console: Console, out: Path, rows: list[dict], unreadable) -> None:
    outliers = [row for row in rows if row["outlier"]]
    for row in outliers[:_SHOWN]:
        print(f"{row['score']:.3f}  {_printable(row['path'])}")
    if len(outliers) > _SHOWN:
        console.print(f"... and {len(outliers) - _SHOWN} more")
    console.print(f"{len(outliers)} of {len(rows)} images do not seem to belong, scores in nats")
    for path, reason in unreadable[:_SHOWN]:
        console.print(f"left out: {_printable(path)}: {reason}")
    if len(unreadable) > _SHOWN:
        console.print(f"... and {len(unreadable) - _SHOWN} more files")
    console.print(f"The report is in {out}/: open {_GALLERY}, or read {_SCORES}")


def _csv(columns: Sequence[str], rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    """Names of files may hold bytes that are no UTF-8."""
    content = text.encode("utf-8", "surrogateescape")
    files.write_atomically(path, lambda file: file.write(content))


def _printable(path) -> str:
    """A file's name on one line, whatever is in it."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


# --- views -------------------------------------------------------------------------------------


def views(asked: argparse.Namespace, console: Console) -> int:
    bank, unreadable = images.read_files([asked.image], least=0)
    operation_set = operations.operation_set(asked.operations)
    try:
        sheet.plot_views(asked.out, bank.images[0], operation_set)
    except ModuleNotFoundError as error:
        raise InputError(f"views needs {error.name}: pip install e3jax[report]") from error
    console.print(f"{len(operation_set)} views in {asked.out}")
    return 0


# --- quarantine --------------------------------------------------------------------------------


def quarantine(asked: argparse.Namespace, console: Console) -> int:
    folder = asked.report.absolute() / "quarantine"
    manifest = folder / _MANIFEST
    moves = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else []
    if asked.undo:
        return _undo(moves, folder, console)
    paths = _chosen(asked)
    aside = {move["from"] for move in moves if os.path.lexists(move["to"])}
    # Numbered, since files of one name may come from several folders.
    new = [
        {"from": path, "to": str(folder / f"{number:05d}-{Path(path).name}")}
        for number, path in enumerate((p for p in paths if p not in aside), start=len(moves) + 1)
    ]
    for move in new:
        if not os.path.lexists(move["from"]):
            raise InputError(
                f"{_printable(move['from'])} is not there any more: rank the folder again (nothing "
                "was moved)"
            )
    _check_free([move["to"] for move in new])
    folder.mkdir(exist_ok=True)
    # First: whatever stops the moves below, undo knows them.
    _write(manifest, json.dumps(moves + new, indent=1))
    for move in new:
        shutil.move(move["from"], move["to"])
    console.print(f"{len(new)} files moved to {folder}; --undo moves them back")
    return 0


def _chosen(asked: argparse.Namespace) -> list[str]:
    if asked.top is not None and asked.top < 1:
        raise InputError(f"--top is {asked.top}, expected at least 1")
    ranked = [row["path"] for row in _read_scores(asked.report / _SCORES)]
    if asked.top is not None:
        return ranked[: asked.top]
    lines = asked.list.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    # The gallery quotes what would not fit on a line.
    listed = [json.loads(line) if line.startswith('"') else line for line in lines if line]
    strange = set(listed) - set(ranked)
    if strange:
        raise InputError(
            f"{asked.list} lists {_printable(min(strange))}, which is not in {asked.report}: give "
            "a selection from the same report (nothing was moved)"
        )
    return list(dict.fromkeys(listed))


def _undo(moves: list[dict[str, str]], folder: Path, console: Console) -> int:
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
    console.print(f"{len(back)} files moved back")
    return 0


def _check_free(paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise InputError(
                f"there is another file at {_printable(path)}: move it away first (nothing was "
                "moved)"
            )


def _read_scores(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a report: run e3jax rank first")
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"rank", "path", "score"} <= rows[0].keys():
        raise InputError(f"{path} is no report of e3jax: run e3jax rank anew")
    return rows


if __name__ == "__main__":
    sys.exit(main())

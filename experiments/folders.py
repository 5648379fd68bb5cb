"""Measures `e3jax rank` as a person meets it: on folders of image files, by its own command.

Cases: photos (1,000 photos of a class of CIFAR-10 and 50 of others), few (57 of a class of
Fashion-MNIST and 3 others), and limits (50 to 5,000 images, 1 to 30 % outliers, and one to three
kinds of inliers). Labels make the folders and judge the ranking; the command sees files.
A row is written after each folder, and rows that are there are not measured again.
"""

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import progress
import sweep
from PIL import Image
from rich.console import Console

from e3jax import aupr_out, auroc, datasets, runtime

COLUMNS = (
    "case,dataset,source,inlier_classes,n_inliers,n_outliers,seed,auroc,aupr_out,precision,"
    "found_in_twice,seconds,warned,cores,versions,commit"
).split(",")
# Images a second on this kind of machine, for the estimate alone: training dominates.
_SECONDS_AT_LEAST, _SECONDS_AN_IMAGE = 40, 0.1

CASES = ("photos", "few", "limits")
LIMITS = {"mnist": (4, 0, 8), "fashion_mnist": (7, 8, 1)}
# Kinds of inliers, inliers, outliers: one thing at a time differs from the first.
SIZES = ((1, 450, 50), (2, 450, 50), (3, 450, 50), (1, 495, 5), (1, 350, 150), (1, 45, 5))
LARGE = (1, 4500, 500)


class Folder(NamedTuple):
    """A folder to be made: so many images of the inliers' classes, the rest from all others."""

    case: str
    dataset: str
    inlier_classes: tuple[int, ...]
    n_inliers: int
    n_outliers: int
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """What a row of results says of it."""
        values = [*self]
        values[2] = "+".join(map(str, self.inlier_classes))
        return tuple(map(str, values))


def plan(cases: Sequence[str]) -> list[Folder]:
    """Classes were chosen before any result was seen."""
    found = []
    if "photos" in cases:
        found += [Folder("photos", "cifar10", (c,), 1000, 50, 0) for c in (0, 4, 8)]
    if "few" in cases:
        few = itertools.product((7, 8, 1), range(5))
        found += [Folder("few", "fashion_mnist", (c,), 57, 3, seed) for c, seed in few]
    if "limits" in cases:
        for seed, (dataset, classes) in itertools.product(range(3), LIMITS.items()):
            for kinds, inliers, outliers in SIZES if seed else [*SIZES, LARGE]:
                found.append(Folder("limits", dataset, classes[:kinds], inliers, outliers, seed))
    return found


def make(folder: Folder, data: datasets.Dataset, path: Path) -> dict[str, bool]:
    """Writes the images as PNG files of meaningless names; returns {path: is it an outlier}."""
    random = np.random.default_rng([folder.seed, *folder.inlier_classes])
    order = datasets.content_order(data.images, data.labels)
    belongs = np.isin(data.labels[order], folder.inlier_classes)
    inliers = random.choice(order[belongs], folder.n_inliers, replace=False)
    outliers = random.choice(order[~belongs], folder.n_outliers, replace=False)
    chosen = random.permutation(np.concatenate([inliers, outliers]))
    is_outlier = {}
    for number, i in enumerate(chosen):
        file = path / f"{number:05d}.png"
        Image.fromarray(data.images[i].squeeze()).save(file)
        is_outlier[str(file)] = bool(data.labels[i] not in folder.inlier_classes)
    return is_outlier


def measure(folder: Folder, data: datasets.Dataset, options: Sequence[str] = ()) -> dict:
    """The row of one folder, ranked with these options besides the defaults.

    ``precision`` is the share of outliers among as many of the first as there are outliers,
    ``found_in_twice`` the share of outliers that are among twice as many. ``seconds`` are those of
    the whole command.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos, report = Path(scratch, "photos"), Path(scratch, "report")
        photos.mkdir()
        is_outlier = make(folder, data, photos)
        command = [sys.executable, "-m", "e3jax", "rank", str(photos), "--out", str(report)]
        command += ["--seed", str(folder.seed), *options]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1):
            raise ValueError(f"e3jax rank failed: {done.stderr.strip()}")
        with open(report / "scores.csv", newline="", encoding="utf-8") as file:
            ranked = list(csv.DictReader(file))
    truth = np.array([is_outlier[row["path"]] for row in ranked])
    normality = -np.array([float(row["score"]) for row in ranked])
    m = folder.n_outliers
    return {
        "case": folder.case,
        "dataset": folder.dataset,
        "source": data.source,
        "inlier_classes": folder.key[2],
        "n_inliers": folder.n_inliers,
        "n_outliers": m,
        "seed": folder.seed,
        "auroc": auroc(normality, truth),
        "aupr_out": aupr_out(normality, truth),
        "precision": truth[:m].mean(),
        "found_in_twice": truth[: 2 * m].sum() / m,
        "seconds": seconds,
        "warned": done.returncode,
        "cores": runtime.cores(),
    }


def read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key_of(row: dict) -> tuple[str, ...]:
    """Of the folder that a row is of."""
    return tuple(row[c] for c in ("case", "dataset", *COLUMNS[3:7]))


def table(rows: list[dict]) -> str:
    """Means over seeds, in percent."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[c] for c in COLUMNS[:6])].append(row)
    lines = [
        "| case | images | inliers' classes | inliers + outliers | folders | AUROC "
        "| outliers among the first n | among the first 2 n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (case, dataset, source, classes, inliers, outliers), group in groups.items():
        mean = {c: np.mean([float(row[c]) for row in group]) for c in COLUMNS[7:13]}
        jpeg = " (JPEG)" if "JPEG" in source else ""
        warned = f", {sum(int(row['warned']) for row in group)} ⚠" if mean["warned"] else ""
        n = int(outliers)
        lines.append(
            f"| {case} | {dataset}{jpeg} | {classes} | {inliers} + {n} | {len(group)}{warned} "
            f"| {100 * mean['auroc']:.1f} | {n * mean['precision']:.1f} of {n} "
            f"| {n * mean['found_in_twice']:.1f} of {n} |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--data-dir", help="folder of data prepared by TFDS")
    parser.add_argument("--out", type=Path, default=Path("runs/folders.csv"), help="the rows")
    parser.add_argument("--table", action="store_true", help="print the rows' table, do nothing")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    rows = read_rows(arguments.out)
    if arguments.table:
        print(table(rows))
        return 0
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        run(arguments, rows, console)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        console.print(f"Stopped: {len(rows)} rows are in {arguments.out}, the rest can follow.")
        return 130
    print(table(rows))
    return 0


def run(arguments: argparse.Namespace, rows: list[dict], console: Console) -> None:
    """Measures what is missing in ``rows``, and appends it."""
    known = {key_of(row) for row in rows}
    folders = [folder for folder in plan(arguments.cases) if folder.key not in known]
    work = [
        round(max(_SECONDS_AT_LEAST, _SECONDS_AN_IMAGE * (f.n_inliers + f.n_outliers)))
        for f in folders
    ]
    console.print(f"Plan: {len(folders)} folders, about {sum(work) / 60:.0f} minute(s)")
    loaded = {
        name: datasets.load(name, data_dir=arguments.data_dir, announce=console.print)
        for name in sorted({folder.dataset for folder in folders})
    }
    with progress.Meter(console, sum(work), len(folders), 1) as meter:
        for folder, seconds in zip(folders, work, strict=True):
            title = " ".join(folder.key)
            bar = meter.start(title, seconds)
            row = measure(folder, loaded[folder.dataset]) | sweep.provenance()
            rows.append(row)
            sweep.write_csv(arguments.out, rows, COLUMNS)
            bar.finish(f"{title}: AUROC {row['auroc']:.1%}, {row['seconds']:.0f} s", "")


if __name__ == "__main__":
    sys.exit(main())

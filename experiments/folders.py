"""Measures `e3jax rank` as a person meets it: on folders of image files, by its own command.

Cases: photos (1,000 photos of one class of CIFAR-10 and 50 of others), few (57 images of one class
of Fashion-MNIST and 3 others), limits (50 to 5,000 images, 1 to 30 % outliers, and one to three
kinds of inliers), large (500 and 5,000 photos of CIFAR-10, a tenth of them outliers), and clean
(500 digits of one kind and nothing else, where --contamination auto should find next to nothing).
Labels make the folders and judge the ranking; the command sees files alone. A row is written after
each folder; folders that have a row are not measured again.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import command
import numpy as np
import pandas as pd
from paper.tables import table, versions_note
from PIL import Image
from sweep import flags, store
from sweep.provenance import provenance

from e3jax import datasets, metrics
from e3jax.cli.main import path
from e3jax.devices import runtime

CASES = ("photos", "few", "limits", "large", "clean")
LIMITS = {"mnist": "408", "fashion_mnist": "781"}
# Kinds of inliers, inliers, outliers: one thing at a time differs from the first.
SIZES = ((1, 450, 50), (2, 450, 50), (3, 450, 50), (1, 495, 5), (1, 350, 150), (1, 45, 5))
LARGE = (1, 4500, 500)
_COLUMNS = ("case", "dataset", "source", "inlier_classes")  # that rows begin with


class Folder(NamedTuple):
    """A folder to be made: images of the inliers' classes, and outliers from all other classes."""

    case: str
    dataset: str
    inlier_classes: str  # joined by "+", as in the rows
    n_inliers: int
    n_outliers: int
    seed: int


def plan(cases: Sequence[str]) -> list[Folder]:
    """The folders of these cases. Classes were chosen before any result was seen."""
    folders = [Folder("photos", "cifar10", c, 1000, 50, 0) for c in "048"]
    folders += [Folder("few", "fashion_mnist", c, 57, 3, seed) for c in "781" for seed in range(5)]
    for seed, (dataset, classes) in itertools.product(range(3), LIMITS.items()):
        for kinds, inliers, outliers in SIZES if seed else [*SIZES, LARGE]:
            of_kinds = "+".join(classes[:kinds])
            folders.append(Folder("limits", dataset, of_kinds, inliers, outliers, seed))
    sizes = ((450, 50), (4500, 500))
    folders += [Folder("large", "cifar10", c, *size, 0) for c in "048" for size in sizes]
    folders += [Folder("clean", "mnist", str(c), 500, 0, 0) for c in range(10)]
    return [folder for folder in folders if folder.case in cases]


def make(folder: Folder, data: datasets.Dataset, path: Path) -> dict[str, bool]:
    """Writes the images as PNG files of meaningless names; returns {path: is it an outlier}."""
    classes = [int(c) for c in folder.inlier_classes.split("+")]
    random = np.random.default_rng([folder.seed, *classes])
    belongs = np.isin(data.labels, classes)
    inliers = random.choice(np.flatnonzero(belongs), folder.n_inliers, replace=False)
    outliers = random.choice(np.flatnonzero(~belongs), folder.n_outliers, replace=False)
    is_outlier = {}
    for number, i in enumerate(random.permutation(np.concatenate([inliers, outliers]))):
        file = path / f"{number:05d}.png"
        Image.fromarray(data.images[i].squeeze()).save(file)
        is_outlier[str(file)] = not belongs[i]
    return is_outlier


def measure(folder: Folder, data: datasets.Dataset, options: Sequence[str] = ()) -> dict:
    """The row of one folder, ranked with these options besides the defaults.

    With n outliers, ``precision`` is the share of outliers among the first n images, and
    ``found_in_twice`` the share of all outliers that are among the first 2 n; ``flagged`` is the
    share of images that are called outliers. ``seconds`` is the time of the whole command.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos, report = Path(scratch, "photos"), Path(scratch, "report")
        photos.mkdir()
        is_outlier = make(folder, data, photos)
        rank = [sys.executable, "-m", "e3jax", "rank", str(photos), "--out", str(report)]
        rank += ["--seed", str(folder.seed), *options]
        if not folder.n_outliers:
            rank += ["--contamination", "auto"]
        began = time.monotonic()
        done = subprocess.run(rank, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1):
            raise ValueError(f"e3jax rank failed: {done.stderr.strip()}")
        ranked = pd.read_csv(report / "scores.csv")
    truth, n = ranked["path"].map(is_outlier).to_numpy(), folder.n_outliers
    row = {"case": folder.case, "dataset": folder.dataset, "source": data.source}
    row |= folder._asdict() | dict.fromkeys(("auroc", "aupr_out", "precision", "found_in_twice"))
    if n:
        row |= {m: getattr(metrics, m)(-ranked["score"], truth) for m in ("auroc", "aupr_out")}
        row |= {"precision": truth[:n].mean(), "found_in_twice": truth[: 2 * n].sum() / n}
    row["flagged"] = ranked["outlier"].mean()
    return row | {"seconds": seconds, "warned": done.returncode, "cores": runtime.cores()}


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a file."""
    return pd.read_csv(path, dtype={"inlier_classes": str})


def missing(cases: Sequence[str], path: Path) -> list[Folder]:
    """The folders of these cases that have no row of these versions in a file."""
    rows = store.of_these_versions(store.rows_of(path))
    return store.without_row(plan(cases), rows, Folder._fields)


def as_table(rows: pd.DataFrame) -> str:
    """Means over seeds, of a folder's last row."""
    rows = store.latest(rows, Folder._fields)
    told_by, lines = "case,dataset,source,inlier_classes,n_inliers,n_outliers".split(","), []
    for (case, dataset, source, classes, inliers, n), group in rows.groupby(told_by, sort=False):
        warned = f", {warned} ⚠" if (warned := group["warned"].sum()) else ""
        images = f"{dataset} (JPEG)" if "JPEG" in source else dataset
        found = [f"{n * group[c].mean():.1f} of {n}" for c in ("precision", "found_in_twice")]
        found = [f"{100 * group['auroc'].mean():.1f}", *found] if n else [""] * 3
        found.append(f"{100 * group['flagged'].mean():.1f}")
        lines.append([case, images, classes, f"{inliers} + {n}", f"{len(group)}{warned}", *found])
    head = ["case", "images", "inliers' classes", "inliers + outliers", "folders", "AUROC, %"]
    head += ["outliers among the first n", "among the first 2 n", "flagged, %"]
    return table(head, lines) + versions_note(rows)


def main() -> int:
    parser = flags.parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what to measure")
    parser.add_argument("--data-dir", type=path, help="folder of data prepared by TFDS")
    parser.add_argument("--out", type=path, default="runs/folders.csv", help="the rows")
    parser.add_argument("--table", action="store_true", help="print the rows' table, do nothing")
    args = parser.parse_args()
    stopped = f"Finished rows are in {args.out}; the same command continues."
    return command.run(lambda: run(args), stopped)


def run(args: argparse.Namespace) -> None:
    """Measures the folders that have no row yet and adds their rows; prints the table of all."""
    if not args.table:
        measure_missing(args)
    print(as_table(read_rows(args.out)))


def measure_missing(args: argparse.Namespace) -> None:
    store.check_csv(args.out, _COLUMNS)
    todo = missing(args.cases, args.out)
    command.say(f"Plan: {len(todo)} folders")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    how = {"data_dir": args.data_dir, "announce": command.say}
    data = {name: datasets.load(name, **how) for name in sorted({f.dataset for f in todo})}
    for folder in command.progress(todo, "folders"):
        row = measure(folder, data[folder.dataset]) | provenance()
        store.append_rows(args.out, row, [row])
        where = " ".join(map(str, folder))
        said = f"AUROC {row['auroc']:.1%}, " if folder.n_outliers else ""
        command.say(f"{where}: {said}{row['flagged']:.1%} flagged, {row['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())

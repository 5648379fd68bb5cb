"""Measures `e3jax rank` as a person meets it: on folders of image files, by its own command.

Cases: photos (1,000 photos of one class of CIFAR-10 and 50 of others), few (57 images of one class
of Fashion-MNIST and 3 others), and limits (50 to 5,000 images, 1 to 30 % outliers, and one to three
kinds of inliers). Labels make the folders and judge the ranking; the command sees files alone.
A row is written after each folder; folders that have a row are not measured again.
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
from paper.tables import table
from PIL import Image
from rich.console import Console
from sweep import store
from sweep.provenance import provenance

from e3jax import datasets, metrics, runtime

COLUMNS = (
    "case,dataset,source,inlier_classes,n_inliers,n_outliers,seed,auroc,aupr_out,precision,"
    "found_in_twice,seconds,warned,cores,versions,commit"
).split(",")
CASES = ("photos", "few", "limits")
LIMITS = {"mnist": (4, 0, 8), "fashion_mnist": (7, 8, 1)}
# Kinds of inliers, inliers, outliers: one thing at a time differs from the first.
SIZES = ((1, 450, 50), (2, 450, 50), (3, 450, 50), (1, 495, 5), (1, 350, 150), (1, 45, 5))
LARGE = (1, 4500, 500)


class Folder(NamedTuple):
    """A folder to be made: images of the inliers' classes, and outliers from all other classes."""

    case: str
    dataset: str
    inlier_classes: tuple[int, ...]
    n_inliers: int
    n_outliers: int
    seed: int

    @property
    def row(self) -> dict:
        """The columns that tell which folder a row is of."""
        return self._asdict() | {"inlier_classes": "+".join(map(str, self.inlier_classes))}


def plan(cases: Sequence[str]) -> list[Folder]:
    """The folders of these cases. Classes were chosen before any result was seen."""
    photos = [Folder("photos", "cifar10", (c,), 1000, 50, 0) for c in (0, 4, 8)]
    few = itertools.product((7, 8, 1), range(5))
    few = [Folder("few", "fashion_mnist", (c,), 57, 3, seed) for c, seed in few]
    limits = [
        Folder("limits", dataset, classes[:kinds], inliers, outliers, seed)
        for seed, (dataset, classes) in itertools.product(range(3), LIMITS.items())
        for kinds, inliers, outliers in (SIZES if seed else [*SIZES, LARGE])
    ]
    return [folder for folder in [*photos, *few, *limits] if folder.case in cases]


def make(folder: Folder, data: datasets.Dataset, path: Path) -> dict[str, bool]:
    """Writes the images as PNG files of meaningless names; returns {path: is it an outlier}."""
    random = np.random.default_rng([folder.seed, *folder.inlier_classes])
    order = datasets.content_order(data.images, data.labels)
    belongs = np.isin(data.labels[order], folder.inlier_classes)
    inliers = random.choice(order[belongs], folder.n_inliers, replace=False)
    outliers = random.choice(order[~belongs], folder.n_outliers, replace=False)
    is_outlier = {}
    for number, i in enumerate(random.permutation(np.concatenate([inliers, outliers]))):
        file = path / f"{number:05d}.png"
        Image.fromarray(data.images[i].squeeze()).save(file)
        is_outlier[str(file)] = bool(data.labels[i] not in folder.inlier_classes)
    return is_outlier


def measure(folder: Folder, data: datasets.Dataset, options: Sequence[str] = ()) -> dict:
    """The row of one folder, ranked with these options besides the defaults.

    With n outliers, ``precision`` is the share of outliers among the first n images, and
    ``found_in_twice`` the share of all outliers that are among the first 2 n. ``seconds`` is the
    time of the whole command.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos, report = Path(scratch, "photos"), Path(scratch, "report")
        photos.mkdir()
        is_outlier = make(folder, data, photos)
        rank = [sys.executable, "-m", "e3jax", "rank", str(photos), "--out", str(report)]
        rank += ["--seed", str(folder.seed), *options]
        began = time.monotonic()
        done = subprocess.run(rank, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if done.returncode not in (0, 1):
            raise ValueError(f"e3jax rank failed: {done.stderr.strip()}")
        ranked = pd.read_csv(report / "scores.csv")
    truth, normality = ranked["path"].map(is_outlier).to_numpy(), -ranked["score"]
    n = folder.n_outliers
    return folder.row | {
        "source": data.source,
        "auroc": metrics.auroc(normality, truth),
        "aupr_out": metrics.aupr_out(normality, truth),
        "precision": truth[:n].mean(),
        "found_in_twice": truth[: 2 * n].sum() / n,
        "seconds": seconds,
        "warned": done.returncode,
        "cores": runtime.cores(),
    }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier start."""
    return pd.read_csv(path, dtype=str).to_dict("records") if path.exists() else []


def missing(cases: Sequence[str], rows: list[dict[str, str]]) -> list[Folder]:
    """The folders of these cases that have no row."""
    known = [[row[name] for name in Folder._fields] for row in rows]
    return [folder for folder in plan(cases) if [str(v) for v in folder.row.values()] not in known]


def as_table(rows: list[dict]) -> str:
    """Means over seeds."""
    numbers = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[4:13], float))
    lines = []
    for case, group in numbers.groupby(COLUMNS[:6], sort=False):
        name, dataset, source, classes, inliers, n = case
        mean, warned = group[COLUMNS[7:13]].mean(), group["warned"].sum()
        images = f"{dataset} (JPEG)" if "JPEG" in source else dataset
        folders = f"{len(group)}, {warned:.0f} ⚠" if warned else len(group)
        found = [f"{n * mean[c]:.1f} of {n:.0f}" for c in ("precision", "found_in_twice")]
        size, auroc = f"{inliers:.0f} + {n:.0f}", f"{100 * mean['auroc']:.1f}"
        lines.append([name, images, classes, size, folders, auroc, *found])
    head = ["case", "images", "inliers' classes", "inliers + outliers", "folders", "AUROC, %"]
    return table([*head, "outliers among the first n", "among the first 2 n"], lines)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--data-dir", help="folder of data prepared by TFDS")
    parser.add_argument("--out", type=Path, default=Path("runs/folders.csv"), help="the rows")
    parser.add_argument("--table", action="store_true", help="print the rows' table, do nothing")
    args = parser.parse_args()
    stopped = f"Finished rows are in {args.out}; the same command continues."
    code = 0 if args.table else command.run(lambda console: run(args, console), stopped)
    if code == 0:
        print(as_table(read_rows(args.out)))
    return code


def run(args: argparse.Namespace, console: Console) -> None:
    """Measures the folders that have no row yet, and adds their rows."""
    rows, how = read_rows(args.out), {"data_dir": args.data_dir, "announce": console.print}
    todo = missing(args.cases, rows)
    console.print(f"Plan: {len(todo)} folders")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = sorted({folder.dataset for folder in todo})
    data = {name: datasets.load(name, **how) for name in names}
    for folder in command.progress(todo, "folders", console):
        row = measure(folder, data[folder.dataset]) | provenance()
        rows.append(row)
        store.write_csv(args.out, rows, COLUMNS)
        where = " ".join(map(str, folder.row.values()))
        console.print(f"{where}: AUROC {row['auroc']:.1%}, {row['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())

"""Folders of pictures with known outliers, and how well `e3jax rank` ranks them.

Labels make the folders and judge the ranking; the command sees only files.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from sweep.provenance import provenance

from e3jax import datasets, metrics
from e3jax.devices import runtime

CASES = ("photos", "few", "limits", "large", "clean")
_LIMITS = {"mnist": "408", "fashion_mnist": "781"}
# Kinds of inliers, inliers, outliers: one thing at a time differs from the first; the last one has
# ten times the images, for the first seed.
_SIZES = ((1, 450, 50), (2, 450, 50), (3, 450, 50), (1, 495, 5), (1, 350, 150), (1, 45, 5))
_SIZES += ((1, 4500, 500),)


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
    for seed, (dataset, classes) in itertools.product(range(3), _LIMITS.items()):
        for kinds, inliers, outliers in _SIZES[: -1 if seed else None]:
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
        rank = [sys.executable, "-m", "e3jax", "rank", photos, "--out", report]
        rank += ["--seed", str(folder.seed), *options]
        rank += [] if folder.n_outliers else ["--contamination", "auto"]
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
    row |= {"flagged": ranked["outlier"].mean(), "seconds": seconds, "warned": done.returncode}
    return row | {"cores": runtime.cores()} | provenance()

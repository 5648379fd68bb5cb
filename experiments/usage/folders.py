"""Folders of pictures with known outliers, and how well `e3jax rank` ranks them.

Labels make the folders and judge the ranking; the command sees only files.
"""

import csv
import hashlib
import itertools
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from sweep.provenance import provenance

from e3jax import datasets, metrics
from e3jax.devices import runtime
from e3jax.evidence import EVIDENCE

CASES = ("photos", "few", "limits", "large", "clean")
_CLICKS = 10  # pictures that a person judges, the most outlying
_LIMITS = {"mnist": "408", "fashion_mnist": "781"}
# Kinds of inliers, inliers, outliers: one thing at a time differs from the first; the last one has
# ten times the images, for the first seed.
_SIZES = ((1, 450, 50), (2, 450, 50), (3, 450, 50), (1, 495, 5), (1, 350, 150), (1, 45, 5))
_SIZES += ((1, 4500, 500),)


class Folder(NamedTuple):
    """A folder to be made: images of the inliers' classes, and outliers from all other classes.

    Of the case "real" it is an archive, whose name is the data set; there are no classes.
    """

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


def decided() -> list[Folder]:
    """The folders of :func:`measure_decided`: the first three classes of each data set."""
    sets = itertools.product("012", ("mnist", "fashion_mnist", "cifar10"))
    return [Folder("decided", dataset, c, 450, 50, 0) for c, dataset in sets]


def real(
    archives: Path,
    features: Path | None = None,
    shares: Sequence[float] | None = None,
    seeds: int = 3,
) -> list[Folder]:
    """The folders in ZIP files, each with ``pictures/`` and ``truth.csv`` (file, outlier 0 or 1).

    Args:
      archives: the folder of the ZIP files.
      features: a model whose features take part, which the case is named by.
      shares: of outliers, for as many folders of each with fewer of its outliers or of its inliers;
        default: as it is.
      seeds: of each folder, if it is as it is.

    Raises:
      ValueError: there are none.
    """
    folders, case = [], f"real + {features.name}" if features else "real"
    for archive in sorted(archives.glob("*.zip")):
        truth = _truth(archive)
        outliers = sum(truth.values())
        inliers = len(truth) - outliers
        if shares is None:
            folders += [Folder(case, archive.stem, "", inliers, outliers, s) for s in range(seeds)]
        for share in shares or ():
            fewer = min(round(inliers * share / (1 - share)), outliers)
            kept = min(round(outliers * (1 - share) / share), inliers) if share else inliers
            folders.append(Folder(f"{case}, shares", archive.stem, "", kept, fewer, 0))
    if not folders:
        raise ValueError(f"{archives} has no ZIP files of folders: name the folder that has them")
    return folders


def _truth(archive: Path) -> dict[str, bool]:
    with zipfile.ZipFile(archive) as content:
        lines = content.read("truth.csv").decode().splitlines()
    return {row["file"]: row["outlier"] == "1" for row in csv.DictReader(lines)}


def extract(folder: Folder, archive: Path, path: Path) -> dict[str, bool]:
    """Writes as many of an archive's pictures; returns {path: is it an outlier}."""
    truth, random = _truth(archive), np.random.default_rng(folder.seed)
    kept = []
    for is_outlier, count in ((False, folder.n_inliers), (True, folder.n_outliers)):
        kept += list(random.permutation([n for n, t in truth.items() if t == is_outlier])[:count])
    with zipfile.ZipFile(archive) as content:
        for name in kept:
            (path / name).write_bytes(content.read(f"pictures/{name}"))
    return {str(path / name): truth[name] for name in kept}


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


def measure(
    folder: Folder, data: datasets.Dataset | Path, options: Sequence[str | Path] = ()
) -> dict:
    """The row of one folder, ranked with these options besides the defaults.

    With n outliers, ``precision`` is the share of outliers among the first n images, and
    ``found_in_twice`` the share of all outliers that are among the first 2 n; ``flagged`` is the
    share of images that are called outliers; ``auroc_KIND`` and ``aupr_out_KIND`` are of a
    kind of evidence alone, and of all that is measured from images.
    ``agreement`` and the interval ``least`` to ``most`` are what the command says of the folder.
    ``seconds`` is the time of the whole command.

    Args:
      folder: to measure.
      data: that its images are from; an archive, if it is real.
      options: of the command.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch, "photos")
        photos.mkdir()
        is_real = isinstance(data, Path)
        is_outlier = extract(folder, data, photos) if is_real else make(folder, data, photos)
        ranked, run = _rank(folder, photos, options)
    return _row(folder, data, ranked, is_outlier) | run | provenance()


def measure_decided(
    folder: Folder, data: datasets.Dataset, options: Sequence[str | Path] = ()
) -> list[dict]:
    """Two rows of one folder, without and with decisions about its ten most outlying images.

    They are judged by the truth, which the second ranking is given. Both rows, see
    :func:`measure`, are of all other images; ``judged`` is how many outliers are among the ten.
    """
    with tempfile.TemporaryDirectory() as scratch:
        photos, decisions = Path(scratch, "photos"), Path(scratch, "decisions.csv")
        photos.mkdir()
        is_outlier = make(folder, data, photos)
        first = _rank(folder, photos, options)
        clicked = set(first[0]["path"][:_CLICKS])
        words = {path: "does not belong" if is_outlier[path] else "belongs" for path in clicked}
        lines = [f"{path},{word}\n" for path, word in words.items()]
        decisions.write_text("".join(["file,decision\n", *lines]))
        second = _rank(folder, photos, [*options, "--decisions", decisions])
    rows, judged = [], {"judged": sum(is_outlier[path] for path in clicked)}
    for case, (ranked, run) in {"undecided": first, "decided": second}.items():
        others = ranked[~ranked["path"].isin(clicked)]
        row = _row(folder._replace(case=case), data, others, is_outlier)
        rows.append(row | judged | run | provenance())
    return rows


def _rank(folder: Folder, photos: Path, options: Sequence[str | Path]) -> tuple[pd.DataFrame, dict]:
    """The ranked files, and what a row says of the run."""
    report = photos.with_name("report")
    rank = [sys.executable, "-m", "e3jax", "rank", photos, "--out", report]
    rank += ["--seed", str(folder.seed), *map(str, options)]
    began = time.monotonic()
    done = subprocess.run(rank, capture_output=True, text=True)
    run = {"seconds": time.monotonic() - began, "warned": done.returncode, "cores": runtime.cores()}
    if done.returncode not in (0, 1):
        raise ValueError(f"e3jax rank failed: {done.stderr.strip()}")
    agreement = re.search(r"\((\S+) of 2.3 nats\)", done.stderr)
    interval = re.search(r"Likely not to belong: (\d+) to (\d+) images", done.stderr)
    run |= {"agreement": agreement and float(agreement[1])}
    run |= dict(zip(("least", "most"), map(int, interval.groups()), strict=True))
    return pd.read_csv(report / "scores.csv").drop(columns="decision", errors="ignore"), run


def _row(
    folder: Folder,
    data: datasets.Dataset | Path,
    ranked: pd.DataFrame,
    is_outlier: dict[str, bool],
) -> dict:
    """What a row says of the folder and of these ranked files."""
    truth = ranked["path"].map(is_outlier).to_numpy()
    n = int(truth.sum())
    source = f"sha256:{_digest(data)}" if isinstance(data, Path) else data.source
    row = {"case": folder.case, "dataset": folder.dataset, "source": source}
    row |= folder._asdict() | dict.fromkeys(("auroc", "aupr_out", "precision", "found_in_twice"))
    if n:
        row |= {m: getattr(metrics, m)(-ranked["score"], truth) for m in ("auroc", "aupr_out")}
        row |= {"precision": truth[:n].mean(), "found_in_twice": truth[: 2 * n].sum() / n}
    row["flagged"] = ranked["outlier"].mean()
    kinds = ranked.columns[ranked.columns.get_loc("copy_of") + 1 :] if n else ()
    alone = {kind: ranked[kind] for kind in kinds}
    of_images = {k: EVIDENCE[k].weight for k in kinds if EVIDENCE[k].input == "images"}
    if of_images:
        alone["images"] = sum(weight * alone[kind] for kind, weight in of_images.items())
    for (kind, surprise), measure in itertools.product(alone.items(), ("auroc", "aupr_out")):
        row[f"{measure}_{kind}"] = getattr(metrics, measure)(-surprise, truth)
    return row


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]

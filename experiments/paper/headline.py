"""The tables of the results page: what each method reaches, beside the paper."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from paper import versions
from paper.statistics import by_class, interval, joined
from paper.tables import PAPER, frame, num_classes, table

SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10 (JPEG)"}
FOLDERS = "11 real folders"
_METRICS = ("auroc", "aupr_out")
_RUN = ["inlier_class", "seed"]
# Of the headline: a method of the runs, a kind of evidence in the rows of folders (see
# :func:`paper.real.means`), and the column's title.
_HEADLINE = (
    ("pixels", None, "raw pixels"),
    ("hog-knn", "shape", "HOG"),
    ("e3outlier", None, "E³Outlier"),
    ("e3outlier+", "", "e3jax"),
    ("features", "features", "features"),
    ("e3outlier+features", "all", "e3jax + features"),
)
_INGREDIENTS = (
    ("e3outlier", None, "network, trained and scored as in the paper"),
    ("factored", "network", "its factors learnt, uncertain views left out, operations weighted"),
    ("descriptors", None, "no network, four descriptors"),
    ("e3outlier+", "images", "network and descriptors"),
    (None, "", "with detail and facts of the file: `rank`"),
    ("e3outlier+features", "all", "with features of a pretrained model"),
)
# The methods of Table 1, in its order.
_TABLE_1 = {
    "cae": "CAE",
    "cae-if": "CAE-IF",
    "drae": "DRAE",
    "rdae": "RDAE",
    "rdae-as-published": "RDAE as published",
    "dagmm": "DAGMM",
    "ssd-if": "SSD-IF",
    "e3outlier": "E³Outlier",
}


def values_of(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Percent by (inlier class, seed) and method; "pixels" is the best pixel method by its mean."""
    values = 100 * runs.pivot_table(metric, _RUN, "method")
    auroc = runs.pivot_table("auroc", _RUN, "method").filter(like="pixel")
    if not auroc.empty:
        values["pixels"] = values[by_class(auroc).mean().idxmax()]
    return values


def headline_table(rows: Iterable[dict], folders: dict[str, pd.DataFrame]) -> str:
    """AUROC / AUPR-out in percent of each method, on each set and over the folders.

    Args:
      rows: of the benchmark; those at ρ = 10 % are shown, means over classes.
      folders: AUROC and AUPR-out by folder, see :func:`paper.real.means`.
    """
    runs, lines = frame(rows), []
    for label, of_set in _sets(runs[runs["ratio"] == 0.1]):
        numbers = PAPER.loc[of_set["dataset"].iloc[0], 0.1, "e3outlier"][list(_METRICS)]
        cells = [_pair(of_set, method) for method, *_ in _HEADLINE]
        lines.append([label, *cells, joined(numbers)])
    lines.append([FOLDERS, *(_of_folders(folders, kind) for _, kind, _ in _HEADLINE), ""])
    head = ["images", *(title for *_, title in _HEADLINE), "the paper"]
    return table(head, lines) + _note(runs)


def _sets(runs: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Runs of the same images, with those that need no training beside each protocol's."""
    untrained = runs["protocol"] == ""
    for dataset, title in SETS.items():
        for size in (500, 0):
            of_images = (runs["dataset"] == dataset) & (runs["max_images"] == size)
            trained = runs[of_images & ~untrained]
            for protocol, of_protocol in trained.groupby("protocol", sort=False):
                images = f"{size} images" if size else f"all images, {_readable(protocol)}"
                classes = of_protocol["inlier_class"].nunique()
                if classes < num_classes(dataset):
                    images += f", {classes} classes"
                there = runs["inlier_class"].isin(of_protocol["inlier_class"].unique())
                yield (
                    f"{title}, {images}",
                    pd.concat([of_protocol, runs[of_images & untrained & there]]),
                )


def _readable(protocol: str) -> str:
    return re.sub(r"-(\d+)steps", r", \1 steps", protocol)


def _note(runs: pd.DataFrame) -> str:
    """What is said under a table if rows of different versions share a cell."""
    cells = runs.groupby(["dataset", "ratio", "max_images", "protocol", "method"])
    mixed = [rows for _, rows in cells if versions.is_mixed(rows)]
    return versions.note(pd.concat(mixed)) if mixed else ""


def _pair(runs: pd.DataFrame, method: str | None) -> str:
    found = [values_of(runs, metric) for metric in _METRICS]
    if method not in found[0]:
        return ""
    return joined(by_class(values[method]).mean() for values in found)


def _of_folders(folders: dict[str, pd.DataFrame], kind: str | None) -> str:
    return joined(folders[kind].mean()) if kind in folders else ""


def differences_table(rows: Iterable[dict]) -> str:
    """e3outlier+ against others on the same images, in points, with intervals over classes."""
    runs, lines = frame(rows), []
    compared = [("e3outlier+", other) for other in ("e3outlier", "hog-knn", "pixels", "features")]
    compared.append(("e3outlier+features", "features"))
    for label, of_set in _sets(runs[runs["ratio"] == 0.1]):
        for metric in _METRICS:
            values = values_of(of_set, metric)
            if "e3outlier+" in values:
                cells = (_difference(values, *pair) for pair in compared)
                lines.append([label, metric.upper().replace("_OUT", "-out"), *cells])
    titles = {method: title for method, _, title in _HEADLINE}
    head = [f"{titles[ours]} - {titles[other]}" for ours, other in compared]
    return table(["images", "metric", *head], lines) + _note(runs)


def _difference(values: pd.DataFrame, ours: str, other: str) -> str:
    return interval(values[ours] - values[other], "+.1f") if {ours, other} <= {*values} else ""


def reproduction_table(rows: Iterable[dict]) -> str:
    """AUROC of the methods of Table 1 in percent, in brackets the paper's."""
    runs = frame(rows)
    runs = runs[runs["max_images"] == 500]
    places = [(dataset, ratio) for dataset in SETS for ratio in (0.1, 0.2)]
    lines = []
    for method, title in _TABLE_1.items():
        cells = []
        for dataset, ratio in places:
            there = (runs["dataset"] == dataset) & (runs["ratio"] == ratio)
            aurocs = runs[there & (runs["method"] == method)].set_index(_RUN)["auroc"]
            paper = PAPER["auroc"].get((dataset, ratio, method), np.nan)
            text = joined([100 * by_class(aurocs).mean()])
            cells.append(text if np.isnan(paper) else f"{text} ({paper:.1f})")
        lines.append([title, *cells])
    head = [f"{SETS[dataset]}, ρ = {100 * ratio:g} %" for dataset, ratio in places]
    return table(["method", *head], lines) + _note(runs)


def ingredients_table(rows: Iterable[dict], folders: dict[str, pd.DataFrame]) -> str:
    """What each part of e3jax adds: AUROC / AUPR-out, means over classes and over folders."""
    runs = frame(rows)
    runs = runs[(runs["ratio"] == 0.1) & (runs["max_images"] == 500)]
    sets = [runs[runs["dataset"] == dataset] for dataset in SETS]
    lines = [
        [title, *(_pair(of_set, method) for of_set in sets), _of_folders(folders, kind)]
        for method, kind, title in _INGREDIENTS
    ]
    return table(["score", *SETS.values(), FOLDERS], lines) + _note(runs)


def halves_table(rows: Iterable[dict]) -> str:
    """The whole beside its halves: AUROC / AUPR-out, and how often a half alone is better."""
    runs, lines = frame(rows), []
    halves = ["factored", "descriptors"]
    for label, of_set in _sets(runs[runs["ratio"] == 0.1]):
        values = by_class(values_of(of_set, "auroc"))
        if {"e3outlier+", *halves} <= {*values}:
            better = (values[halves].max(axis=1) > values["e3outlier+"]).sum()
            cells = (_pair(of_set, method) for method in ["e3outlier+", *halves])
            lines.append([label, *cells, f"{better} of {len(values)} classes"])
    head = ["images", "e3jax", "its network", "its descriptors", "a half alone is better for"]
    return table(head, lines) + _note(runs)

"""Markdown tables of what else was measured: for the pages of results, and for its commands."""

import os
from collections.abc import Iterable

import pandas as pd

from paper import versions
from paper.statistics import auroc_and_aupr_out, interval
from paper.tables import frame, table

STAGES = ("first", "second", "last")  # thirds of a training
_RUN = ["inlier_class", "seed"]


# --- Runs of the benchmark ---------------------------------------------------------------------


def steps_table(rows: Iterable[dict]) -> str:
    """AUROC and AUPR-out of e3outlier+ and of its network by images and steps, in percent.

    The time, of training and scoring, is relative to the first line's; it is the median over
    classes, since the first one's compiles.
    """
    runs, sizes = frame(rows), ["n_inliers", "n_outliers", "steps"]
    runs = runs.assign(seconds=runs["train_seconds"] + runs["score_seconds"]).sort_values(sizes)
    texts = auroc_and_aupr_out(runs, sizes, "method")[["factored", "e3outlier+"]]
    seconds = runs[runs["method"] == "e3outlier+"].groupby(sizes)["seconds"].median()
    accuracy = 100 * runs.groupby(sizes)["pretext_accuracy"].mean()
    lines = [
        [f"{size[0]} + {size[1]}", size[2], f"{accuracy[size]:.0f}", *cells, f"{time:.1f}"]
        for (size, cells), time in zip(texts.T.items(), seconds / seconds.iloc[0], strict=True)
    ]
    head = ["images", "steps", "operations recognised, %", "factored", "e3outlier+", "time"]
    return table(head, lines) + versions.note(runs)


# --- What operations are worth -----------------------------------------------------------------

# What a row of an operation or of a way to fuse them is told by besides; the last one counts.
WHERE = ["dataset", "source", "inlier_class", "seed", "max_images", "steps"]


def fusion_table(fused: pd.DataFrame, fewer: bool = False) -> str:
    """AUROC and AUPR-out of each way to fuse operations, in percent: means over classes.

    With ``fewer``, of the scores by a part of the operations instead.
    """
    fused = fused.drop_duplicates([*WHERE, "way"], keep="last")
    fused = fused[fused["way"].str.endswith(" operations") == fewer]
    texts = auroc_and_aupr_out(fused, ["way"], "dataset")
    head = "scores by" if fewer else "scores of operations fused by"
    return table([head, *texts], texts.reset_index().to_numpy()) + versions.note(fused)


def prediction_table(single: pd.DataFrame) -> str:
    """How well what is known without labels predicts each operation's AUROC, class by class."""
    single = single.drop_duplicates([*WHERE, "operation"], keep="last")
    lines, estimates = [], ["agreement", "accuracy"]
    for name, rows in single.groupby("dataset", sort=False):
        of_classes = rows.groupby(_RUN)[["auroc", *estimates]].corr("spearman")
        ranges = of_classes.xs("auroc", level=-1)[estimates].agg(["mean", "min", "max"])
        texts = ["{mean:.2f} ({min:.2f} to {max:.2f})".format(**ranges[e]) for e in estimates]
        means = rows.groupby("operation")[["auroc", "agreement"]].mean()
        texts.append(f"{means.corr('spearman').iloc[0, 1]:.2f}")
        of_family = 100 * rows.groupby("family", sort=False)["auroc"].mean()
        lines.append([name, *(f"{auroc:.1f}" for auroc in of_family), *texts])
    families = [f"{name}, AUROC of one" for name in dict.fromkeys(single["family"])]
    head = ["images", *families, "agreement", "pretext accuracy", "agreement, means over classes"]
    return table(head, lines) + versions.note(single)


# --- Inlier priority ---------------------------------------------------------------------------


def priority_table(trainings: pd.DataFrame) -> str:
    """Means over trainings with 95 % intervals over classes, and differences of pairs.

    Args:
      trainings: the summary that ``priority.py`` writes: ``inlier_class``, ``seed``, a column
        QUANTITY_STAGE for each of the STAGES, and ``pl_auroc``.
    """
    trainings = trainings.set_index(_RUN)
    wide = trainings.filter(regex=f"_({'|'.join(STAGES)})$")
    wide.columns = pd.MultiIndex.from_tuples(column.rsplit("_", 1) for column in wide)
    values = {name: wide[name] for name in wide.columns.unique(0)}
    pairs = [("magnitude_ratio", "magnitude_ratio_control")]
    pairs += [(name, name.replace("_inliers", "_outliers")) for name in values if "_inl" in name]
    pairs += [(name, name.replace("_large", "_small")) for name in values if "_large" in name]
    values |= {f"{a} - {b}": values[a] - values[b] for a, b in pairs}
    lines = [
        [name.replace("_", " "), *(interval(of_name.get(stage)) for stage in STAGES)]
        for name, of_name in values.items()
    ]
    lines.append(["PL AUROC after training", "", "", interval(trainings["pl_auroc"])])
    classes = trainings.index.get_level_values("inlier_class").nunique()
    count = f"{len(trainings)} training(s) of {classes} class(es)"
    head = [f"{trainings['source'].iloc[0]}, mean of {count}", *(f"{s} third" for s in STAGES)]
    return table(head, lines) + versions.note(trainings)


def theory_table(rows: pd.DataFrame) -> str:
    """How far eq. 3 and the kernel's prediction are off, for each series of sets."""
    lines = []
    for (case, varied), group in rows.groupby(["case", "varied"], sort=False):
        ratio = group["measured_over_predicted"]
        off = (ratio / group["kernel_prediction_over_predicted"] - 1).abs().max()
        numbers = (f"{ratio.mean():.2f}", f"{ratio.min():.2f} to {ratio.max():.2f}", f"{off:.1%}")
        lines.append([case, varied.replace("_", " "), len(group), *numbers])
    head = ["images", "varied", "sets and operations", "measured / eq. 3, mean", "range"]
    head.append("kernel's prediction off by at most")
    return table(head, lines) + versions.note(rows)


# --- Folders of pictures -----------------------------------------------------------------------


def read_folders(path: str | os.PathLike) -> pd.DataFrame:
    """The rows of ``folders.py``."""
    return pd.read_csv(path, dtype={"inlier_classes": str})


def folders_table(rows: pd.DataFrame) -> str:
    """Means over seeds, of a folder's last row."""
    columns = ["case", "dataset", "source", "inlier_classes", "n_inliers", "n_outliers"]
    rows, lines = rows.drop_duplicates([*columns[:2], *columns[3:], "seed"], keep="last"), []
    for (case, dataset, source, classes, inliers, n), group in rows.groupby(columns, sort=False):
        warned = f", {warned} ⚠" if (warned := group["warned"].sum()) else ""
        images = f"{dataset} (JPEG)" if "JPEG" in source else dataset
        means, cells = group[["auroc", "precision", "found_in_twice", "flagged"]].mean(), [""] * 3
        if n:
            left = n - (round(group["judged"].fillna(0).mean()) if "judged" in group else 0)
            first, twice = (
                f"{left * means[c]:.1f} of {left}" for c in ("precision", "found_in_twice")
            )
            cells = [f"{100 * means['auroc']:.1f}", first, twice]
        cells.append(f"{100 * means['flagged']:.1f}")
        lines.append([case, images, classes, f"{inliers} + {n}", f"{len(group)}{warned}", *cells])
    head = ["case", "images", "inliers' classes", "inliers + outliers", "folders", "AUROC, %"]
    head += ["outliers among the first n", "among the first 2 n", "flagged, %"]
    return table(head, lines) + versions.note(rows)

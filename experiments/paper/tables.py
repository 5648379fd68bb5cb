"""Markdown tables of result rows, beside the paper's numbers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

METRICS = ("auroc", "aupr_in", "aupr_out")
_RUN = ["method", "inlier_class", "seed"]
_TEXTS = ["protocol", "network", "operations", "precision", "warning"]


def _read_paper() -> dict[tuple[str, float, str], tuple[float | None, ...]]:
    path = Path(__file__).with_name("numbers.csv")
    numbers = pd.read_csv(path, index_col=["dataset", "ratio", "method"]).astype(object)
    values = numbers.where(numbers.notna(), None).itertuples(index=False, name=None)
    return dict(zip(numbers.index, values, strict=True))


# The paper's METRICS in percent, or None, by (dataset, outlier ratio, method).
PAPER = _read_paper()


def num_classes(dataset: str) -> int:
    """The number of classes over which the paper takes its means."""
    return 20 if dataset == "cifar100" else 10


class TableKey(NamedTuple):
    """What all runs of one table have in common.

    ``max_images`` is 0 for whole sets. The fields from ``protocol`` to ``precision`` are "" for
    methods that have none.
    """

    dataset: str
    source: str
    ratio: float
    max_images: int
    protocol: str
    network: str
    operations: str
    precision: str
    device_kind: str

    def fits(self, table: "TableKey") -> bool:
        """Whether runs of this kind may stand in the table of that kind."""
        same_device = self.device_kind == table.device_kind or "" == self.protocol < table.protocol
        fitting = all(a in ("", b) for a, b in zip(self[4:8], table[4:8], strict=True))
        return self[:4] == table[:4] and fitting and same_device


def frame(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a table: each column of one type, metrics with the six digits of results.csv."""
    missing = {"max_images": 0, "precision": "float32", "warning": ""}
    runs = pd.DataFrame([missing | row for row in rows])
    runs[_TEXTS] = runs[_TEXTS].fillna("").astype(str)
    runs["max_images"] = pd.to_numeric(runs["max_images"]).fillna(0).astype(int)
    for name in METRICS:
        runs[name] = runs[name].map("{:.6g}".format).astype(float)
    runs["device_kind"] = runs["device"].str.split(" x ").str[-1]
    runs.loc[runs["protocol"] == "", "precision"] = ""
    return runs


def comparable(rows: Iterable[dict]) -> dict[TableKey, pd.DataFrame]:
    """Groups runs that may stand in one table.

    Runs of different images, set sizes, protocols, precisions or kinds of device never meet. What a
    method does not have does not separate it: pixel methods stand in every table of their images,
    autoencoders in every table of their images and protocol. A pixel method's runs from another
    device fill in for those that a table's own device lacks.
    """
    kinds = {TableKey(*key): runs for key, runs in frame(rows).groupby(list(TableKey._fields))}
    of_table = {table: [k for k in kinds if k != table and k.fits(table)] for table in kinds}
    inside = set().union(*of_table.values())
    return {
        table: together(kinds[table], *(kinds[other] for other in others))
        for table, others in of_table.items()
        if table not in inside
    }


def together(own: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """All runs, but those without a training once only: on the device of ``own`` if they are."""
    runs = pd.concat([own, *others])
    is_other = runs["device_kind"] != own["device_kind"].iloc[0]
    runs = pd.concat([runs[~is_other], runs[is_other]])
    return runs[(runs["protocol"] != "") | ~runs.duplicated([*_RUN, "ratio"])]


def markdown(rows: Iterable[dict]) -> str:
    """Two tables for each group of :func:`comparable`: one line per class, one line per method.

    The first has AUROC in percent, averaged over seeds, with a mark for runs with a ``warning``.
    The second is that of :func:`summary`.

    Args:
      rows: with numbers as numbers; ``warning`` is optional.
    """
    return _pages(rows, _class_table)


def summary(rows: Iterable[dict]) -> str:
    """A table of means in percent for each group of :func:`comparable`.

    A cell is the mean over classes of all seeds that have every class, its standard deviation over
    those seeds, and in brackets the paper's value and the difference. If classes are missing from
    the table, the bracket says over how many classes the paper's value is and has no difference.
    """
    return _pages(rows)


def _pages(rows: Iterable[dict], *parts) -> str:
    pages = []
    for key, runs in comparable(rows).items():
        pages += [_heading(key, runs), *(part(runs) for part in parts), _mean_table(key, runs)]
    return "\n\n".join(pages) + "\n"


def _heading(key: TableKey, runs: pd.DataFrame) -> str:
    sizes = runs["n_inliers"]
    size = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    how = [f"protocol {key.protocol}", key.network, key.operations] if key.protocol else []
    how = ", ".join([*filter(None, how), f"{size} inliers per class"])
    precision = f", {key.precision}" if key.precision else ""
    return (
        f"### {key.dataset}, ρ = {100 * key.ratio:g} %\n\n"
        f"Images from {key.source}; {how}; {runs['inlier_class'].nunique()} of "
        f"{num_classes(key.dataset)} classes, {runs['seed'].nunique()} seed(s). "
        f"Devices: {', '.join(sorted(set(runs['device'])))}{precision}. All numbers in percent."
    )


def cells(runs: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Percent by method and (inlier class, seed): NaN without a run, infinite if it diverged."""
    known = runs.assign(value=100 * runs[metric].fillna(np.inf))
    table = known.pivot_table("value", "method", ["inlier_class", "seed"])
    every = [sorted(set(runs[name])) for name in ("inlier_class", "seed")]
    return table.reindex(ordered(table.index), columns=pd.MultiIndex.from_product(every))


def ordered(methods: Iterable[str]) -> list[str]:
    """E3Outlier and its variants first, what needs no training last."""
    return sorted(methods, key=lambda m: (not m.startswith("e3outlier"), m.startswith("pixel"), m))


def _class_table(runs: pd.DataFrame) -> str:
    found, warned = cells(runs), runs[runs["warning"] != ""]
    marked = set(zip(warned["method"], warned["inlier_class"], strict=True))
    lines = [
        [name, *(_cell(found.loc[m, name], (m, name) in marked) for m in found.index)]
        for name in found.columns.unique(0)
    ]
    notes = sorted(set(zip(warned["inlier_class"], warned["warning"], strict=True)))
    text = table(["AUROC, inlier class", *found.index], lines)
    return text + "".join(f"\n\n⚠ class {name}: {warning}" for name, warning in notes)


def _cell(seeds: pd.Series, marked: bool) -> str:
    done = seeds.dropna()
    some = f" ({len(done)} of {len(seeds)} seeds)" if 0 < len(done) < len(seeds) else ""
    return _number(done.mean(), "missing") + some + (" ⚠" if marked else "")


def _number(value: float, missing: str) -> str:
    if np.isnan(value):
        return missing
    return f"{value:.1f}" if np.isfinite(value) else "diverged"


def _mean_table(key: TableKey, runs: pd.DataFrame) -> str:
    found = {metric: cells(runs, metric) for metric in METRICS}
    auroc, lines = found["auroc"], []
    for method in auroc.index:
        paper = PAPER.get((key.dataset, key.ratio, method), (None,) * len(METRICS))
        means = [
            _mean_and_spread(found[metric].loc[method], number, num_classes(key.dataset))
            for metric, number in zip(METRICS, paper, strict=True)
        ]
        lines.append([method, *means, _count(auroc.loc[method], runs[runs["method"] == method])])
    text = table(["method", "AUROC (paper, difference)", "AUPR-in", "AUPR-out", "runs"], lines)
    return text + _paired_difference(auroc)


def _mean_and_spread(values: pd.Series, paper: float | None, all_classes: int) -> str:
    """Mean over classes of each seed that has all of them; spread over those seeds."""
    by_seed = values.unstack().mean(skipna=False).dropna()
    mean = by_seed.mean()
    if not np.isfinite(mean):
        return _number(mean, "incomplete")
    spread = f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else ""
    if paper is None:
        beside = ""
    elif values.index.levshape[0] < all_classes:
        beside = f" (over all {all_classes} classes: {paper:.1f})"
    else:
        beside = f" ({paper:.1f}, {mean - paper:+.1f})"
    return f"**{mean:.1f}**{spread}{beside}"


def _count(values: pd.Series, runs: pd.DataFrame) -> str:
    """How many runs a method has of all classes and seeds of its table, and what ails them."""
    by_seed = values.unstack()
    # A seed that was not run at all is one thing to say, not one for every class.
    unused = by_seed.columns[by_seed.isna().all()]
    missing = [f"seed {seed}" for seed in unused]
    missing += [f"class {c} seed {s}" for c, s in values.index[values.isna()] if s not in unused]
    text = f"{len(values)}"
    if missing:
        text = f"{values.count()} of {text}, missing: {', '.join(missing[:3])}"
    if len(missing) > 3:
        text += f" and {len(missing) - 3} more"
    marks = {"repeated": len(runs) - values.count(), "⚠": (runs["warning"] != "").sum()}
    return ", ".join([text, *(f"{number} {mark}" for mark, number in marks.items() if number)])


def _paired_difference(auroc: pd.DataFrame) -> str:
    """E3Outlier against the best of the other methods, class by class on the same images."""
    if "e3outlier" not in auroc.index:
        return ""
    done = auroc.notna()
    auroc = auroc[(done == done.loc["e3outlier"]).all(axis=1)].T.groupby(level=0).mean().T
    auroc = auroc[np.isfinite(auroc).all(axis=1)]
    others = auroc[~auroc.index.str.startswith("e3outlier")]
    if "e3outlier" not in auroc.index or others.empty or auroc.shape[1] < 2:
        return ""
    best = others.mean(axis=1).idxmax()
    mean, low, high = mean_and_interval(auroc.loc["e3outlier"] - others.loc[best])
    return (
        f"\n\ne3outlier - {best}: {mean:+.1f}, 95 % interval {low:+.1f} to {high:+.1f} "
        "(points of AUROC, paired t over classes)."
    )


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % t interval, of NaNs for a single value."""
    mean, error = np.mean(values), scipy.stats.sem(values) if len(values) > 1 else np.nan
    half = error * scipy.stats.t.ppf(0.975, max(len(values) - 1, 1))
    return mean, mean - half, mean + half


def table(head: Sequence, lines: Iterable[Sequence]) -> str:
    """A Markdown table."""
    return "\n".join(
        f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *lines]
    )


def priority_table(trainings: pd.DataFrame) -> str:
    """Means over trainings with 95 % intervals, and differences of pairs, training by training.

    Args:
      trainings: the summary that ``priority.py`` writes: columns QUANTITY_start, QUANTITY_half1,
        QUANTITY_half2, and ``pl_auroc``.
    """
    parts = ("start", "half1", "half2")
    wide = trainings[[column for column in trainings if column.endswith(parts)]]
    wide.columns = pd.MultiIndex.from_tuples(column.rsplit("_", 1) for column in wide)
    found = {name: wide[name] for name in wide.columns.unique(0)}
    pairs = [(name, name.replace("_inliers", "_outliers")) for name in found if "_inl" in name]
    for a, b in [("magnitude_ratio", "magnitude_ratio_control"), *pairs]:
        found[f"{a} - {b}"] = found[a] - found[b]
    lines = [
        [name.replace("_", " "), *(_interval(values.get(part)) for part in parts)]
        for name, values in found.items()
    ]
    lines.append(["PL AUROC after training", "", "", _interval(trainings["pl_auroc"])])
    head = f"mean of {len(trainings)} training(s)"
    return table([head, "start", "first half", "second half"], lines)


def _interval(values: pd.Series | None) -> str:
    if values is None:
        return ""
    mean, low, high = mean_and_interval(values)
    return f"{mean:.3g} ({low:.3g} to {high:.3g})" if len(values) > 1 else f"{mean:.3g}"

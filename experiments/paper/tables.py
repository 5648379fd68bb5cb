"""Markdown tables of result rows, beside the paper's numbers."""

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from paper import statistics, versions

METRICS = ["auroc", "aupr_in", "aupr_out"]
# The paper's METRICS in percent, or NaN, by dataset, outlier ratio and method.
PAPER = pd.read_csv(Path(__file__).with_name("numbers.csv"), index_col=[0, 1, 2])
# What all runs of one table have in common. ``max_images`` is 0 for whole sets; what stands between
# it and the kind of device is "" for methods that have none.
KEY = "dataset,source,ratio,max_images,protocol,network,operations,precision,device_kind".split(",")
TableKey = collections.namedtuple("TableKey", KEY)


def num_classes(dataset: str) -> int:
    """The number of classes over which the paper takes its means."""
    return 20 if dataset == "cifar100" else 10


def frame(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows as a table: each column of one type, metrics with the six digits of results.csv."""
    runs = pd.DataFrame(rows)
    runs["max_images"] = pd.to_numeric(runs["max_images"]).fillna(0).astype(int)
    runs[METRICS] = runs[METRICS].map("{:.6g}".format).astype(float)
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
    kinds = {TableKey(*key): runs for key, runs in frame(rows).groupby(KEY)}
    guests = {table: [k for k in kinds if k != table and _fits(k, table)] for table in kinds}
    with_a_host = set().union(*guests.values())
    return {
        table: together(kinds[table], *map(kinds.get, guests[table]))
        for table in kinds
        if table not in with_a_host
    }


def _fits(kind: TableKey, table: TableKey) -> bool:
    """Whether runs of one kind may stand in the table of the other."""
    same_device = kind.device_kind == table.device_kind or "" == kind.protocol < table.protocol
    fitting = all(a in ("", b) for a, b in zip(kind[4:8], table[4:8], strict=True))
    return kind[:4] == table[:4] and fitting and same_device


def together(runs: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """All runs, but those without a training once only: on the device of the first if they are."""
    device_kind, runs = runs["device_kind"].iloc[0], pd.concat([runs, *others])
    is_other = runs["device_kind"] != device_kind
    runs = pd.concat([runs[~is_other], runs[is_other]])
    again = runs.duplicated(["method", "inlier_class", "seed", "ratio"])
    return runs[(runs["protocol"] != "") | ~again]


def markdown(rows: Iterable[dict], summary: bool = False) -> str:
    """Two tables for each group of :func:`comparable`: one line per class, one line per method.

    The first has AUROC in percent, averaged over seeds, with a mark for runs with a ``warning``;
    ``summary`` leaves it out. The second has means in percent. A cell is the mean over classes of
    all seeds that have every class, its standard deviation over those seeds, and in brackets the
    paper's value and the difference. If classes are missing from the table, the bracket says over
    how many classes the paper's value is and has no difference.

    Args:
      rows: with numbers as numbers, see :func:`sweep.store.read_csv`.
      summary: means only.
    """
    pages = []
    for key, runs in comparable(rows).items():
        of_classes = [] if summary else [_class_table(runs)]
        pages += [_heading(key, runs), *of_classes, _mean_table(key, runs) + versions.note(runs)]
    return "\n\n".join(pages) + "\n"


def _heading(key: TableKey, runs: pd.DataFrame) -> str:
    sizes = runs["n_inliers"]
    size = " to ".join(map(str, sorted({sizes.min(), sizes.max()})))
    protocol = [f"protocol {key.protocol}", key.network, key.operations] if key.protocol else []
    protocol = ", ".join([*filter(None, protocol), f"{size} inliers per class"])
    devices = ", ".join(filter(None, [*sorted(set(runs["device"])), key.precision]))
    return (
        f"### {key.dataset}, ρ = {100 * key.ratio:g} %\n\n"
        f"Images from {key.source}; {protocol}; {runs['inlier_class'].nunique()} of "
        f"{num_classes(key.dataset)} classes, {runs['seed'].nunique()} seed(s). "
        f"Devices: {devices}. All numbers in percent."
    )


def cells(runs: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Percent by (inlier class, seed) and method: NaN without a run, infinite if it diverged."""
    known = runs.assign(value=100 * runs[metric].fillna(np.inf))
    values = known.pivot_table("value", ["inlier_class", "seed"], "method", dropna=False)
    return values[ordered(values)]


def ordered(methods: Iterable[str]) -> list[str]:
    """E3Outlier and its variants first, what needs no training last."""
    untrained = ("pixel", "hog", "descriptors")
    return sorted(
        methods, key=lambda m: (not m.startswith("e3outlier"), m.startswith(untrained), m)
    )


def _class_table(runs: pd.DataFrame) -> str:
    texts, warned = cells(runs).groupby(level=0).agg(_cell), runs[runs["warning"] != ""]
    for name, method in set(zip(warned["inlier_class"], warned["method"], strict=True)):
        texts.loc[name, method] += " ⚠"
    notes = sorted(set(zip(warned["inlier_class"], warned["warning"], strict=True)))
    text = table(["AUROC, inlier class", *texts], texts.reset_index().to_numpy())
    return text + "".join(f"\n\n⚠ class {name}: {warning}" for name, warning in notes)


def _cell(seeds: pd.Series) -> str:
    done = seeds.count()
    part = f" ({done} of {len(seeds)} seeds)" if 0 < done < len(seeds) else ""
    return _number(seeds.mean(), "missing") + part


def _number(value: float, missing: str) -> str:
    return f"{value:.1f}".replace("nan", missing).replace("inf", "diverged")


def _mean_table(key: TableKey, runs: pd.DataFrame) -> str:
    values = {metric: cells(runs, metric) for metric in METRICS}
    auroc, lines = values["auroc"], []
    for method in auroc:
        [paper] = PAPER.reindex([(key.dataset, key.ratio, method)]).to_numpy()
        means = [
            _mean_and_spread(values[metric][method], number, num_classes(key.dataset))
            for metric, number in zip(METRICS, paper, strict=True)
        ]
        lines.append([method, *means, _count(auroc[method], runs[runs["method"] == method])])
    text = table(["method", "AUROC (paper, difference)", "AUPR-in", "AUPR-out", "runs"], lines)
    return text + _paired_difference(auroc)


def _mean_and_spread(values: pd.Series, paper: float, all_classes: int) -> str:
    """Mean over classes of each seed that has all of them; spread over those seeds."""
    by_seed = values.unstack(0).mean(axis=1, skipna=False).dropna()
    mean = by_seed.mean()
    if not np.isfinite(mean):
        return _number(mean, "incomplete")
    spread = f" ± {by_seed.std():.1f}" if len(by_seed) > 1 else ""
    if np.isnan(paper):
        return f"**{mean:.1f}**{spread}"
    if values.index.levshape[0] == all_classes:
        return f"**{mean:.1f}**{spread} ({paper:.1f}, {mean - paper:+.1f})"
    return f"**{mean:.1f}**{spread} (over all {all_classes} classes: {paper:.1f})"


def _count(values: pd.Series, runs: pd.DataFrame) -> str:
    """How many runs a method has of all classes and seeds of its table, and what ails them."""
    done = values.notna()
    # A seed that was not run at all is one thing to say, not one for every class.
    unused = [seed for seed, of_seed in done.groupby(level=1) if not of_seed.any()]
    missing = [f"seed {seed}" for seed in unused]
    missing += [f"class {c} seed {seed}" for c, seed in done.index[~done] if seed not in unused]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    of_all = f" of {len(values)}, missing: {', '.join(missing[:3])}{more}" if missing else ""
    marks = {"repeated": len(runs) - done.sum(), "⚠": (runs["warning"] != "").sum()}
    counts = [f"{number} {mark}" for mark, number in marks.items() if number]
    return ", ".join([f"{done.sum()}{of_all}", *counts])


def _paired_difference(auroc: pd.DataFrame) -> str:
    """E3Outlier against the best of the other methods, class by class on the same images."""
    ours = "e3outlier+" if "e3outlier+" in auroc else "e3outlier"
    if ours not in auroc:
        return ""
    done = auroc.notna()
    same_runs = auroc.loc[:, done.eq(done[ours], axis=0).all()]
    means = statistics.by_class(same_runs)
    means = means.loc[:, np.isfinite(means).all()]
    others = means.filter(regex="^(?!e3outlier|factored)")
    if ours not in means or others.empty or len(means) < 2:
        return ""
    best = others.mean().idxmax()
    mean, low, high = statistics.mean_and_interval(means[ours] - others[best])
    return (
        f"\n\n{ours} - {best}: {mean:+.1f}, 95 % interval {low:+.1f} to {high:+.1f} "
        "(points of AUROC, paired t over classes)."
    )


def table(head: Sequence, lines: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

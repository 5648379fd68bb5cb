"""Markdown tables of result rows, beside the paper's numbers."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

METRICS = ["auroc", "aupr_in", "aupr_out"]
STAGES = ("first", "second", "last")  # thirds of a training
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
    of_table = {table: [k for k in kinds if k != table and _fits(k, table)] for table in kinds}
    inside = set().union(*of_table.values())
    return {
        table: together(kinds[table], *(kinds[other] for other in others))
        for table, others in of_table.items()
        if table not in inside
    }


def _fits(kind: TableKey, table: TableKey) -> bool:
    """Whether runs of one kind may stand in the table of the other."""
    same_device = kind.device_kind == table.device_kind or "" == kind.protocol < table.protocol
    fitting = all(a in ("", b) for a, b in zip(kind[4:8], table[4:8], strict=True))
    return kind[:4] == table[:4] and fitting and same_device


def together(own: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """All runs, but those without a training once only: on the device of ``own`` if they are."""
    runs = pd.concat([own, *others])
    is_other = runs["device_kind"] != own["device_kind"].iloc[0]
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
        by_class = [] if summary else [_class_table(runs)]
        pages += [_heading(key, runs), *by_class, _mean_table(key, runs) + versions_note(runs)]
    return "\n\n".join(pages) + "\n"


def _heading(key: TableKey, runs: pd.DataFrame) -> str:
    sizes = runs["n_inliers"]
    size = " to ".join(map(str, sorted({sizes.min(), sizes.max()})))
    how = [f"protocol {key.protocol}", key.network, key.operations] if key.protocol else []
    how = ", ".join([*filter(None, how), f"{size} inliers per class"])
    devices = ", ".join(filter(None, [*sorted(set(runs["device"])), key.precision]))
    return (
        f"### {key.dataset}, ρ = {100 * key.ratio:g} %\n\n"
        f"Images from {key.source}; {how}; {runs['inlier_class'].nunique()} of "
        f"{num_classes(key.dataset)} classes, {runs['seed'].nunique()} seed(s). "
        f"Devices: {devices}. All numbers in percent."
    )


def cells(runs: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    """Percent by (inlier class, seed) and method: NaN without a run, infinite if it diverged."""
    known = runs.assign(value=100 * runs[metric].fillna(np.inf))
    table = known.pivot_table("value", ["inlier_class", "seed"], "method", dropna=False)
    return table[ordered(table)]


def ordered(methods: Iterable[str]) -> list[str]:
    """E3Outlier and its variants first, what needs no training last."""
    untrained = ("pixel", "hog", "descriptors")
    return sorted(
        methods, key=lambda m: (not m.startswith("e3outlier"), m.startswith(untrained), m)
    )


def _class_table(runs: pd.DataFrame) -> str:
    found, warned = cells(runs).groupby(level=0).agg(_cell), runs[runs["warning"] != ""]
    for name, method in set(zip(warned["inlier_class"], warned["method"], strict=True)):
        found.loc[name, method] += " ⚠"
    notes = sorted(set(zip(warned["inlier_class"], warned["warning"], strict=True)))
    text = table(["AUROC, inlier class", *found], found.reset_index().to_numpy())
    return text + "".join(f"\n\n⚠ class {name}: {warning}" for name, warning in notes)


def _cell(seeds: pd.Series) -> str:
    done = seeds.count()
    some = f" ({done} of {len(seeds)} seeds)" if 0 < done < len(seeds) else ""
    return _number(seeds.mean(), "missing") + some


def _number(value: float, missing: str) -> str:
    return f"{value:.1f}".replace("nan", missing).replace("inf", "diverged")


def _mean_table(key: TableKey, runs: pd.DataFrame) -> str:
    found = {metric: cells(runs, metric) for metric in METRICS}
    auroc, lines = found["auroc"], []
    for method in auroc:
        [paper] = PAPER.reindex([(key.dataset, key.ratio, method)]).to_numpy()
        means = [
            _mean_and_spread(found[metric][method], number, num_classes(key.dataset))
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
    has_all = values.index.levshape[0] == all_classes
    over, difference = f"over all {all_classes} classes: ", f", {mean - paper:+.1f}"
    beside = f" ({paper:.1f}{difference})" if has_all else f" ({over}{paper:.1f})"
    return f"**{mean:.1f}**{spread}" + ("" if np.isnan(paper) else beside)


def _count(values: pd.Series, runs: pd.DataFrame) -> str:
    """How many runs a method has of all classes and seeds of its table, and what ails them."""
    done = values.notna()
    # A seed that was not run at all is one thing to say, not one for every class.
    unused = [seed for seed, of_seed in done.groupby(level=1) if not of_seed.any()]
    missing = [f"seed {seed}" for seed in unused]
    missing += [f"class {c} seed {seed}" for c, seed in done.index[~done] if seed not in unused]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    some = f"{done.sum()} of {len(values)}, missing: {', '.join(missing[:3])}{more}"
    text = some if missing else f"{len(values)}"
    marks = {"repeated": len(runs) - done.sum(), "⚠": (runs["warning"] != "").sum()}
    return ", ".join([text, *(f"{number} {mark}" for mark, number in marks.items() if number)])


def _paired_difference(auroc: pd.DataFrame) -> str:
    """E3Outlier against the best of the other methods, class by class on the same images."""
    own = "e3outlier+" if "e3outlier+" in auroc else "e3outlier"
    if own not in auroc:
        return ""
    done = auroc.notna()
    same_runs = auroc.loc[:, done.eq(done[own], axis=0).all()]
    means = by_class(same_runs)
    means = means.loc[:, np.isfinite(means).all()]
    others = means.filter(regex="^(?!e3outlier|factored)")
    if own not in means or others.empty or len(means) < 2:
        return ""
    best = others.mean().idxmax()
    mean, low, high = mean_and_interval(means[own] - others[best])
    return (
        f"\n\n{own} - {best}: {mean:+.1f}, 95 % interval {low:+.1f} to {high:+.1f} "
        "(points of AUROC, paired t over classes)."
    )


def paired_table(rows: Iterable[dict]) -> str:
    """e3outlier+ against others on the same images, by the quick protocol: a line per set.

    Differences are in points, of runs that both have, with 95 % t intervals over classes; a method
    that is missing leaves its cell empty.
    """
    runs, lines = frame(rows), []
    runs = runs[runs["protocol"].isin(["", "quick", "quick1"])]
    for (dataset, ratio), of_set in runs.groupby(["dataset", "ratio"]):
        for metric in ("auroc", "aupr_out"):
            index = ["inlier_class", "seed"]
            found = 100 * of_set.pivot_table(metric, index, ["method", "protocol"])
            if ("e3outlier+", "quick") not in found:
                continue
            own, means = found["e3outlier+", "quick"], by_class(found).mean()
            differences = found.rsub(own, axis=0)
            pixels = max(found.filter(like="pixel"), key=means.get, default=None)
            others = [("e3outlier", "quick1"), ("hog-knn", ""), pixels]
            cells = [interval(differences.get(other), "+.1f") for other in others]
            cells[-1] += f", {pixels[0]}" if pixels else ""
            name = f"{dataset}, ρ = {100 * ratio:g} %"
            mean = f"{means['e3outlier+', 'quick']:.1f}"
            lines.append([name, metric.replace("_", "-"), mean, *cells])
    head = ["images", "metric", "e3outlier+", "- first edition of e3outlier", "- hog-knn"]
    return table([*head, "- best pixel method"], lines) + versions_note(runs)


_REFINED_METRICS = ("auroc", "aupr_out")
# By the plain score: the names of its refinements.
_REFINED = {"factored": "factored-{}", "e3outlier+": "e3outlier+{}"}


def refinements_table(rows: Iterable[dict], refined: Iterable[dict]) -> str:
    """Each refinement of e3outlier+ against the plain thing on the same images, on average.

    Of the plain thing AUROC and AUPR-out in percent, of the others the differences in points.

    Args:
      rows: of the plain thing and of refinements, "e3outlier+NAME" and "factored-NAME".
      refined: others, of which those of e3outlier+ as it is, at ρ = 10 %, become "default".
    """
    runs, lines = _with_default(rows, refined), []
    own = runs["method"][runs["method"].str.match(r"e3outlier\+.")].unique()
    names = [method.removeprefix("e3outlier+") for method in own]
    for dataset, protocol, found in _refined_sets(runs):
        metrics = [found[metric] for metric in _REFINED_METRICS]
        for plain, name in _REFINED.items():
            cells = [" / ".join(f"{by_class(metric[plain]).mean():.1f}" for metric in metrics)]
            for column in map(name.format, names):
                differences = [m[column] - m[plain] for m in metrics if column in m]
                count = f" ({differences[0].count()})" if differences else ""
                means = (by_class(values).mean() for values in differences)
                cells.append(" / ".join(f"{mean:+.1f}" for mean in means) + count)
            lines.append([dataset, protocol, plain, metrics[0][plain].count(), *cells])
    head = ["images", "protocol", "score", "runs", "plain", *names]
    return table(head, lines) + versions_note(runs)


def refinement_intervals(rows: Iterable[dict], refined: Iterable[dict]) -> dict[str, str]:
    """Differences of e3outlier+'s refinements to the plain thing, with their intervals.

    Args:
      rows, refined: see :func:`refinements_table`.

    Returns:
      texts such as "+0.3 (+0.1 to +0.5)" by "NAME DATASET METRIC".
    """
    return {
        f"{method.removeprefix('e3outlier+')} {dataset} {metric}": interval(
            values - found[metric]["e3outlier+"], "+.1f"
        )
        for dataset, _, found in _refined_sets(_with_default(rows, refined))
        for metric in _REFINED_METRICS
        for method, values in found[metric].filter(regex=r"^e3outlier\+.").items()
    }


def _with_default(rows: Iterable[dict], refined: Iterable[dict]) -> pd.DataFrame:
    ours = {"factored": "factored-default", "e3outlier+": "e3outlier+default"}
    refined = [
        row | {"method": ours[row["method"]]}
        for row in refined
        if row["method"] in ours and float(row["ratio"]) == 0.1
    ]
    return frame([*rows, *refined])


def _refined_sets(runs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Data set, protocol, and percent by (inlier class, seed) and (metric, method)."""
    for (dataset, protocol), of_set in runs.groupby(["dataset", "protocol"]):
        index = ["inlier_class", "seed"]
        yield dataset, protocol, 100 * of_set.pivot_table([*_REFINED_METRICS], index, "method")


def steps_table(rows: Iterable[dict]) -> str:
    """AUROC and AUPR-out of e3outlier+ and of its network by images and steps, in percent.

    The time, of training and scoring, is relative to the first line's; it is the median over
    classes, since the first one's compiles.
    """
    runs, lines, first = frame(rows), [], None
    runs["seconds"] = runs["train_seconds"] + runs["score_seconds"]
    for (inliers, outliers, steps), group in runs.groupby(["n_inliers", "n_outliers", "steps"]):
        means = 100 * group.groupby("method")[["auroc", "aupr_out"]].mean()
        cells = ["{:.1f} / {:.1f}".format(*means.loc[m]) for m in ("factored", "e3outlier+")]
        seconds = group.loc[group["method"] == "e3outlier+", "seconds"].median()
        first = first or seconds
        recognised = f"{100 * group['pretext_accuracy'].mean():.0f}"
        time = f"{seconds / first:.1f}"
        lines.append([f"{inliers} + {outliers}", steps, recognised, *cells, time])
    head = ["images", "steps", "operations recognised, %", "factored", "e3outlier+", "time"]
    return table(head, lines) + versions_note(runs)


def by_class(values: pd.DataFrame | pd.Series) -> pd.DataFrame | pd.Series:
    """Means over the runs of each class, by the index's level ``inlier_class``."""
    return values.groupby(level="inlier_class").mean()


def mean_and_interval(values: pd.Series) -> tuple[float, float, float]:
    """The mean over classes and its 95 % t interval, of NaNs for a single class.

    Seeds of one class draw from the same images, so they are no independent values: each class
    counts once, by the mean over its seeds.

    Args:
      values: of runs, NaN for those that are missing; the index has the level ``inlier_class``.
    """
    classes = by_class(values).dropna()
    mean, half = classes.mean(), classes.sem() * scipy.stats.t.ppf(0.975, len(classes) - 1)
    return mean, mean - half, mean + half


def interval(values: pd.Series | None, form: str = ".3g") -> str:
    """The mean and interval of :func:`mean_and_interval` as text; "" without values."""
    if values is None:
        return ""
    mean, *ends = mean_and_interval(values)
    low, high = (f"{end:{form}}" for end in ends)
    return f"{mean:{form}}" + ("" if np.isnan(ends[0]) else f" ({low} to {high})")


def table(head: Sequence, lines: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def priority_table(trainings: pd.DataFrame) -> str:
    """Means over trainings with 95 % intervals over classes, and differences of pairs.

    Args:
      trainings: the summary that ``priority.py`` writes: ``inlier_class``, ``seed``, a column
        QUANTITY_STAGE for each of the STAGES, and ``pl_auroc``.
    """
    trainings = trainings.set_index(["inlier_class", "seed"])
    wide = trainings.filter(regex=f"_({'|'.join(STAGES)})$")
    wide.columns = pd.MultiIndex.from_tuples(column.rsplit("_", 1) for column in wide)
    found = {name: wide[name] for name in wide.columns.unique(0)}
    pairs = [(name, name.replace("_inliers", "_outliers")) for name in found if "_inl" in name]
    pairs += [(name, name.replace("_large", "_small")) for name in found if "_large" in name]
    for a, b in [("magnitude_ratio", "magnitude_ratio_control"), *pairs]:
        found[f"{a} - {b}"] = found[a] - found[b]
    lines = [
        [name.replace("_", " "), *(interval(values.get(stage)) for stage in STAGES)]
        for name, values in found.items()
    ]
    lines.append(["PL AUROC after training", "", "", interval(trainings["pl_auroc"])])
    classes = trainings.index.get_level_values("inlier_class").nunique()
    of = f"{len(trainings)} training(s) of {classes} class(es)"
    head = [f"{trainings['source'].iloc[0]}, mean of {of}", *(f"{s} third" for s in STAGES)]
    return table(head, lines) + versions_note(trainings)


# --- Versions ------------------------------------------------------------------------------------


def versions_of(runs: pd.DataFrame) -> dict[str, collections.Counter]:
    """How many rows name which version of each package, from the column ``versions``."""
    named = collections.defaultdict(collections.Counter)
    for versions, count in runs.get("versions", pd.Series(dtype=str)).value_counts().items():
        for package in versions.split():
            name, _, version = package.partition("=")
            named[name][version] += count
    return dict(named)


def is_mixed(runs: pd.DataFrame) -> bool:
    """Whether different versions of a library made these rows."""
    return any(len(of) > 1 for name, of in versions_of(runs).items() if name != "python")


def versions_note(runs: pd.DataFrame) -> str:
    """A paragraph for under a table whose rows different versions made; "" if the same did."""
    if not is_mixed(runs):
        return ""
    mixed = {name: of for name, of in versions_of(runs).items() if len(of) > 1}
    return f"\n\n⚠ Rows of different versions are averaged: {_listed(mixed, len(runs))}."


def versions_sentence(tables: Iterable[pd.DataFrame]) -> str:
    """What made the rows of some tables, by how many of them name it."""
    runs = pd.concat([rows[["versions"]] for rows in tables])
    return _listed(versions_of(runs), len(runs))


def _listed(named: dict[str, collections.Counter], rows: int) -> str:
    """Names and versions, with the number of rows of each that is not of all."""
    texts = []
    for name, of in named.items():
        counts = (v if n == rows else f"{v} ({n} of {rows} rows)" for v, n in of.items())
        texts.append(f"{name} {' and '.join(counts)}")
    return ", ".join(texts)

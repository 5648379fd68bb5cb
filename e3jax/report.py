"""Tables and figures for people. Everything is made from rows and scores that lie on disk."""

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e3jax import files, operations, training

METRICS = ("auroc", "aupr_in", "aupr_out")
# Table 1, each as AUROC/AUPR-in/AUPR-out in percent; "·" where every text of the paper lost it. The
# authors' RDAE never separates outliers, so its numbers belong to the variant named here.
_METHODS = ("cae", "cae-if", "drae", "rdae-as-published", "dagmm", "ssd-if", "e3outlier")
_TABLE_1 = """
mnist         0.1 ·              85.5/97.8/49.0 ·              ·              ·              ·              94.1/·/·
mnist         0.2 ·              81.5/93.6/57.2 ·              ·              ·              ·              ·
fashion_mnist 0.1 70.3/94.3/29.3 82.3/97.2/40.3 67.1/93.9/25.5 75.3/95.8/31.7 64.0/92.7/30.3 90.6/98.5/68.6 93.3/99.0/75.9
fashion_mnist 0.2 64.4/85.3/36.8 77.8/92.2/49.0 65.7/86.9/36.6 70.9/89.2/41.4 66.0/86.7/43.5 87.6/95.6/71.4 91.2/97.1/78.9
cifar10       0.1 55.9/91.0/14.4 54.1/90.2/13.7 56.0/90.7/14.7 55.4/90.7/14.0 56.1/91.3/15.6 64.0/93.5/18.3 83.5/97.5/43.4
cifar10       0.2 54.7/81.6/25.5 53.8/80.7/25.3 55.6/81.7/26.8 54.2/81.0/25.7 54.7/81.8/26.3 60.2/85.0/28.3 79.3/93.1/52.7
svhn          0.1 ·              55.0/91.4/11.9 ·              ·              ·              ·              86.0/·/·
svhn          0.2 ·              54.0/82.0/22.4 ·              ·              ·              ·              ·
cifar100      0.1 55.2/91.0/14.5 54.5/90.7/13.8 55.6/90.9/15.0 55.8/90.9/15.0 54.9/91.1/14.2 55.6/91.5/13.0 79.2/96.8/33.3
cifar100      0.2 54.4/81.7/25.6 53.5/80.9/25.1 55.5/81.8/27.0 54.9/81.5/26.5 53.8/81.5/24.7 54.3/82.1/23.4 77.0/92.4/46.5
"""  # noqa: E501
# In the text, AUROC alone: E3Outlier with few outliers, and CAE on all views or with 64 codes.
_IN_TEXT = """
              0.005     0.1       0.1
              e3outlier cae-views cae-64
mnist         96.0      55.5      71.9
fashion_mnist 93.6      63.9      75.6
cifar10       87.4      54.2      56.3
svhn          91.0      50.0      53.4
cifar100      80.7      53.8      56.1
"""


def _read_paper() -> dict[tuple[str, float, str], tuple[float | None, ...]]:
    paper = {}
    for dataset, ratio, *cells in map(str.split, _TABLE_1.strip().splitlines()):
        for method, cell in zip(_METHODS, cells, strict=True):
            numbers = [None if part == "·" else float(part) for part in cell.split("/")]
            if any(numbers):
                paper[dataset, float(ratio), method] = tuple(numbers)
    ratios, methods, *lines = map(str.split, _IN_TEXT.strip().splitlines())
    for dataset, *cells in lines:
        for ratio, method, cell in zip(ratios, methods, cells, strict=True):
            paper[dataset, float(ratio), method] = (float(cell), None, None)
    return paper


# By (dataset, outlier ratio, method): the paper's values of METRICS in percent, or None.
PAPER = _read_paper()
_INLIER, _OUTLIER = "#4477aa", "#ee6677"
_PRIORITY_GROUPS = (
    ("inliers", {"color": _INLIER}),
    ("outliers", {"color": _OUTLIER}),
    ("control: random 1 - ρ of the inliers", {"color": "#555555", "linestyle": "--"}),
    ("control: the other ρ of them", {"color": "#aa9900", "linestyle": "--"}),
)
matplotlib.rcParams["svg.hashsalt"] = "e3jax"


def _save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure whole or not at all."""
    kind = Path(path).suffix[1:]
    files.write_atomically(
        path, lambda file: figure.savefig(file, format=kind, dpi=110, bbox_inches="tight")
    )


def plot_scores(
    path: str | os.PathLike, scores: np.ndarray, is_outlier: np.ndarray, title: str
) -> None:
    """Draws normalised histograms of inliers' and outliers' scores [n], as Fig. 4 of the paper."""
    figure = Figure(figsize=(5, 3))
    axes = figure.add_subplot()
    _histograms(axes, scores, is_outlier)
    axes.set_title(title)
    _save(figure, path)


def _histograms(axes: Axes, scores: np.ndarray, is_outlier: np.ndarray) -> None:
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 41)
    for outlier, colour, name in ((False, _INLIER, "inliers"), (True, _OUTLIER, "outliers")):
        group = scores[is_outlier == outlier]
        share = np.full(len(group), 1 / max(len(group), 1))
        label = f"{name} ({len(group)})"
        axes.hist(group, bins, weights=share, color=colour, alpha=0.6, label=label)
    axes.set(xlabel="score (smaller = more outlying)", ylabel="share of the group")
    axes.locator_params(axis="x", nbins=6)
    axes.legend(frameon=False)


def plot_priority(
    path: str | os.PathLike,
    steps: np.ndarray,
    series: dict[str, np.ndarray],
    pl: np.ndarray,
    is_outlier: np.ndarray,
    title: str,
) -> None:
    """Draws inlier priority in a page: Figs. 2, 3 and 4 of the paper and what tells them apart.

    Lines are means over seeds, bands one standard deviation.

    Args:
      path: PNG or PDF.
      steps: int [points].
      series: float [seeds, points, 4] of inliers, outliers and the control's large and small group,
        for "gradient_magnitude", "de_facto_update", "update_by_others" and "loss".
      pl: PL scores [n] of all seeds.
      is_outlier: bool [n].
      title: of the page.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(title)
    (fig2, ratio, fig4), (fig3, others, loss) = figure.subplots(2, 3)
    magnitude = series["gradient_magnitude"]
    for axes, name, heading in (
        (fig2, "gradient_magnitude", "Fig. 2: norm of the group's summed gradient"),
        (fig3, "de_facto_update", "Fig. 3: mean de facto update"),
        (others, "update_by_others", "the same, by the other views of the batch"),
        (loss, "loss", "mean loss (nats)"),
    ):
        # A batch has few outliers: its means are averaged over some points, the others are not.
        points = 1 if name == "gradient_magnitude" else max(len(steps) // 25, 1)
        for g, (label, style) in enumerate(_PRIORITY_GROUPS):
            _line(axes, steps, series[name][:, :, g], points, label=label, **style)
        axes.set_title(heading, size=10)
    for (a, b), label, colour in (
        ((0, 1), "inliers / outliers", "black"),
        ((2, 3), "control", "grey"),
    ):
        _line(ratio, steps, magnitude[:, :, a] / magnitude[:, :, b], 1, label=label, color=colour)
    expected = (1 - is_outlier.mean()) / is_outlier.mean()
    ratio.axhline(expected, color="grey", linewidth=0.8, linestyle=":", label="N_in / N_out")
    ratio.set_title("ratio of Fig. 2", size=10)
    for axes in (fig2, ratio, fig3, others, loss):
        axes.set(xlabel="step", xlim=(0, steps[-1]))
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 0))
    for axes in (fig2, ratio):
        axes.legend(frameon=False, fontsize=8)
    _histograms(fig4, pl, is_outlier)
    fig4.set_title("Fig. 4: PL scores after training", size=10)
    fig4.set_xlabel("PL score (smaller = more outlying)")
    _save(figure, path)


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, points: int, **style) -> None:
    """Mean over seeds and its band; every drawn point averages so many of [seeds, points]."""
    whole = len(steps) // points * points
    x = steps[:whole].reshape(-1, points).mean(1)
    with warnings.catch_warnings():  # no view of the group in any of the batches: a gap
        warnings.simplefilter("ignore", RuntimeWarning)
        values = np.nanmean(values[:, :whole].reshape(len(values), -1, points), axis=2)
        mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    (line,) = axes.plot(x, mean, linewidth=1.5, **style)
    if len(values) > 1:
        band = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0}
        axes.fill_between(x, mean - spread, mean + spread, **band)


class Point(NamedTuple):
    """AUROC in percent: of every seed, and the paper's or None."""

    values: Sequence[float]
    paper: float | None


class Panel(NamedTuple):
    """A data set's part of a figure: a title, and points by series and by what they stand at."""

    title: str
    series: dict[str, dict[str | float, Point]]


def plot_factor(path: str | os.PathLike, panels: Sequence[Panel], title: str, xlabel: str) -> None:
    """Draws AUROC against a factor, a panel a data set, as Figs. 5 and 6 of the paper.

    Numbers are joined by lines, names are not. Bars are one standard deviation over seeds; hollow
    diamonds are the paper's numbers.

    Args:
      path: PNG or PDF.
      panels: in the order of the page.
      title: of the page.
      xlabel: the factor.
    """
    figure = Figure(figsize=(2.8 + 3.2 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title)
    names = _ordered({name for panel in panels for name in panel.series})
    colours = dict(zip(names, matplotlib.colormaps["tab20"].colors, strict=False))
    places = list(dict.fromkeys(x for panel in panels for s in panel.series.values() for x in s))
    numeric = all(isinstance(x, (int, float)) for x in places)
    at = {x: x if numeric else i for i, x in enumerate(places)}
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(drawn, panels, strict=True):
        for s, name in enumerate(names):
            # Beside each other, where lines do not tell series apart.
            shift = 0 if numeric else 0.5 * ((s + 0.5) / len(names) - 0.5)
            series = {at[x] + shift: point for x, point in panel.series.get(name, {}).items()}
            _plot_series(axes, series, colours[name], name, "-" if numeric else "")
        if not numeric:
            axes.set_xticks(range(len(places)), places, size=8 if len(places) > 3 else None)
            axes.set_xlim(-0.6, len(places) - 0.4)
        axes.set_title(panel.title, size=10)
        axes.set(xlabel=xlabel)
        # A difference of a tenth of a point is none, and must not look like one.
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5))
        axes.grid(axis="y", alpha=0.3)
    drawn[0].set_ylabel("AUROC (%)")
    handles, labels = drawn[0].get_legend_handles_labels()
    handles += drawn[0].plot([], [], "D", fillstyle="none", color="black")
    labels += ["the paper (all classes)"]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    _save(figure, path)


def _plot_series(
    axes: Axes, series: dict[float, Point], colour: tuple, name: str, linestyle: str
) -> None:
    xs = sorted(series)
    means = [np.mean(series[x].values) for x in xs]
    spread = [np.std(series[x].values, ddof=1) if len(series[x].values) > 1 else np.nan for x in xs]
    style = {"marker": "o", "markersize": 5, "capsize": 3, "linestyle": linestyle}
    axes.errorbar(xs, means, spread, color=colour, label=name, **style)
    paper = {x: series[x].paper for x in xs if series[x].paper}
    axes.plot(paper.keys(), paper.values(), "D", fillstyle="none", color=colour)


def plot_overview(path: str | os.PathLike, rows: Sequence[dict], title: str) -> None:
    """Draws the AUROC of every method for every inlier class; one dot a run, a bar for the mean.

    Args:
      path: PNG or PDF.
      rows: with ``inlier_class``, ``method`` and ``auroc`` (a fraction).
      title: of the figure.
    """
    classes = sorted({row["inlier_class"] for row in rows})
    methods = _ordered({row["method"] for row in rows})
    figure = Figure(figsize=(2.5 + 0.8 * len(classes), 3.4))
    axes = figure.add_subplot()
    width = 0.8 / len(methods)
    for m, method in enumerate(methods):
        label = method
        for c, name in enumerate(classes):
            values = [
                100 * r["auroc"]
                for r in rows
                if (r["method"], r["inlier_class"]) == (method, name) and math.isfinite(r["auroc"])
            ]
            x = c + (m + 0.5) * width - 0.4
            if values:
                colour = matplotlib.colormaps["tab20"](m % 20)
                axes.bar(x, np.mean(values), width, color=colour, label=label)
                label = None  # one entry in the legend
                axes.plot([x] * len(values), values, "k.", markersize=3)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(classes)), [str(c) for c in classes])
    axes.set(title=title, xlabel="inlier class", ylabel="AUROC (%)", ylim=(0, 101))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def plot_views(
    path: str | os.PathLike, image: np.ndarray, operation_set: operations.OperationSet
) -> None:
    """Draws all views of an image uint8 [h, w, c] as a labelled sheet, a block for each family."""
    unit = training.to_unit(jnp.asarray(image))
    views = np.asarray(operations.all_views(operation_set, unit[None])[0])
    views = np.clip((views + 1) / 2, 0, 1)
    columns = 12
    families = list(dict.fromkeys(operation_set.families))
    members = {f: [k for k, g in enumerate(operation_set.families) if g == f] for f in families}
    heights = [math.ceil(len(m) / columns) for m in members.values()]
    figure = Figure(figsize=(columns * 1.1, sum(heights) * 1.5 + 0.4 * len(families)))
    blocks = figure.subfigures(len(families), 1, height_ratios=[h + 0.3 for h in heights])
    for block, family, height in zip(np.atleast_1d(blocks), families, heights, strict=True):
        block.suptitle(f"{family}: {len(members[family])} operations", x=0.01, ha="left", size=10)
        grid = block.subplots(height, columns, squeeze=False)
        top = 0.97 - 0.35 / (height + 0.3)
        block.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=top, hspace=0.55)
        for axes in grid.ravel():
            axes.axis("off")
        for axes, k in zip(grid.ravel(), members[family], strict=False):
            axes.imshow(
                views[k].squeeze(-1) if image.shape[-1] == 1 else views[k],
                cmap="gray",
                vmin=0,
                vmax=1,
            )
            axes.set_title(f"{k} {operation_set.names[k]}".replace("·", "\n"), size=6, pad=2)
    _save(figure, path)


def _ordered(methods: Iterable[str]) -> list[str]:
    """e3outlier and its variants first, what needs no training last."""
    return sorted(methods, key=lambda m: (not m.startswith("e3outlier"), m.startswith("pixel"), m))


def markdown(rows: Sequence[dict]) -> str:
    """Tables of result rows for each group of :func:`comparable`: of its classes, and of means.

    The cells of a class are AUROC in percent, averaged over seeds; a run with a ``warning`` is
    marked. The second table is that of :func:`summary`.

    Args:
      rows: of ``results.csv``, numbers as numbers, with an optional ``warning``.
    """
    return "\n".join(
        f"{_heading(key, group)}\n{_classes(group)}\n{_means(key, group)}"
        for key, group in comparable(rows).items()
    )


def summary(rows: Sequence[dict]) -> str:
    """A table of means in percent for each group of :func:`comparable`.

    A cell is the mean over classes of every seed that has all of them, its standard deviation over
    those seeds, and in brackets the paper's value and the difference. Runs with a ``warning`` are
    counted beside the others.
    """
    return "\n".join(
        f"{_heading(key, group)}\n{_means(key, group)}" for key, group in comparable(rows).items()
    )


class TableKey(NamedTuple):
    """What the runs of one table have in common; all behind ``protocol`` is "" without a training.

    ``device`` is the kind that trained, so that numbers of different hardware are never averaged.
    """

    dataset: str
    source: str
    ratio: float
    max_images: int
    protocol: str
    network: str
    operations: str
    precision: str
    device: str

    def fits(self, table: "TableKey") -> bool:
        """Whether runs of this kind may stand in a table of that kind."""
        same_images = self[:4] == table[:4]
        return same_images and all(a in ("", b) for a, b in zip(self[4:], table[4:], strict=True))


def comparable(rows: Iterable[dict]) -> dict[TableKey, list[dict]]:
    """Groups rows of runs that may stand in one table.

    What a method has none of does not separate it: pixel baselines stand in each table of their
    images, autoencoders in each of their images and protocol. Protocols are never mixed.
    """
    groups = defaultdict(list)
    for row in rows:
        row = row | {"max_images": row.get("max_images") or 0}
        trained = {"precision": row["precision"], "device": row["device"].split(" x ")[-1]}
        trained = trained if row["protocol"] else dict.fromkeys(trained, "")
        groups[TableKey(*((row | trained)[field] for field in TableKey._fields))].append(row)
    tables = [key for key in groups if not any(key.fits(k) for k in groups if k != key)]
    return {
        table: [row for key in groups if key.fits(table) for row in groups[key]]
        for table in sorted(tables)
    }


def _heading(key: TableKey, rows: list[dict]) -> str:
    classes, seeds = ({row[name] for row in rows} for name in ("inlier_class", "seed"))
    sizes = sorted({row["n_inliers"] for row in rows})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    how = [f"protocol {key.protocol}"] if key.protocol else []
    how += [*filter(None, (key.network, key.operations)), f"{size} inliers a class"]
    precision = f", {key.precision}" if key.precision else ""
    return (
        f"### {key.dataset}, ρ = {100 * key.ratio:g} %\n\n"
        f"Images from {key.source}; {', '.join(how)}, {len(classes)} class(es), "
        f"{len(seeds)} seed(s).\n"
        f"Devices: {', '.join(sorted({row['device'] for row in rows}))}{precision}. All in "
        "percent.\n"
    )


def _classes(rows: list[dict]) -> str:
    cells, methods, classes = _cells(rows)
    seeds = {row["seed"] for row in rows}
    lines = [
        "| AUROC, inlier class | " + " | ".join(methods) + " |",
        "| --- " * (len(methods) + 1) + "|",
    ]
    for name in classes:
        values = [_cell(cells[method, name], seeds) for method in methods]
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    warnings = {f"class {r['inlier_class']}: {r['warning']}" for r in rows if r.get("warning")}
    lines += [f"\n⚠ {text}" for text in sorted(warnings)]
    return "\n".join(lines) + "\n"


def _means(key: TableKey, rows: list[dict]) -> str:
    cells, methods, classes = _cells(rows)
    seeds = sorted({row["seed"] for row in rows})
    heads = ("method", "AUROC (paper, difference)", "AUPR-in", "AUPR-out", "runs")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for method in methods:
        paper = PAPER.get((key.dataset, round(key.ratio, 4), method), (None,) * len(METRICS))
        means = [
            _mean_and_spread(cells, method, classes, metric, number)
            for metric, number in zip(METRICS, paper, strict=True)
        ]
        values = [method, *means, _count(cells, method, classes, seeds)]
        lines.append(f"| {' | '.join(values)} |")
    if difference := _paired_difference(cells, methods, classes):
        lines.append(f"\ne3outlier - {difference} (points of AUROC, paired t over classes).")
    return "\n".join(lines) + "\n"


def _count(cells: dict, method: str, classes: Sequence, seeds: Sequence) -> str:
    """How many runs a method has of all classes and seeds of the table, and what ails them."""
    total = len(classes) * len(seeds)
    done = {(name, row["seed"]) for name in classes for row in cells[method, name]}
    # A seed that was not run at all is one thing to say, not one for every class.
    unused = [seed for seed in seeds if not any((name, seed) in done for name in classes)]
    missing = [f"seed {seed}" for seed in unused]
    missing += [
        f"class {name} seed {seed}"
        for name in classes
        for seed in seeds
        if (name, seed) not in done and seed not in unused
    ]
    warned = sum(bool(row.get("warning")) for name in classes for row in cells[method, name])
    text = str(total)
    if missing:
        text = f"{len(done)} of {total}, missing: {', '.join(missing[:3])}"
    if len(missing) > 3:
        text += f" and {len(missing) - 3} more"
    return f"{text}, {warned} ⚠" if warned else text


def _cells(rows: Sequence[dict]) -> tuple[dict, list[str], list]:
    """Rows by (method, inlier class); the methods; the classes."""
    cells = defaultdict(list)
    for row in rows:
        cells[row["method"], row["inlier_class"]].append(row)
    methods, classes = zip(*cells, strict=True)
    return cells, _ordered(set(methods)), sorted(set(classes))


def _paired_difference(cells: dict, methods: Sequence[str], classes: Sequence) -> str:
    """E3Outlier against the best of the other methods, class by class on the same images.

    "METHOD: mean (95 % interval)", or "" where there is nothing to compare.
    """

    def seeds(method: str, name) -> set:
        return {row["seed"] for row in cells[method, name]}

    auroc = {
        method: [100 * np.mean([row["auroc"] for row in cells[method, c]]) for c in classes]
        for method in methods
        if all(seeds(method, c) and seeds(method, c) == seeds("e3outlier", c) for c in classes)
    }
    others = [m for m in auroc if not m.startswith("e3outlier")]
    if "e3outlier" not in auroc or not others or len(classes) < 2:
        return ""
    best = max(others, key=lambda method: np.mean(auroc[method]))
    difference = np.subtract(auroc["e3outlier"], auroc[best])
    half = scipy.stats.t.ppf(0.975, len(classes) - 1) * scipy.stats.sem(difference)
    mean = difference.mean()
    return f"{best}: {mean:+.1f}, 95 % interval {mean - half:+.1f} to {mean + half:+.1f}"


def _cell(rows: list[dict], seeds: set) -> str:
    """Mean AUROC of a class over seeds, with marks for what is missing and warned of."""
    if not rows:
        return "missing"
    done = len({row["seed"] for row in rows})
    mark = f" ({done} of {len(seeds)} seeds)" if done < len(seeds) else ""
    mark += " ⚠" if any(row.get("warning") for row in rows) else ""
    mean = 100 * np.mean([row["auroc"] for row in rows])
    return (f"{mean:.1f}" if math.isfinite(mean) else "diverged") + mark


def _mean_and_spread(
    cells: dict, method: str, classes: Sequence, metric: str, paper: float | None
) -> str:
    """Mean over classes, of every seed that has all of them; spread over those seeds."""
    by_seed = defaultdict(dict)
    for name in classes:
        for row in cells[method, name]:
            by_seed[row["seed"]][name] = 100 * row[metric]
    means = [np.mean(list(v.values())) for v in by_seed.values() if len(v) == len(classes)]
    if not means:
        return "incomplete"
    mean = np.mean(means)
    if not math.isfinite(mean):
        return "diverged"
    spread = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
    beside = f" ({paper:.1f}, {mean - paper:+.1f})" if paper else ""
    return f"**{mean:.1f}**{spread}{beside}"

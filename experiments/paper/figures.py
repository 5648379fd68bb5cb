"""Figures of result rows, beside the paper's numbers: Figs. 1 b to 6."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e3jax import training
from e3jax.report.sheet import check_output, save_figure
from paper import tables, versions

_INLIERS, _OUTLIERS = "#4477aa", "#ee6677"
# Groups of images whose priority is recorded, and how they are drawn.
_GROUPS = {
    "inliers": "inliers",
    "outliers": "outliers",
    "control_large": "control: random 1 - ρ of the inliers",
    "control_small": "control: the other ρ of them",
}
_COLOURS, _DASHES = [_INLIERS, _OUTLIERS, "#555555", "#aa9900"], ["", "", (4, 2), (4, 2)]
_OPERATIONS, _RATIO = "RA+IA+PR", 0.1
# Suffixes of protocols: the lengths of Fig. 6 a that are not the protocol's own, and Fig. 6 d.
BY_EPOCHS, EQUAL_STEPS, EPOCHS = "-by-epochs", "-equal-steps", "-10epochs"
_LENGTHS = ("equal steps", "the paper's epochs")
_IMAGES = ["dataset", "source", "max_images"]
# Names stand in this order on an axis, all others behind them.
_ORDER = ("CAE", "SSD", "PL", "MP", "NE", "RA", "RA+IA", "RA+IA+PR")


def file_name(*parts) -> str:
    """A file name made of all parts that are not empty."""
    return re.sub(r"[^\w.+=-]+", "_", "-".join(str(part) for part in parts if part)).strip("_")


# --- Results of a sweep ------------------------------------------------------------------------


def plot_scores(path: Path | str, scores: np.ndarray, is_outlier: np.ndarray, title: str) -> None:
    """Draws normalised histograms of inliers' and outliers' scores [n], as Fig. 4 of the paper."""
    figure = Figure(figsize=(5, 3))
    _histograms(figure.add_subplot(title=title), scores, is_outlier)
    save_figure(path, figure)


def _histograms(axes: Axes, scores: np.ndarray, is_outlier: np.ndarray) -> None:
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 41)
    for outlier, colour, name in ((False, _INLIERS, "inliers"), (True, _OUTLIERS, "outliers")):
        group = scores[is_outlier == outlier]
        share, label = np.full(len(group), 1 / max(len(group), 1)), f"{name} ({len(group)})"
        axes.hist(group, bins, weights=share, color=colour, alpha=0.6, label=label)
    axes.set(xlabel="score (smaller = more outlying)", ylabel="share of the group")
    axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper center", ncols=2, frameon=False)


def draw_overviews(folder: Path, rows: Iterable[dict]) -> list[Path]:
    """Draws one overview per table of :func:`paper.tables.comparable`; returns the files."""
    drawn = []
    for key, runs in tables.comparable(rows).items():
        runs = runs[~runs["method"].isin(["e3outlier-pl", "e3outlier-mp"])]
        title = f"{key.dataset}, ρ = {100 * key.ratio:g} %, images from {key.source}"
        title += "\nrows of different versions" * versions.is_mixed(runs)
        drawn.append(folder / f"{overview_name(key)}.png")
        plot_overview(drawn[-1], runs, title)
    return drawn


def overview_name(key: tables.TableKey) -> str:
    """The name of a table's figure: all that distinguishes it from others."""
    size = f"{key.max_images}images" if key.max_images else ""
    return file_name(key.dataset, f"ratio{key.ratio:g}", *key[4:], size, key.source)


def plot_overview(path: Path | str, runs: pd.DataFrame, title: str) -> None:
    """Draws the AUROC of every method for every inlier class: one dot per run, bars are means.

    Args:
      path: PNG, PDF or SVG file.
      runs: with columns ``inlier_class``, ``method`` and ``auroc``, a fraction or NaN.
      title: of the figure.
    """
    methods = tables.ordered(set(runs["method"]))
    figure = Figure(figsize=(2.5 + 0.8 * runs["inlier_class"].nunique(), 3.4))
    axes = figure.add_subplot(title=title, ylim=(0, 101))
    options = {"x": "inlier_class", "y": "auroc", "hue": "method", "hue_order": methods, "ax": axes}
    runs = runs.assign(auroc=100 * runs["auroc"])
    sns.barplot(runs, palette="tab20", errorbar=None, saturation=1, **options)
    black = {"palette": dict.fromkeys(methods, "black"), "size": 3, "legend": False}
    sns.stripplot(runs, dodge=True, jitter=False, **black, **options)
    axes.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="inlier class", ylabel="AUROC (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(path, figure)


# --- Figs. 1 b, 5 and 6: one factor at a time ----------------------------------------------------


class Factor(NamedTuple):
    """A figure of one factor.

    Attributes:
      title: of the figure.
      xlabel: what is on its x axis, see :func:`_places`.
      varies: columns in which runs may differ from the protocol's.
    """

    title: str
    xlabel: str
    varies: Collection[str] = ()


# By the name of the file.
FIGURES = {
    "fig1b-representations": Factor("Fig. 1 b: isolation forest", "representation"),
    "fig5-ratios": Factor("Fig. 5: outlier ratio", "ρ (%)", ["ratio"]),
    "fig6a-operations": Factor("Fig. 6 a: operations", "operations", ["operations", "protocol"]),
    "fig6b-networks": Factor("Fig. 6 b: network", "network", ["network"]),
    "fig6c-scores": Factor("Fig. 6 c: score", "score"),
    "fig6d-epochs": Factor("Fig. 6 d: epochs", "epochs", ["protocol"]),
}


def _places(runs: pd.DataFrame, xlabel: str) -> pd.DataFrame:
    """The runs that have a place in a figure, with their x and, line by line, their series."""
    method, e3outlier = runs["method"], runs["method"] == "e3outlier"
    x = {
        "representation": method.map({"cae-if": "CAE", "ssd-if": "SSD"}),
        "ρ (%)": 100 * runs["ratio"].mask(method.str.match("e3outlier-|cae-views|cae-64")),
        "operations": runs["operations"].where(e3outlier),
        "network": runs["network"].where(e3outlier),
        "score": method.map({"e3outlier-pl": "PL", "e3outlier-mp": "MP", "e3outlier": "NE"}),
        "epochs": method.str.extract(r"^e3outlier-epoch(\d+)$")[0].astype(float),
    }
    # A length in steps is the same for all sets of operations, one in epochs is the paper's.
    by_epochs = runs["protocol"].str.contains(f"^paper(?!.*{EQUAL_STEPS})|{BY_EPOCHS}$")
    lengths = zip(runs["operations"] == _OPERATIONS, by_epochs, strict=True)
    series = {
        "representation": "isolation forest",
        "ρ (%)": method,
        "operations": [_LENGTHS if has_all else _LENGTHS[epochs] for has_all, epochs in lengths],
    }.get(xlabel, "E³Outlier")
    return runs.assign(series=series, x=x[xlabel]).dropna(subset="x").explode("series")


def draw(folder: Path, rows: Iterable[dict]) -> list[Path]:
    """Draws every figure of FIGURES that the rows have something of, one file per protocol."""
    runs, drawn = tables.frame(rows), {}
    for protocol in sorted(set(_bases(runs)) - {""}):
        for path, name in zip(factor_files(folder, protocol), FIGURES, strict=True):
            if panels := factor_panels(runs, protocol, name):
                title = f"{FIGURES[name].title}; protocol {protocol}"
                drawn[path] = panels, title, FIGURES[name].xlabel
    for path in drawn:
        check_output(path)
    for path, figure in drawn.items():
        plot_factor(path, *figure)
    return list(drawn)


def factor_files(folder: Path, protocol: str) -> list[Path]:
    """The files of FIGURES for a protocol."""
    return [folder / f"{file_name(name, protocol)}.png" for name in FIGURES]


def _bases(runs: pd.DataFrame) -> pd.Series:
    """The protocols that the runs' protocols are variants of."""
    return runs["protocol"].str.replace(f"({BY_EPOCHS}|{EQUAL_STEPS}|{EPOCHS})$", "", regex=True)


def factor_panels(runs: pd.DataFrame, protocol: str, name: str) -> dict[str, pd.DataFrame]:
    """One panel for each set of images in which the factor takes two values or more.

    Different precisions and kinds of device have panels of their own. The points of a panel are
    means over the classes that all of them have.

    Args:
      runs: see :func:`paper.tables.frame`.
      protocol: the runs shown are its own, except for what the factor varies, and where these have
        a place those of methods without training.
      name: of FIGURES.

    Returns:
      By title: columns ``series``, ``x``, ``seed``, ``auroc`` and ``paper`` (percent, or NaN).
    """
    xlabel, varies = FIGURES[name].xlabel, FIGURES[name].varies
    unchanged = {"network": _network(protocol), "operations": _OPERATIONS, "ratio": _RATIO}
    unchanged["protocol"] = protocol
    runs = runs[_bases(runs).isin(["", protocol])]
    for column in unchanged.keys() - varies:
        runs = runs[runs[column].isin(["", unchanged[column]])]
    runs = _places(runs, xlabel)
    runs["paper"] = [_paper(row, "network" in varies) for row in runs.to_dict("records")]
    untrained, panels = runs[runs["protocol"] == ""], {}
    for key, group in runs[runs["protocol"] != ""].groupby([*_IMAGES, "precision", "device_kind"]):
        same_images = (untrained[_IMAGES] == list(key[:3])).all(axis=1)
        cells = tables.together(group, untrained[same_images & untrained["x"].isin(group["x"])])
        classes = set.intersection(*cells.groupby(["series", "x"])["inlier_class"].agg(set))
        if cells["x"].nunique() < 2 or not classes:
            continue
        by_class = cells.groupby(["series", "x", "paper", "seed", "inlier_class"], dropna=False)
        values = 100 * by_class["auroc"].mean().unstack()[sorted(classes)]
        dataset, source, max_images, *others = key
        size = [f"{max_images} images"] if max_images else []
        title = f"{dataset}, {source}\n{', '.join(size + others)}\n{_classes(dataset, classes)}"
        title += "; rows of different versions" * versions.is_mixed(cells)
        panels[title] = values.mean(axis=1, skipna=False).dropna().rename("auroc").reset_index()
    return panels


def _network(protocol: str) -> str:
    """The network of a protocol."""
    if protocol.startswith("paper"):
        return training.TrainConfig().network
    return training.quick_config(1 if protocol.startswith("quick1") else 2).network


def factor_table(runs: pd.DataFrame, protocol: str, name: str) -> str:
    """AUROC in percent: a line per panel and series that has several places, a column per place."""
    points = pd.concat(factor_panels(runs, protocol, name), names=["panel"])
    means = points.pivot_table("auroc", ["panel", "series"], "x").dropna(thresh=2)
    means = means[sorted(means, key=_rank)].map("{:.1f}".format).replace("nan", "")
    columns = [f"{x:g}" if isinstance(x, float) else x for x in means]
    lines = means.rename(index=lambda panel: panel.replace("\n", "; "), level="panel")
    return tables.table(["images", "series", *columns], lines.reset_index().to_numpy())


def _paper(row: dict, other_networks: bool) -> float:
    """The paper's AUROC at a run's place in a figure, or NaN."""
    other_network = other_networks and row["network"] != training.TrainConfig().network
    if other_network or row["operations"] not in ("", _OPERATIONS):
        return np.nan
    method = row["method"].replace("-epoch03", "")  # the paper's training has three epochs
    return tables.PAPER["auroc"].get((row["dataset"], row["ratio"], method), np.nan)


def _classes(dataset: str, classes: set[int]) -> str:
    count, listed = tables.num_classes(dataset), ", ".join(map(str, sorted(classes)))
    return "all classes" if len(classes) == count else f"classes {listed} of {count}"


def _rank(x: str | float) -> tuple:
    return _ORDER.index(x) if x in _ORDER else len(_ORDER), x


def plot_factor(path: Path | str, panels: dict[str, pd.DataFrame], title: str, xlabel: str) -> None:
    """Draws AUROC against a factor, a panel per data set, as Figs. 5 and 6 of the paper.

    Numbers are joined by lines, names are not; of lines only those that reach all numbers of their
    panel. Bars are one standard deviation over seeds; hollow diamonds are the paper's numbers.

    Args:
      path: PNG, PDF or SVG file.
      panels: see :func:`factor_panels`.
      title: of the figure.
      xlabel: the factor.
    """
    figure = Figure(figsize=(2.8 + 3.2 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title)
    panels = {heading: _without_short_lines(panel) for heading, panel in panels.items()}
    points = pd.concat(panels.values())
    names = tables.ordered(set(points["series"]))
    places = sorted(set(points["x"]), key=_rank)
    named, shift = isinstance(places[0], str), 0.5 * (len(names) > 1)
    options = {"x": "x", "hue": "series", "hue_order": names, "palette": "tab20"}
    options |= {"order": places, "dodge": shift} if named else {"native_scale": True}
    measured = {"errorbar": "sd", "capsize": 0.1, "markersize": 5, "linewidth": 1.5}
    measured["linestyle"] = "none" if named else "-"
    hollow = {"errorbar": None, "marker": "D", "linestyle": "none", "markerfacecolor": "none"}
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, panel) in zip(drawn, panels.items(), strict=True):
        sns.pointplot(panel, y="auroc", ax=axes, **measured, **options)
        handles, labels = axes.get_legend_handles_labels()
        sns.pointplot(panel, y="paper", ax=axes, **hollow, **options)
        axes.get_legend().remove()
        axes.set_title(heading, size=9)
        axes.set(xlabel=xlabel, ylabel="AUROC (%)" if axes is drawn[0] else "")
        axes.margins(x=0.1)
        axes.tick_params(axis="x", labelsize=8)
        # A difference of a tenth of a point is none, and must not look like one.
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, (low + high) / 2 - 5), max(high, (low + high) / 2 + 5))
        axes.grid(axis="y", alpha=0.3)
    if points["paper"].notna().any():
        handles += axes.plot([], [], "D", fillstyle="none", color="black")
        labels += ["the paper (all classes)"]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    save_figure(path, figure)


def _without_short_lines(panel: pd.DataFrame) -> pd.DataFrame:
    """Where x is a number and some series have all places, those series."""
    places = panel.groupby("series")["x"].nunique()
    whole = panel[panel["series"].isin(places.index[places == panel["x"].nunique()])]
    return panel if whole.empty or isinstance(panel["x"].iloc[0], str) else whole


# --- Figs. 2, 3 and 4: inlier priority ---------------------------------------------------------


_PANELS = {
    "gradient_magnitude": "Fig. 2: norm of the group's summed gradient",
    "ratio": "ratio of Fig. 2",
    "loss": "mean loss of images (nats)",
    "pl": "Fig. 4: PL scores after training",
    "de_facto_update": "Fig. 3: mean de facto update of images",
    "update_cosine": "the same over the gradient's norm (cosine)",
    "leave_one_out_update": "the same, by the other images",
    "view_update": "the same, view by view",
}


def plot_priority(path: Path | str, points: pd.DataFrame, scores: pd.DataFrame, title: str) -> None:
    """Draws inlier priority on one page: Figs. 2, 3 and 4 of the paper, each with the control.

    Lines are means over seeds, bands one standard deviation.

    Args:
      path: PNG, PDF or SVG file.
      points: columns ``seed``, ``step`` and QUANTITY_GROUP, for the quantities gradient_magnitude,
        de_facto_update, update_cosine, leave_one_out_update, view_update and loss and the groups
        inliers, outliers, control_large and control_small.
      scores: columns ``pl`` and ``is_outlier``, one line per image and seed.
      title: of the page.
    """
    figure = Figure(figsize=(15, 6.8), layout="constrained")
    figure.suptitle(title)
    panels = dict(zip(_PANELS, figure.subplots(2, 4).flat, strict=True))
    by_step, scales = points.set_index("step"), {"update_cosine": "linear", "loss": "linear"}
    for quantity in _PANELS.keys() - {"ratio", "pl"}:
        # The norm of the gradient swings by a factor of ten and more between points.
        panels[quantity].set_yscale(scales.get(quantity, "log"))
        names = {f"{quantity}_{group}": name for group, name in _GROUPS.items()}
        curves = by_step[list(names)].rename(columns=names)
        _lines(panels[quantity], curves, palette=_COLOURS, dashes=_DASHES)
    inliers, outliers, large, small = (by_step[f"gradient_magnitude_{g}"] for g in _GROUPS)
    ratios = pd.DataFrame({"inliers / outliers": inliers / outliers, "control": large / small})
    # First, so that the axis has room for it.
    ratio, expected = panels["ratio"], 1 / scores["is_outlier"].mean() - 1
    ratio.axhline(expected, color="grey", linewidth=0.8, linestyle=":", label="N_in / N_out")
    _lines(ratio, ratios, palette=["black", "grey"], dashes=False)
    handles, labels = panels["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    ratio.legend(loc="lower center", frameon=False, fontsize=8)
    _histograms(panels["pl"], scores["pl"].to_numpy(), scores["is_outlier"].to_numpy(bool))
    panels["pl"].set_xlabel("PL score (smaller = more outlying)")
    for name, axes in panels.items():
        axes.set_title(_PANELS[name], size=10)
    save_figure(path, figure)


def _lines(axes: Axes, curves: pd.DataFrame, **style) -> None:
    """A line per column over the index, the mean over seeds, in a band of their deviation."""
    sns.lineplot(curves, ax=axes, errorbar="sd", err_kws={"linewidth": 0}, **style)
    axes.get_legend().remove()
    axes.set(xlabel="step", ylabel="", xlim=(0, curves.index.max()))
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=min(axes.get_ylim()[0], 0))


# --- Operations one by one -----------------------------------------------------------------------


def plot_operations(path: Path | str, means: pd.DataFrame) -> None:
    """Draws what each operation is worth against what can be known of it without labels.

    Args:
      path: PNG, PDF or SVG file.
      means: a row for each operation and data set, with columns ``dataset``, ``family``,
        ``agreement`` and ``auroc`` (percent).
    """
    names = list(dict.fromkeys(means["dataset"]))
    figure = Figure(figsize=(0.6 + 3.4 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = means[means["dataset"] == name]
        sns.scatterplot(
            rows,
            x="agreement",
            y="auroc",
            hue="family",
            style="family",
            palette="colorblind",
            ax=axes,
            legend=name == names[0],
        )
        axes.set(title=name, xlabel="agreement with the others", ylabel="AUROC by it alone (%)")
    save_figure(path, figure)

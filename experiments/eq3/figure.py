"""The figure of eq. 3: measured and predicted, over what it says."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eq3.cases import KERNEL, MEASURED, OPERATIONS

_TICKS = (0.5, 0.6, 0.8, 1, 1.25, 1.6, 2)


def draw(rows: pd.DataFrame) -> Figure:
    """Measured and kernel prediction, both over eq. 3's.

    Over the ratio for the classes of each real data set and for the synthetic images, over few
    outliers, over the hidden units, all for the identity; last, all rows against each other.
    """
    is_made = rows["source"] == "synthetic"
    real, made = rows[~is_made], rows[is_made]
    panels = [
        (f"{name}, a colour per inlier class", of_set, "ratio", "outlier ratio ρ")
        for name, of_set in real.groupby("case", sort=False)
    ]
    panels += [
        ("synthetic images", made, "ratio", "outlier ratio ρ"),
        ("few outliers, 450 inliers", rows, "n_outliers", "outliers"),
        ("hidden units", made, "hidden", "units L"),
    ]
    columns = len(panels) // 2 + 1
    figure = Figure(figsize=(4.2 * columns, 8), layout="constrained")
    figure.suptitle(
        "Ratio of mean squared gradient norms over eq. 3's N_in² / N_out²: measured (points, 95 % "
        "intervals) and predicted from the kernel (dashes); dotted: no images can leave this"
    )
    for i, panel in enumerate(panels):
        _panel(figure.add_subplot(2, columns, i + 1), *panel)
    axes = figure.add_subplot(2, columns, len(panels) + 1, title="all sets and operations")
    for name, of_kind in (("real images", real), ("synthetic images", made)):
        axes.loglog(of_kind[KERNEL], of_kind[MEASURED], ".", ms=4, label=name, subs=[])
    axes.axline((0.5, 0.5), (2, 2), color="grey", linewidth=0.8)
    axes.set(xlabel="kernel prediction over eq. 3's", ylabel="measured over eq. 3's")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.set(xticks=_TICKS, yticks=_TICKS, xticklabels=_TICKS, yticklabels=_TICKS)
    return figure


def _panel(axes: Axes, title: str, rows: pd.DataFrame, varied: str, xlabel: str) -> None:
    """The identity's rows of one sweep, at equal distances, the series side by side."""
    rows = rows[(rows["varied"] == varied) & (rows["operation"] == OPERATIONS[0])]
    values, of_set = sorted(set(rows[varied])), rows["inlier_class"].nunique() > 1
    series = rows.groupby("inlier_class" if of_set else "case", sort=False)
    axes.axhline(1, color="grey", linewidth=0.8)
    for s, (name, group) in enumerate(series):
        x = group[varied].map(values.index) + 0.7 * ((s + 0.5) / len(series) - 0.5)
        y = group[MEASURED]
        axes.plot(x, group[KERNEL], "_", color="black", markersize=7)
        bars = [y - group["low"], group["high"] - y]
        axes.errorbar(x, y, bars, fmt="o", ms=3.5, color=f"C{s}", label=str(name))
    axes.set_xticks(range(len(values)), [f"{100 * v:.2g} %" if v < 1 else str(v) for v in values])
    axes.set(title=title, xlabel=xlabel, ylim=(0.75, 1.25) if of_set else (0.25, 2.2))
    if not of_set:
        axes.hlines([0.5, 2], *axes.get_xlim(), color="grey", linewidth=0.8, linestyle=":")
        axes.set_yscale("log", subs=[])
        axes.set_yticks(_TICKS, _TICKS)
    axes.legend(fontsize=8, loc="lower right", ncols=5 if of_set else 1, frameon=False)

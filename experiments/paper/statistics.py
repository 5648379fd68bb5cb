"""Means of runs and their uncertainty. The unit is the class, never class x seed."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy.stats


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
    mean, low, high = mean_and_interval(values)
    ends = "" if np.isnan(low) else f" ({low:{form}} to {high:{form}})"
    return f"{mean:{form}}{ends}"


def joined(percents: Iterable[float]) -> str:
    """Percents as a text such as "97.5 / 84.4", with "–" for NaN."""
    return " / ".join(f"{value:.1f}" for value in percents).replace("nan", "–")


def auroc_and_aupr_out(runs: pd.DataFrame, rows: list[str], columns: str) -> pd.DataFrame:
    """Means of runs in percent, as texts such as "97.5 / 84.4", by rows and columns of a table."""
    means = 100 * runs.groupby([*rows, columns], sort=False)[["auroc", "aupr_out"]].mean()
    texts = means["auroc"].map("{:.1f} / ".format) + means["aupr_out"].map("{:.1f}".format)
    return texts.unstack(columns, sort=False)

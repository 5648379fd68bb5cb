"""Markdown tables of folders that people have, of the rows of ``folders.py --real``."""

import pandas as pd

from e3jax.evidence import health
from paper import versions
from paper.statistics import joined
from paper.tables import table

_FOLDER = ["dataset", "n_inliers", "n_outliers"]
_SHARES = ", shares"  # what the case of folders with fewer inliers or outliers ends with
_PLANNED = (0, 0.01, 0.05, 0.1, 0.3)  # shares of outliers, which folders have nearly
# What is compared: with features or without, the columns' ending, the name.
_COMPARED = {
    "network": (False, "_network", "network"),
    "shape": (False, "_shape", "HOG + neighbours"),
    "images": (False, "_images", "all of the images"),
    "": (False, "", "e3jax"),
    "features": (True, "_features", "features only"),
    "all": (True, "", "e3jax with features"),
}


def means(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """AUROC and AUPR-out in percent by folder, means over seeds, of each kind of score."""
    rows = _once(rows[~rows["case"].str.endswith(_SHARES)])
    of_folders = {
        featured: group.groupby(_FOLDER).mean(numeric_only=True)
        for featured, group in rows.groupby(rows["case"] != "real")
    }
    return {
        kind: 100 * of_folders[featured][[f"auroc{ending}", f"aupr_out{ending}"]]
        for kind, (featured, ending, _) in _COMPARED.items()
        if featured in of_folders
    }


def real_table(rows: pd.DataFrame) -> str:
    """AUROC / AUPR-out in each folder, means over seeds, and the mean of the folders."""
    columns = means(rows)
    lines = [
        [*folder[:1], f"{folder[1]} + {folder[2]}"]
        + [joined(values.loc[folder]) for values in columns.values()]
        for folder in columns[""].index
    ]
    lines.append(["mean", "", *(joined(values.mean()) for values in columns.values())])
    titles = (title for kind, (*_, title) in _COMPARED.items() if kind in columns)
    return table(["folder", "inliers + outliers", *titles], lines) + versions.note(rows)


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates(["case", *_FOLDER, "seed"], keep="last")


def interval_table(rows: pd.DataFrame) -> str:
    """By share of outliers: how often the interval of their number holds it, what is marked."""
    rows, lines = _once(rows[rows["case"].str.endswith(_SHARES)]), []
    n, total = rows["n_outliers"], rows["n_inliers"] + rows["n_outliers"]
    planned = [min(_PLANNED, key=lambda share: abs(share - actual)) for actual in n / total]
    holds = (rows["least"] <= n) & (n <= rows["most"])
    ends = 100 * rows[["least", "most"]].div(total, axis=0)
    rows = ends.assign(holds=holds, marked=100 * rows["flagged"])
    for share, group in rows.groupby(planned):
        held = f"{group['holds'].sum()} of {len(group)}"
        interval = f"{group['least'].mean():.1f} to {group['most'].mean():.1f}"
        lines.append([f"{100 * share:.0f}", held, interval, f"{group['marked'].mean():.1f}"])
    head = ["outliers, %", "the interval holds", "interval, mean, %", "marked, mean, %"]
    return table(head, lines)


def agreement_table(rows: pd.DataFrame) -> str:
    """AUROC by what is said of how far network and other evidence agree."""
    rows, lines = rows[rows["auroc"].notna() & (rows["case"] == f"real{_SHARES}")], []
    words = [health.verdict_of(agreement)[0] for agreement in rows["agreement"]]
    for said, aurocs in (100 * rows["auroc"]).groupby(words):
        span = f"{aurocs.min():.0f} to {aurocs.max():.0f}"
        lines.append([said, len(aurocs), span, f"{aurocs.median():.0f}"])
    return table(["they", "folders", "AUROC, %", "median"], lines)

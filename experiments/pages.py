"""Writes tables of results/ into README and docs/, between <!-- NAME --> and <!-- /NAME -->."""

import re
import sys
from pathlib import Path

import pandas as pd
from paper import appendix, headline, real
from paper.statistics import auroc_and_aupr_out, by_class
from paper.tables import frame, table
from sweep import store

from e3jax.work import files

ROOT = Path(__file__).parents[1]
SETS = headline.SETS
KINDS = ("one kind", "two kinds", "three kinds")
# By the columns' titles: a method of the benchmark, and a kind of :func:`paper.real.means`.
README = {
    "raw pixels, best of three": ("pixels", None),
    "HOG + nearest neighbours": ("hog-knn", "shape"),
    "e3jax": ("e3outlier+", ""),
    "e3jax with features": ("e3outlier+features", "all"),
}
FEATURES = {
    "e3jax": ("e3outlier+", ""),
    "features, nearest neighbours": ("features", "features"),
    "e3jax with features": ("e3outlier+features", "all"),
}


def read(name: str) -> pd.DataFrame:
    """Rows of results/NAME.csv."""
    return pd.read_csv(ROOT / "results" / f"{name}.csv", low_memory=False)


def compared(columns: dict[str, tuple]) -> str:
    """AUROC at ρ = 10 % by data set, and of folders that people have."""
    runs = frame(store.read_csv(ROOT / "results" / "quick.csv"))
    runs = runs[runs["ratio"] == 0.1]
    lines = []
    for dataset, name in SETS.items():
        values = headline.values_of(runs[runs["dataset"] == dataset], "auroc")
        means = by_class(values).mean()
        lines.append([name, *(f"{means[method]:.1f}" for method, _ in columns.values())])
    means = real.means(appendix.read_folders(ROOT / "results" / "real.csv"))
    last = [f"{means[k].mean().iloc[0]:.1f}" if k in means else "" for _, k in columns.values()]
    return table(["AUROC, %", *columns], [*lines, ["eleven real folders", *last]])


def operations() -> str:
    """AUROC / AUPR-out of e3outlier+ by the number of operations that score."""
    texts = auroc_and_aupr_out(read("operations_fused"), ["way"], "dataset")[list(SETS)]
    lines = [
        [name, *texts.loc[f"e3outlier+, {number} operations"]]
        for number, name in {"6": "6", "24": "24", "111": "111, all"}.items()
    ]
    return table(["operations that score", *SETS.values()], lines)


def folders() -> str:
    """AUROC, and the share of outliers among the first n of n outliers, by kind of folder."""
    rows = read("folders")
    rows = rows[rows["case"].isin(["limits", "large"])]
    folder = ["dataset", "inlier_classes", "n_inliers", "n_outliers", "seed"]
    rows = rows.drop_duplicates(folder, keep="last")
    kinds = rows["inlier_classes"].str.count(r"\+")
    groups = rows.groupby([kinds, "n_inliers", "n_outliers", "dataset"])
    lines = []
    means = 100 * groups[["auroc", "precision"]].mean()
    for (k, n, outliers), of in means.groupby(level=[0, 1, 2]):
        of = of.droplevel([0, 1, 2])
        values = [
            f"{of.auroc[d]:.1f}, {of.precision[d]:.0f}" if d in of.index else "" for d in SETS
        ]
        lines.append([KINDS[k], f"{n:,} + {outliers}", *values])
    return table(["inliers", "pictures + junk", "digits", "garments", "photos"], lines)


TABLES = {
    "readme": lambda: compared(README),
    "features": lambda: compared(FEATURES),
    "operations": operations,
    "folders": folders,
}


def filled(text: str) -> str:
    """A page with its tables."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n\n{TABLES[match[2]]().strip()}\n\n<!-- /{match[2]} -->"

    return re.sub(r"(<!-- ([a-z]+) -->)\n.*?<!-- /\2 -->", fill, text, flags=re.DOTALL)


def main() -> int:
    """Rewrites the pages."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        files.write_text(page, filled(page.read_text("utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

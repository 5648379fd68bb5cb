"""Writes tables of results/ into README and docs/, between <!-- NAME --> and <!-- /NAME -->."""

import re
import sys
from pathlib import Path

import pandas as pd
from paper.tables import table

ROOT = Path(__file__).parents[1]
SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10, JPEG"}
KINDS = ("one kind", "two kinds", "three kinds")
# By name: methods of the benchmark, of which the best one counts; whether a row of a folder has
# features, and its column.
PIXELS = (["pixel-if", "pixel-knn", "pixel-pca"], None, "")
HOG = (["hog-knn"], False, "auroc_shape")
E3JAX = (["e3outlier+"], False, "auroc")
FEATURES = (["features"], True, "auroc_features")
BOTH = (["e3outlier+features"], True, "auroc")


def read(name: str) -> pd.DataFrame:
    """Rows of results/NAME.csv."""
    return pd.read_csv(ROOT / "results" / f"{name}.csv", low_memory=False)


def compared(columns: dict[str, tuple]) -> str:
    """AUROC at ρ = 10 %, seed 0, by data set, and of folders that people have."""
    rows = pd.concat([read("quick"), read("featured")])
    rows = rows[(rows["ratio"] == 0.1) & (rows["seed"] == 0)]
    rows = rows.drop_duplicates(["dataset", "method", "inlier_class"], keep="last")
    means = 100 * rows.groupby(["dataset", "method"])["auroc"].mean()
    lines = []
    for dataset, name in SETS.items():
        best = [means[dataset][methods].max() for methods, *_ in columns.values()]
        lines.append([name, *numbers(best)])
    last = [of_folders(*where) for _, *where in columns.values()]
    return table(["AUROC, %", *columns], [*lines, ["eleven real folders", *last]])


def of_folders(featured: bool | None, column: str) -> str:
    """The mean of the folders' means over seeds; "" if it was not measured."""
    if featured is None:
        return ""
    rows = read("real")
    rows = rows[~rows["case"].str.endswith(", shares")]
    rows = rows[(rows["case"] != "real") == featured]
    folders = rows.groupby(["dataset", "n_inliers", "n_outliers"])[column].mean()
    return f"{100 * folders.mean():.1f}"


def numbers(values) -> list[str]:
    return [f"{value:.1f}" for value in values]


def operations() -> str:
    """AUROC / AUPR-out of e3outlier+ by the number of operations that score."""
    rows, lines = read("operations_fused"), []
    for number, name in {"6": "6", "24": "24", "111": "111, all"}.items():
        of = rows[rows["way"] == f"e3outlier+, {number} operations"]
        means = 100 * of.groupby("dataset")[["auroc", "aupr_out"]].mean()
        lines.append([name, *(" / ".join(numbers(means.loc[d])) for d in SETS)])
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
    "readme": lambda: compared(
        {
            "raw pixels, best of three": PIXELS,
            "HOG + nearest neighbours": HOG,
            "e3jax": E3JAX,
            "e3jax with features": BOTH,
        }
    ),
    "features": lambda: compared(
        {"e3jax": E3JAX, "features, nearest neighbours": FEATURES, "e3jax with features": BOTH}
    ),
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
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

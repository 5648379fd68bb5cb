"""Measures `e3jax rank` as a person meets it: on folders of image files, by its own command.

Cases: photos (1,000 photos of one class of CIFAR-10 and 50 of others), few (57 images of one class
of Fashion-MNIST and 3 others), limits (50 to 5,000 images, 1 to 30 % outliers, and one to three
kinds of inliers), large (500 and 5,000 photos of CIFAR-10, a tenth of them outliers), and clean
(500 digits of one kind and nothing else, where --contamination auto should find next to nothing).
Labels make the folders and judge the ranking; the command sees only files. A row is written after
each folder; folders that have a row are not measured again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import command
from paper import appendix
from sweep import flags, rows
from usage.folders import CASES, Folder, measure, plan

from e3jax import datasets
from e3jax.cli.arguments import path

_COLUMNS = ("case", "dataset", "source", "inlier_classes")  # that rows begin with


def main() -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=CASES, help="cases to measure")
    add("--data-dir", type=path, help="folder with data prepared by TFDS")
    add("--out", type=path, default="runs/folders.csv", help="table that rows are added to")
    add("--table", action="store_true", help="print the table of the rows, and measure nothing")
    args = parser.parse_args()
    stopped = f"Finished rows are in {args.out}; the same command continues."
    return command.run(lambda: run(args), stopped)


def run(args: argparse.Namespace) -> None:
    """Measures the folders that have no row yet and adds their rows; prints the table of all."""
    if not args.table:
        measure_missing(args.cases, args.data_dir, args.out)
    print(appendix.folders_table(appendix.read_folders(args.out)))


def measure_missing(cases: Sequence[str], data_dir: Path | None, out: Path) -> None:
    rows.check(out, _COLUMNS)
    todo = missing(cases, out)
    command.say(f"Plan: {len(todo)} folders")
    names = sorted({folder.dataset for folder in todo})
    data = {name: datasets.load(name, data_dir=data_dir, announce=command.say) for name in names}
    for folder in command.progress(todo, "folders"):
        row = measure(folder, data[folder.dataset])
        rows.append(out, [row])
        auroc = f"AUROC {row['auroc']:.1%}, " if folder.n_outliers else ""
        where = " ".join(map(str, folder))
        command.say(f"{where}: {auroc}{row['flagged']:.1%} flagged, {row['seconds']:.0f} s")


def missing(cases: Sequence[str], out: Path) -> list[Folder]:
    """The folders of these cases that have no row of these versions."""
    return rows.missing(plan(cases), rows.of_these_versions(out), Folder._fields)


if __name__ == "__main__":
    sys.exit(main())

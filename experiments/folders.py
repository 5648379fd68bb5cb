"""Measures `e3jax rank` as a person meets it: on folders of image files, by its own command.

Cases: photos (1,000 photos of one class of CIFAR-10 and 50 of others), few (57 images of one class
of Fashion-MNIST and 3 others), limits (50 to 5,000 images, 1 to 30 % outliers, and one to three
kinds of inliers), large (500 and 5,000 photos of CIFAR-10, a tenth of them outliers), and clean
(500 digits of one kind and nothing else, where next to nothing should be marked).
With --decided, ten pictures of each of nine folders are judged, and the folder is ranked once more
with these decisions; rows before and after are of the other pictures.
With --real, folders as people have them: each is a ZIP file of pictures/ and truth.csv, of which
the columns file and outlier (0 or 1) are read.
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
from usage.folders import CASES, Folder, decided, measure, measure_decided, plan, real

from e3jax import datasets
from e3jax.cli.arguments import path

_COLUMNS = ("case", "dataset", "source", "inlier_classes")  # that rows begin with


def main() -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group().add_argument
    what("--cases", nargs="+", choices=CASES, default=CASES, help="cases to measure")
    what("--real", type=path, metavar="FOLDER", help="measure the folders in its ZIP files")
    what("--decided", action="store_true", help="measure what ten decisions change")
    add("--features", type=path, metavar="MODEL", help="with --real: what rank --features takes")
    text = "with --real: of outliers, for a folder each, e.g. 0 0.01 0.3 (default: as they are)"
    add("--shares", nargs="+", type=float, help=text)
    add("--seeds", type=int, default=3, help="with --real: 0, 1, ...; of each folder as it is")
    add("--data-dir", type=path, help="folder with data prepared by TFDS")
    add("--out", type=path, default="runs/folders.csv", help="table that rows are added to")
    add("--table", action="store_true", help="print the table of the rows, and measure nothing")
    args = parser.parse_args()
    if (args.features or args.shares) and not args.real:
        parser.error("--features and --shares need --real")
    stopped = f"Finished rows are in {args.out}; the same command continues."
    return command.run(lambda: run(args), stopped)


def run(args: argparse.Namespace) -> None:
    """Measures the folders that have no row yet and adds their rows; prints the table of all."""
    if not args.table:
        measure_missing(args)
    print(appendix.folders_table(appendix.read_folders(args.out)))


def measure_missing(args: argparse.Namespace) -> None:
    rows.check(args.out, _COLUMNS)
    if args.decided:
        folders = decided()
    elif args.real:
        folders = real(args.real, args.features, args.shares, args.seeds)
    else:
        folders = plan(args.cases)
    todo = missing(folders, args.out)
    command.say(f"Plan: {len(todo)} folders")
    names, options = sorted({folder.dataset for folder in todo}), []
    if args.real:
        data = {name: args.real / f"{name}.zip" for name in names}
        options = ["--features", args.features] if args.features else []
    else:
        given = {"data_dir": args.data_dir, "announce": command.say}
        data = {name: datasets.load(name, **given) for name in names}
    for folder in command.progress(todo, "folders"):
        of_folder = data[folder.dataset]
        if args.decided:
            measured = measure_decided(folder, of_folder, options)
        else:
            measured = [measure(folder, of_folder, options)]
        rows.append(args.out, measured)
        row = measured[-1]
        auroc = f"AUROC {row['auroc']:.1%}, " if folder.n_outliers else ""
        where = " ".join(map(str, folder))
        command.say(f"{where}: {auroc}{row['flagged']:.1%} flagged, {row['seconds']:.0f} s")


def missing(folders: Sequence[Folder], out: Path) -> list[Folder]:
    """The folders that have no row of these versions."""
    return rows.missing(folders, rows.of_these_versions(out), Folder._fields)


if __name__ == "__main__":
    sys.exit(main())

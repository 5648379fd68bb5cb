"""Tests eq. 3 of the paper, the inliers' priority in gradient magnitude, where it is stated.

A network with one hidden layer of L sigmoids, all weights i.i.d. U[-1, 1], untrained; w_c is column
c of its last layer with its bias; gradients are summed over a group's views of operation c. Eq. 3:

    E ||grad_{w_c} L_in||^2 / E ||grad_{w_c} L_out||^2  ~  N_in^2 / N_out^2,    E over the weights.

What it leaves out: the norm is sum_ij E[(1 - p_i) (1 - p_j) (h_i . h_j + 1)], h_i a view's hidden
layer, p_i its softmax at c. Columns are exchangeable, so E[p_i | h] = 1/K; and as h >= 0, the
factors 1 - p leave the sum between 1 - 2/K and 1 - 1/K times Q = sum_ij (E[h_i . h_j] + 1). Within
0.9 % the ratio is that of the groups' Q, in closed form in ``kernel_sums``. Of a unit, E[h_i h_j]
is 1/4 plus a covariance and at most 1/2, and covariances sum to >= 0: Q lies between N^2 (L/4 + 1)
and N^2 (L/2 + 1) for any images, and eq. 3 is never wrong by more than a factor 2. It is right
where both groups are equally coherent, and wrong where one has images that are alike and the other
not; a group of one or two is coherent by its diagonal.

Sets are contaminated as in the benchmark. All rows share their initialisations: they differ by
their images, and their errors are not independent. Intervals: 95 %, percentile bootstrap over
initialisations, of the ratio of means.
"""

import argparse
import os
import sys

import command
import jax
import pandas as pd
from eq3 import cases
from eq3.figure import draw
from sweep import flags, rows
from sweep.provenance import provenance

from e3jax import datasets, operations
from e3jax.cli.arguments import path
from e3jax.devices import runtime
from e3jax.report.sheet import check_output, save_figure

DATASETS = ("mnist", "fashion_mnist", "cifar10")
_COLUMNS = ("case", "source", "varied", "inlier_class")  # that rows begin with


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--data-dir", type=path, help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    most = f"data sets (default: {', '.join(DATASETS)} if a data folder is given, else mnist)"
    add("--datasets", nargs="*", choices=datasets.NAMES, help=most)
    ratios = (0.05, 0.1, 0.15, 0.2, 0.25)
    text = "outlier ratios (default: 0.05 to 0.25)"
    add("--ratios", type=float, nargs="+", default=ratios, help=text)
    text = "initialisations of the network, at least 10 (default: 200)"
    add("--initialisations", type=int, default=200, metavar="N", help=text)
    add("--hidden", type=flags.positive, default=64, help="hidden units L (default: 64)")
    text = "folder for theory.csv, .png and .pdf (default: runs/theory)"
    add("--results-dir", type=path, default="runs/theory", help=text)
    args = parser.parse_args()
    if args.initialisations < 10:
        parser.error("--initialisations must be at least 10: fewer give no interval")
    if args.datasets is None:
        given = args.data_dir or os.environ.get("TFDS_DATA_DIR")
        args.datasets = DATASETS if given else DATASETS[:1]
    return command.run(lambda: run(args), "Nothing is written before the end.")


def run(args: argparse.Namespace) -> None:
    """Measures every case, then writes the rows and the figure."""
    folder, operation_set = args.results_dir, operations.operation_set()
    table, drawn = folder / "theory.csv", [folder / f"theory.{kind}" for kind in ("png", "pdf")]
    rows.check(table, _COLUMNS)
    for figure in drawn:
        check_output(figure)
    runtime.prepare()
    names = ", ".join([*args.datasets, "synthetic images"])
    command.say(f"Eq. 3 on {names}, {args.initialisations} initialisations per set")
    sets = []
    for name in args.datasets:
        data = datasets.load(name, data_dir=args.data_dir, announce=command.say)
        sets += cases.real_cases(data, args.ratios, args.hidden)
    sets += cases.synthetic_cases(args.ratios, args.hidden)
    command.say(f"Plan: {len(sets)} sets")
    each = command.progress(sets, "sets")
    made = pd.concat([cases.measure(case, operation_set, args.initialisations) for case in each])
    made = made.assign(device=jax.devices()[0].device_kind, **provenance())
    rows.write(table, made.to_dict("records"), made)
    for figure in drawn:
        save_figure(figure, draw(made))
    command.say(f"{len(made)} rows and the figure are in {folder}/")


if __name__ == "__main__":
    sys.exit(main())

"""Inlier priority during training: Figs. 2, 3 and 4 of the paper on one page, with a control.

Trains on contaminated sets and records, at the last layer, the norm of the inliers' and of the
outliers' summed gradient (Fig. 2) and their mean de facto update (Fig. 3); then draws histograms of
their PL scores (Fig. 4). The control is a random split of the inliers in the same proportion.
Finished trainings are kept: the same command again does what is missing.
"""

import argparse
import sys

import command
from recorded import overhead
from recorded.study import Study
from sweep import flags

from e3jax.cli.arguments import path


def main() -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add_data(parser)
    add("--inlier-class", type=int, nargs="+", required=True, help="inlier classes, one page each")
    add("--ratio", type=float, default=0.1, help="outlier ratio (share of the set)")
    add("--seeds", type=flags.positive, default=3, help="number of trainings: seeds 0, 1, ...")
    flags.add_protocol(parser)
    flags.add_network_and_operations(parser)
    add("--every", type=flags.positive, default=50, help="steps between recorded points")
    add("--probe-views", type=flags.positive, default=2000, help="fixed views measured for Fig. 2")
    add("--probe-images", type=flags.positive, default=60, help="images measured for Fig. 3")
    text = "time training with and without recording, instead"
    add("--overhead", action="store_true", help=text)
    add("--results-dir", type=path, default="runs/priority", help="folder for pages and points")
    args = parser.parse_args()
    stopped = "Finished trainings are kept; the same command continues."
    return command.run(lambda: work(args), stopped)


def work(args: argparse.Namespace) -> None:
    study = Study(args)
    study.announce()
    if args.overhead:
        overhead.measure(study)
    else:
        study.do()


if __name__ == "__main__":
    sys.exit(main())

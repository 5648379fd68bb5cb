"""Measures e3jax's speed and memory, against two PyTorch programs of the same method.

The backends take turns, each in a process of its own while the others sleep, so whatever else the
machine does falls on all of them. Numbers are medians over the rounds, ratios medians of the
rounds' ratios. The last line is for programs: train_ratio= score_ratio= pipeline_ratio=, above 1
where e3jax is faster, nan where not measured.
"""

import argparse
import importlib.util
import re
import sys
import tempfile

import command
import pandas as pd
from sweep import flags, rows
from timing import measurements
from timing.worker import COLUMNS

from e3jax.cli.arguments import path

_RATIOS = ("train_ratio", "score_ratio", "pipeline_ratio")


def parse_args() -> argparse.Namespace:
    parser, positive = flags.parser(__doc__), flags.positive
    add = parser.add_argument
    text = "sets network, batch size and optimizer; auto: quick on a CPU, else paper"
    add("--protocol", default="auto", choices=("auto", "paper", "quick"), help=text)
    text = "networks (default: the protocol's)"
    add("--network", nargs="+", metavar="wrn-DEPTH-WIDTH", help=text)
    text = "views per step (default: 64 up to width 1, else 128)"
    add("--batch-size", type=positive, metavar="N", help=text)
    flags.add_precision(parser)
    add("--channels", type=int, default=1, choices=(1, 3), help="channels of the images")
    add("--images", type=positive, default=500, help="images in the bank, and of the pipeline")
    text = "steps of the pipeline's training (default: the protocol's)"
    add("--steps", type=positive, metavar="N", help=text)
    add("--rounds", type=positive, default=3, help="turns of each program")
    add("--seconds", type=float, default=10.0, help="least seconds of each measurement")
    add("--without-torch", action="store_true", help="measure only e3jax")
    text = "mode of the tuned program; auto: the one that trains faster"
    add("--torch-compile", default="auto", choices=("auto", "compile", "eager"), help=text)
    add("--pipeline", action="store_true", help="also time one class from images to scores")
    add("--only-pipeline", action="store_true", help="time only that")
    text = "measure the cost per view as images and devices grow, instead"
    add("--growth", action="store_true", help=text)
    text = "numbers of images that --growth measures"
    add(
        "--growth-images", type=positive, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help=text
    )
    text = "numbers of simulated devices that --growth measures"
    add("--growth-devices", type=positive, nargs="+", default=[1, 2, 4, 8], help=text)
    text = "folder of speed.csv and growth.csv, which rows are added to"
    add("--results-dir", type=path, default="results", help=text)
    add("--out", type=path, help="another file than RESULTS_DIR/speed.csv (or growth.csv)")
    args = parser.parse_args()
    for name in args.network or ():
        if not re.fullmatch(r"wrn-(\d+)-([1-9]\d*)", name) or (int(name.split("-")[1]) - 4) % 6:
            parser.error(f"unknown network {name!r}: expected wrn-DEPTH-WIDTH, as in wrn-10-4")
    if args.images < 20:
        parser.error(f"--images must be at least 20, got {args.images}")
    if args.seconds <= 0:
        parser.error("--seconds must be more than 0")
    if not (args.without_torch or args.growth or importlib.util.find_spec("torch")):
        parser.error("nothing to compare with: pip install torch, or add --without-torch")
    return args


def main() -> int:
    args = parse_args()
    name = "growth" if args.growth else "speed"
    columns, out = COLUMNS[name], args.out or args.results_dir / f"{name}.csv"
    measure = measurements.grow if args.growth else measurements.compare

    def work() -> None:
        rows.check(out, columns)
        with tempfile.TemporaryDirectory() as folder:
            for measured in measure(args, folder):
                rows.append(out, measured, columns)
                table = pd.DataFrame(measured, columns=list(columns)).dropna(axis=1, how="all")
                print(table.T.to_string(header=False))
                ratios = {name: measured[-1].get(name, float("nan")) for name in _RATIOS}
                print(*(f"{name}={ratio:.3f}" for name, ratio in ratios.items()), flush=True)
        command.say(f"Rows are in {out}")

    return command.run(work, "Finished rows are kept.")


if __name__ == "__main__":
    sys.exit(main())

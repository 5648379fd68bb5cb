"""Measures e3jax's speed and memory, against two PyTorch programs of the same method.

The backends take turns, each in a process of its own while the others sleep, so that what else the
machine does falls on all of them; numbers are medians over the rounds, ratios medians of the rounds'
ratios. The last line is for programs: train_ratio= score_ratio= pipeline_ratio=, above 1 where
e3jax is faster, nan where not measured.
"""

import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

import pandas as pd
from runtime import positive
from speed import comparison, growth
from speed.worker import CONSOLE
from sweep import append_rows

from e3jax import devices

_FEWEST_IMAGES = 20  # two outliers among them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--protocol",
        default="auto",
        choices=("auto", "paper", "quick"),
        help="whose network, batch and optimizer; auto: paper on an accelerator, quick on a CPU",
    )
    add("--network", nargs="+", metavar="wrn-DEPTH-WIDTH", help="default: the protocol's")
    add(
        "--batch-size",
        type=positive,
        help="views per step (default: the protocol's for its own network; for another 64 up to width 1, else 128)",
    )
    add(
        "--precision",
        default="float32",
        choices=devices.PRECISIONS,
        help="of products; on a CPU tensorfloat32 is float32",
    )
    add("--channels", type=int, default=1, choices=(1, 3), help="of the images")
    add("--images", type=positive, default=500, help="images in the bank and of the pipeline")
    add("--steps", type=positive, help="of the pipeline's training (default: the protocol's)")
    add("--rounds", type=positive, default=3, help="turns of each backend")
    add("--seconds", type=float, default=10.0, help="of each measurement, at least")
    add("--without-torch", action="store_true", help="measure e3jax alone")
    add(
        "--torch-compile",
        default="auto",
        choices=("auto", "compile", "eager"),
        help="of the tuned program; auto: both are measured, the faster is kept",
    )
    add("--pipeline", action="store_true", help="also time one class from images to scores")
    add("--only-pipeline", action="store_true", help="time that alone")
    add("--growth", action="store_true", help="instead: cost per view as images and devices grow")
    add("--growth-images", type=positive, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    add("--growth-devices", type=positive, nargs="+", default=[1, 2, 4, 8], help="simulated")
    add("--results-dir", default="results", help="where speed.csv and growth.csv grow by rows")
    add("--out", help="another file than RESULTS_DIR/speed.csv (or growth.csv)")
    args = parser.parse_args()
    for name in args.network or ():
        if not re.fullmatch(r"wrn-(\d+)-([1-9]\d*)", name) or (int(name.split("-")[1]) - 4) % 6:
            parser.error(f"unknown network {name!r}: expected wrn-DEPTH-WIDTH, as in wrn-10-4")
    if args.images < _FEWEST_IMAGES:
        parser.error(f"--images must be at least {_FEWEST_IMAGES}, got {args.images}")
    if args.seconds <= 0:
        parser.error("--seconds must be more than 0")
    if not (args.without_torch or args.growth or importlib.util.find_spec("torch")):
        parser.error(
            "the programs that e3jax is measured against need PyTorch: pip install torch, or measure e3jax alone with --without-torch"
        )
    return args


def main() -> int:
    args = parse_args()
    path = Path(args.out or Path(args.results_dir, "growth.csv" if args.growth else "speed.csv"))
    try:
        if args.growth:
            measure_growth(args, path)
        else:
            measure_networks(args, path)
    except (ValueError, OSError, RuntimeError) as error:
        CONSOLE.print(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        CONSOLE.print("Stopped. Finished rows are kept.")
        return 130
    CONSOLE.print(f"Rows are in {path}")
    return 0


def measure_growth(args: argparse.Namespace, path: Path) -> None:
    append_rows(path, growth.COLUMNS, [])  # finds out now what it would say after an hour
    for rows in growth.measure(args):
        append_rows(path, growth.COLUMNS, rows)
        print(pd.DataFrame(rows).to_string(index=False))
    print(last_line({}))


def measure_networks(args: argparse.Namespace, path: Path) -> None:
    append_rows(path, comparison.COLUMNS, [])
    with tempfile.TemporaryDirectory() as folder:
        plan = comparison.Comparison(args, Path(folder))
        for network in plan.networks:
            row = plan.measure(network)
            append_rows(path, comparison.COLUMNS, [row])
            print(pd.Series(row).to_string())
            is_last = network == plan.networks[-1]
            print("" if is_last else f"network={network} ", last_line(row), sep="", flush=True)


def last_line(row: dict) -> str:
    ratios = {
        name: row.get(f"{name}_ratio", float("nan")) for name in ("train", "score", "pipeline")
    }
    return " ".join(f"{name}_ratio={ratio:.3f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    sys.exit(main())

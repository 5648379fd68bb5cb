"""Measures what each operation is worth by itself, and what weights for operations gain.

For each class as the inliers, a network is trained by the quick protocol as e3outlier+ trains it.
Each operation's own scores, the NE of its views alone, then give its AUROC, and without labels its
pretext accuracy and its agreement with all other operations. The page's second table compares ways
to fuse the operations' scores.
"""

import argparse
import sys

import command
import pandas as pd
from paper import figures
from paper.appendix import WHERE, fusion_table
from sweep import flags, rows
from sweep.plan import QUICK_IMAGES
from worth.operations import Case, measure

from e3jax.cli.arguments import path
from e3jax.devices import runtime
from e3jax.report import sheet
from e3jax.training.e3outlier import FACTORED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    text = measure_all.__doc__
    training = commands.add_parser("measure", help="train and measure", description=text)
    flags.add_data(training)
    add, steps = training.add_argument, FACTORED.quick_config().steps
    add("--classes", type=int, nargs="+", help="inlier classes (default: all)")
    add("--steps", type=flags.positive, default=steps, help="steps of each training")
    add("--max-images", type=int, default=QUICK_IMAGES, help="images of each set (0: all)")
    add("--seed", type=int, default=0, help="seed of sets and trainings")
    add("--out", type=path, default="runs", help="folder for the tables")
    training.set_defaults(do=measure_all)
    drawing = commands.add_parser("draw", help="draw the figure", description=draw.__doc__)
    drawing.add_argument("tables", type=path, help="folder of the tables")
    drawing.add_argument("--out", type=path, default="operations.png", help="figure to write")
    drawing.set_defaults(do=draw)
    args = parser.parse_args()
    return command.run(lambda: args.do(args), "The same command continues.")


def measure_all(args: argparse.Namespace) -> None:
    """Adds rows to operations.csv and operations_fused.csv; classes that have rows are left out."""
    single, fused = args.out / "operations.csv", args.out / "operations_fused.csv"
    rows.check(single, WHERE)
    rows.check(fused, WHERE)
    runtime.prepare()
    data = flags.load(args)
    cases = [
        Case(data.name, data.source, c, args.seed, args.max_images, args.steps)
        for c in args.classes or range(len(data.class_names))
    ]
    todo = rows.missing(cases, rows.of_these_versions(fused), WHERE)
    command.say(f"Plan: {len(todo)} trainings, {len(cases) - len(todo)} finished before")
    for case in command.progress(todo, "classes"):
        of_operations, of_ways = measure(data, case)
        made = (*case, of_operations[0]["versions"])
        if rows.missing([made], rows.of_these_versions(single), [*WHERE, "versions"]):
            rows.append(single, of_operations)  # else it was stopped between the two tables
        rows.append(fused, of_ways)  # last: it says that the class is done
        command.say(f"class {case.inlier_class}: AUROC {of_ways[0]['auroc']:.1%}")
    measured = pd.read_csv(fused)
    print(fusion_table(measured), fusion_table(measured, fewer=True), sep="\n")


def draw(args: argparse.Namespace) -> None:
    """Draws each operation's AUROC against its agreement with the others, means over classes."""
    source = args.tables / "operations.csv"
    sheet.check_output(args.out, [source])
    single = pd.read_csv(source).drop_duplicates([*WHERE, "operation"], keep="last")
    keys = ["dataset", "family", "operation"]
    means = single.groupby(keys, sort=False)[["agreement", "auroc"]].mean().reset_index()
    means["auroc"] *= 100
    figures.plot_operations(args.out, means)
    command.say(f"The figure is in {args.out}")


if __name__ == "__main__":
    sys.exit(main())

"""Measures large collections: how fast files are decoded, and what ranking a bank takes.

`decode` reads pictures of three kinds in one process, in turns with Pillow's own loop. `rank` makes
banks of digits of MNIST, each with noise of its own, and ranks them in a process of its own.
Memory is the most that the process had for itself; pages of mapped files come on top and leave
again when others need the space. Rows are added to a table.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import command
from paper import tables
from sweep import flags, rows
from sweep.provenance import provenance
from timing.worker import Worker
from usage import decoding

from e3jax.cli.arguments import path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    text = "measure images decoded per second and core"
    decode = commands.add_parser("decode", help=text, description=decode_all.__doc__)
    add = decode.add_argument
    add("--rounds", type=flags.positive, default=5, help="turns of each program")
    text = "number of large files; there are 10 and 50 times as many small ones"
    add("--files", type=flags.positive, default=60, help=text)
    add("--out", type=path, default="runs/decoding.csv", help="table that rows are added to")
    decode.set_defaults(do=decode_all)
    text = "measure time and memory of each stage"
    rank = commands.add_parser("rank", help=text, description=rank_all.__doc__)
    add = rank.add_argument
    add(
        "--images",
        type=flags.positive,
        nargs="+",
        default=[10**4, 10**5, 10**6],
        help="sizes of the banks",
    )
    add(
        "--steps", type=flags.positive, default="auto", help="steps of the training (default: auto)"
    )
    text = "number of operations used for scoring (default: auto)"
    add("--score-operations", type=flags.positive, default="auto", metavar="N", help=text)
    text = "keeps banks and unfinished work: the same command goes on after a stop"
    add("--folder", type=path, help=text)
    add("--out", type=path, default="runs/large.csv", help="table that rows are added to")
    rank.set_defaults(do=rank_all)
    args = parser.parse_args()
    return command.run(lambda: args.do(args), "Finished rows are kept.")


def decode_all(args: argparse.Namespace) -> None:
    """Photos of 12 megapixels as JPEG, and pictures of 256 and 32 pixels a side as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        measured = list(decoding.measure(Path(folder), args.files, args.rounds))
    rows.append(args.out, measured)
    lines = []
    for row in measured:
        files, program, rate, ratio, *_ = row.values()
        lines.append([files, program, f"{rate:.0f}", f"{ratio:.2f}"])
    print(tables.table(list(measured[0])[:4], lines))


def rank_all(args: argparse.Namespace) -> None:
    """Adds a row for each number of images."""
    options = {"steps": args.steps, "score_operations": args.score_operations}
    for images in args.images:
        with contextlib.ExitStack() as stack:
            kept = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (place := kept / str(images)).mkdir(parents=True, exist_ok=True)
            worker = stack.enter_context(Worker("usage.banks"))
            row = worker.ask("measure", images=images, folder=str(place), **options) | provenance()
        rows.append(args.out, [row])
        command.say(", ".join(f"{name} {value}" for name, value in list(row.items())[:-2]))


if __name__ == "__main__":
    sys.exit(main())

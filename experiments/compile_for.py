"""Compiles e3jax's own programs for accelerators that may be absent, and tables what came of it.

TPUs need libtpu (pip install libtpu; 700 MB, Google Cloud's terms), GPUs a JAX with CUDA's
libraries (pip install ".[cuda12]"; 6 GB), but neither a device nor a driver. Each row is one
program; what the table has already, by the same versions, is not compiled again. Peak memory and
cycles are the compiler's estimates. Where it ends the process, as some versions do, a row says so.
Where it takes too long or too much memory, JAX_OPTIMIZATION_LEVEL=O0 has it optimise less; rows say
so then, give no cycles, and are made again without it.
"""

import argparse
import collections
import importlib.util
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import command
from compiled.cases import PROGRAMS, TARGETS, Case, plan
from compiled.compiler import HLO_MARK, hlo_file, optimization
from sweep import flags, rows
from sweep.provenance import provenance
from timing.worker import COLUMNS, Worker

from e3jax import devices
from e3jax.cli.arguments import path
from e3jax.work import files


def parse_args() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--target", nargs="+", choices=TARGETS, required=True, help="accelerators to compile for")
    add("--devices", type=int, nargs="+", default=[1], help="numbers of chips or GPUs of one host")
    text = "precisions of products"
    add("--precision", nargs="+", default=["float32"], choices=devices.PRECISIONS, help=text)
    text = "channels of the images"
    add("--channels", type=int, nargs="+", default=[1], choices=(1, 3), help=text)
    add("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="what to compile")
    add("--network", default="wrn-10-4", help="network of E3Outlier's programs")
    add("--images", type=int, default=7777, help="images in the bank")
    add("--batch-size", type=int, default=128, help="views per step and device")
    add("--out", type=path, default="results/compiled.csv", help="table that rows are added to")
    add("--hlo", type=path, metavar="FOLDER", help="also keep the optimised programs there")
    args = parser.parse_args()
    for target in args.target:
        if not any(map(importlib.util.find_spec, TARGETS[target]["compilers"])):
            advice = f"pip install {TARGETS[target]['package']}"
            parser.error(f"{target} needs a compiler that is not installed: {advice}")
    return args


def main() -> int:
    args = parse_args()
    stopped = "Rows are kept; the same command continues from here."
    return command.run(lambda: compile_all(args), stopped)


def compile_all(args: argparse.Namespace) -> bool:
    """Adds the rows that are missing; returns whether something did not compile."""
    rows.check(args.out, COLUMNS["compiled"])
    cases, failed = left_to_do(plan(args), args.out), 0
    for case in cases if args.hlo else ():
        files.check_output(hlo_file(args.hlo, case), HLO_MARK)
    long = "up to 25 seconds each for a GPU, 3 minutes for a TPU in bfloat16, else up to 30"
    command.say(f"Plan: {len(cases)} cases, {long}")
    for (target, count), group in itertools.groupby(cases, key=lambda c: (c.target, c.devices)):
        command.say(f"{target}, {count} device(s)")
        for row in compile_each(list(group), args.hlo):
            rows.append(args.out, [row], COLUMNS["compiled"])
            failed += row["compiles"] != "yes"
            command.say(row["program"], row["precision"], row["channels"], row["compiles"])
    print(f"{len(cases)} cases, {failed} failed; rows are in {args.out}")
    return failed > 0


def left_to_do(cases: list[Case], path: Path) -> list[Case]:
    """The cases of which the table has no row by these versions."""
    made = rows.of_these_versions(path).reindex(columns=COLUMNS["compiled"])
    if not optimization():
        made = made[made["optimization"].fillna("") == ""]
    return rows.missing(cases, made, Case._fields)


def compile_each(cases: list[Case], hlo: Path | None) -> Iterator[dict]:
    """Rows of cases, compiled in another process: a case that ends it costs only that case."""
    cases, hlo = collections.deque(cases), hlo and str(hlo)
    while cases:
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, the next line closes it
        with errors, Worker("compiled.compiler", errors=errors) as worker:
            try:
                while cases:
                    yield worker.ask("compile_case", case=cases[0], hlo=hlo) | provenance()
                    cases.popleft()
            except ChildProcessError as error:
                errors.seek(0)
                reason = re.search(r"(Check failed: .*|\w*Error: .*)", errors.read())
                text = f"no: {error}: {reason[1][:300] if reason else ''}"
                yield cases.popleft()._asdict() | {"compiles": text} | provenance()


if __name__ == "__main__":
    sys.exit(main())

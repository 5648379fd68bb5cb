"""Compiles e3jax's own programs for accelerators that may be absent, and tables what came of it.

TPUs need libtpu (pip install libtpu; 700 MB, Google Cloud's terms), GPUs a JAX with CUDA's
libraries (pip install "jax[cuda12]"; 6 GB), but neither a device nor a driver. Each row is one
program; what the table has already, by the same versions, is not compiled again. Peak memory and
cycles are the compiler's estimates. Where it ends the process, as some versions do, a row says so.
Where it takes too long or too much memory, JAX_OPTIMIZATION_LEVEL=O0 has it optimise less; rows say
so then, give no cycles, and are made again without it.
"""

import argparse
import collections
import functools
import importlib.util
import itertools
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import command
import jax
import numpy as np
from jax.experimental import topologies
from speed.worker import COLUMNS, Worker
from sweep import flags, store
from sweep.provenance import provenance, versions
from sweep.store import append_rows

from e3jax import devices, methods, networks, priority, training
from e3jax.cli.main import path
from e3jax.methods import METHODS
from e3jax.training import fitting
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.work import files

TARGETS = tomllib.loads(Path(__file__).with_name("accelerators.toml").read_text())
_METHODS = ("cae", "drae", "rdae", "dagmm", "cae-views")
_PARTS = ("init", "draw", "train", "score")  # of a method
# A training recorded as in Figs. 2 and 3, and that of e3outlier+.
_TRAININGS = ("train", "watched", "e3outlier+")
PROGRAMS = ("init", "draw", *_TRAININGS, "score", "magnitude", "update", *_METHODS)
_SIDE = 32
_HLO_MARK = "// Compiled by e3jax"  # first line of a file
# A program for a target, and what its shapes follow from.
Case = collections.namedtuple(
    "Case", "target devices program network precision channels images batch_size"
)


def parse_args() -> argparse.Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--target", nargs="+", choices=TARGETS, required=True, help="accelerators")
    add("--devices", type=int, nargs="+", default=[1], help="chips or GPUs of one host")
    add("--precision", nargs="+", default=["float32"], choices=devices.PRECISIONS)
    add("--channels", type=int, nargs="+", default=[1], choices=(1, 3), help="of the images")
    add("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="methods have several")
    add("--network", default="wrn-10-4", help="of E3Outlier's programs")
    add("--images", type=int, default=7777, help="in the bank")
    add("--batch-size", type=int, default=128, help="views per step")
    add("--out", type=path, default="results/compiled.csv", help="table that grows by rows")
    add("--hlo", type=path, metavar="FOLDER", help="also keep the optimised programs there")
    args = parser.parse_args()
    for target in args.target:
        if not any(map(importlib.util.find_spec, TARGETS[target]["compilers"])):
            how = f"pip install {TARGETS[target]['package']}"
            parser.error(f"{target} needs a compiler that is not here: {how}")
    return args


# --- What is compiled -------------------------------------------------------------------------


def mesh_of(name: str, count: int) -> jax.sharding.Mesh:
    """So many devices of a kind, none of which need be present."""
    target = TARGETS[name]
    if target["platform"] == "cuda":
        options = {"topology": f"1x1x{count}", "target_config": target["target_config"]}
        found = topologies.get_topology_desc("", "cuda", **options)
    else:
        large_enough = [size for size in target["topologies"] if int(size) >= count]
        if not large_enough:
            raise ValueError(f"a host has no {count} chips of {name}")
        options = target["topologies"][large_enough[0]]
        found = topologies.get_topology_desc(platform="tpu", **options)
    return devices.device_mesh(found.devices[:count])


def program_of(case: Case, mesh: jax.sharding.Mesh) -> devices.Program:
    """A case's program, as the library would run it."""
    name, _, part = case.program.partition(" ")
    grey, shape = case.channels == 1, (case.images, _SIDE, _SIDE, case.channels)
    if part:
        method = methods.METHODS[name]
        return fitting.programs(method, method.paper_config(grey), shape, mesh)[part]
    config = training.paper_config(grey)._replace(
        network=case.network, precision=case.precision, batch_size=case.batch_size
    )
    views, shaped = 4 * case.batch_size, jax.ShapeDtypeStruct
    images, labels = shaped((views, *shape[1:]), np.uint8), shaped((views,), np.int32)
    data = (shaped((16, *shape[1:]), np.uint8), shaped((16,), np.float32))
    probe_set = priority.ProbeSet(images, labels, shaped((4, views), np.float32), *data)
    probe = priority.make_probe(case.network, config.k, case.precision)
    options = (probe, probe_set) if name == "watched" else ()
    method = METHODS.get(name, E3OUTLIER)
    found = fitting.programs(method, config, shape, mesh, *options)
    if program := found.get("train" if name in _TRAININGS else name):
        return program
    network = networks.build(case.network, config.k, devices.dtype(case.precision))
    variables = found["train"].arguments[0].variables
    if name == "magnitude":
        measure, of_views = priority.gradient_magnitude, (shaped(images.shape, np.float32), labels)
        arrays = (variables, *of_views, probe_set.groups)
    else:
        measure, several = priority.de_facto_update, (4, case.batch_size)
        arrays = (variables, shaped((*several, *shape[1:]), np.float32), shaped(several, np.int32))
    apply = functools.partial(network.apply, train=False)
    return devices.Program(measure, (apply, *devices.shapes(mesh, arrays)))


def hlo_file(folder: str | Path, case: Case) -> Path:
    """Where a case's optimised program is kept."""
    return Path(folder, f"{'-'.join(map(str, case))}.txt")


def optimization() -> str:
    """The compiler's level of optimisation that was asked for; "" for its own."""
    level = jax.config.jax_optimization_level
    return "" if level == "UNKNOWN" else level


class Compiler:
    """What compiles, in a process of its own."""

    def compile(self, case: list, hlo: str | None) -> dict:
        """The row of a case; ``hlo`` is a folder for the optimised programs, if they are kept."""
        case = Case(*case)
        try:
            mesh = mesh_of(case.target, case.devices)
            program = program_of(case, mesh)
            start = time.monotonic()
            compiled = program.function.lower(*program.arguments).compile()
            seconds = time.monotonic() - start
            memory, text = compiled.memory_analysis(), compiled.as_text() or ""
        except Exception as error:  # the compiler's own kinds are not public
            line = str(error).partition("\n")[0][:300]
            return case._asdict() | {"compiles": f"no: {type(error).__name__}: {line}"}
        if hlo:
            files.write_text(hlo_file(hlo, case), f"{_HLO_MARK}\n{text}")
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        row = {"compiles": "yes", "compile_seconds": round(seconds, 1), "peak_bytes": peak}
        row["flops"] = (compiled.cost_analysis() or {}).get("flops", "")
        row["device_kind"] = mesh.devices.flat[0].device_kind
        if level := optimization():
            return case._asdict() | row | {"optimization": level}
        return case._asdict() | row | on_tpu(case, text)


# --- A TPU's cycles ---------------------------------------------------------------------------

_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%\S+ = (?:\([^=]*?\)|\S+) ([\w-]+)\("
    r'(?:.*?op_name="([^"]*)")?(?:.*?"estimated_cycles":"(\d+)")?',
    re.MULTILINE,
)
# By what is in an instruction and its name; the first that fits counts.
_KINDS = {
    "collectives": "^(all-reduce|all-gather|collective-permute|reduce-scatter)",
    "views": "views_of|all_views",
    "batch_norm": "BatchNorm",
    "convolutions": "Conv",
    "rest": "",
}


def on_tpu(case: Case, text: str) -> dict:
    """A TPU's columns, from its optimised program; none for other targets."""
    if not (clock := TARGETS[case.target].get("clock")):
        return {}
    cycles, unknown = cycles_of_step(text)
    row = {f"cycles_{kind}": cycles[kind] for kind in _KINDS}
    row |= {"cycles": cycles.total(), "without_estimate": unknown, "clock_ghz": clock}
    if case.program == "train" and cycles.total():
        row["views_per_second"] = round(case.batch_size * clock * 1e9 / cycles.total())
    return row


def cycles_of_step(text: str) -> tuple[collections.Counter, int]:
    """The compiler's estimated cycles of a program's costliest computation, which is its step.

    Returns:
      cycles by kind of work, and how many gathers and collectives have no estimate.
    """
    computations = []
    for computation in text.split("\n\n"):
        computations.append(collections.Counter())
        for instruction, name, cycles in _INSTRUCTION.findall(computation):
            what = f"{instruction} {name}"
            kind = next(kind for kind, part in _KINDS.items() if re.search(part, what))
            computations[-1][kind] += int(cycles or 0)
            is_slow = kind == "collectives" or instruction in ("gather", "scatter")
            computations[-1]["unknown"] += is_slow and not cycles
    step = max(computations, key=collections.Counter.total)
    return step, step.pop("unknown", 0)


# --- The command ------------------------------------------------------------------------------


def main() -> int:
    args = parse_args()
    stopped = "Rows are kept; the same command continues from here."
    return command.run(lambda: compile_all(args), stopped)


def compile_all(args: argparse.Namespace) -> bool:
    """Adds the rows that are missing; returns whether something did not compile."""
    store.check_csv(args.out, COLUMNS["compiled"])
    cases, failed = left_to_do(plan(args), args.out), 0
    for case in cases if args.hlo else ():
        files.check_output(hlo_file(args.hlo, case), _HLO_MARK)
    long = "most of 5 to 120 seconds on two cores, a training in float32 for a TPU up to 30 minutes"
    command.say(f"Plan: {len(cases)} cases, {long}")
    for (target, count), group in itertools.groupby(cases, key=lambda c: (c.target, c.devices)):
        command.say(f"{target}, {count} device(s)")
        for row in compile_apart(list(group), args.hlo):
            append_rows(args.out, COLUMNS["compiled"], [row])
            failed += row["compiles"] != "yes"
            command.say(row["program"], row["precision"], row["channels"], row["compiles"])
    print(f"{len(cases)} cases, {failed} failed; rows are in {args.out}")
    return failed > 0


def plan(args: argparse.Namespace) -> list[Case]:
    """All combinations; what has no precision of its own is there once, as float32."""
    names, cases = [], {}
    for name in args.programs:
        names += [f"{name} {part}" for part in _PARTS] if name in _METHODS else [name]
    options = (args.target, args.devices, args.channels, args.precision, names)
    for target, count, channels, precision, name in itertools.product(*options):
        network = "" if " " in name else args.network
        precision = precision if network and name not in ("init", "draw") else "float32"
        sizes = (channels, args.images, args.batch_size)
        cases[Case(target, count, name, network, precision, *sizes)] = None
    return list(cases)


def left_to_do(cases: list[Case], path: Path) -> list[Case]:
    """The cases of which the table has no row by these versions."""
    rows = store.rows_of(path)
    # Older rows name fewer packages.
    made_alike = [set(made.split()) <= set(versions().split()) for made in rows.get("versions", ())]
    rows = rows[made_alike].reindex(columns=COLUMNS["compiled"])
    if not optimization():
        rows = rows[rows["optimization"].fillna("") == ""]
    return store.without_row(cases, rows, Case._fields)


def compile_apart(cases: list[Case], hlo: Path | None) -> Iterator[dict]:
    """Rows of cases, compiled in another process: a case that ends it costs that case alone."""
    cases, hlo = collections.deque(cases), hlo and str(hlo)
    while cases:
        said = tempfile.TemporaryFile("w+")
        with said, Worker("compile_for:Compiler", errors=said) as worker:
            try:
                while cases:
                    yield worker.ask("compile", case=cases[0], hlo=hlo) | provenance()
                    cases.popleft()
            except ChildProcessError as error:
                said.seek(0)
                why = re.search(r"(Check failed: .*|\w*Error: .*)", said.read())
                text = f"no: {error}: {why[1][:300] if why else ''}"
                yield cases.popleft()._asdict() | {"compiles": text} | provenance()


if __name__ == "__main__":
    sys.exit(main())

"""Compiles e3jax's own programs for accelerators that may be absent, and tables what came of it.

TPUs need libtpu (pip install libtpu; 700 MB, Google Cloud's terms), GPUs a JAX with CUDA's
libraries (pip install "jax[cuda12]"; 6 GB), but neither a device nor a driver. Each row is one
program; what the table has already, by the same versions, is not compiled again. Peak memory and
cycles are the compiler's estimates. Where it ends the process, as some versions do, a row says so.
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

import jax
import numpy as np
import pandas as pd
from jax.experimental import topologies
from speed.worker import CONSOLE, Worker
from sweep import flags
from sweep.provenance import provenance, versions
from sweep.store import append_rows

from e3jax import baselines, devices, fitting, networks, priority, training
from e3jax.methods import E3OUTLIER

TARGETS = tomllib.loads(Path(__file__).with_name("accelerators.toml").read_text())
COLUMNS = (
    "target,device_kind,devices,program,network,precision,channels,images,batch_size,compiles,"
    "compile_seconds,peak_bytes,flops,cycles,cycles_views,cycles_convolutions,cycles_batch_norm,"
    "cycles_collectives,cycles_rest,without_estimate,clock_ghz,views_per_second,versions,commit"
).split(",")
_METHODS = ("cae", "drae", "rdae", "dagmm", "cae-views")
PROGRAMS = ("init", "draw", "train", "watched", "score", "magnitude", "update", *_METHODS)
_PARTS = ("init", "draw", "train", "score")  # of a method
_SIDE = 32
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
    add("--out", type=Path, default="results/compiled.csv", help="table that grows by rows")
    add("--hlo", type=Path, metavar="FOLDER", help="also keep the optimised programs there")
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
        info = f"""gpu_device_info {{ {target["device_info"]} }} platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 }}
            device_description_str: "{target["description"]}" """
        options = {"topology": f"1x1x{count}", "target_config": info}
        found = topologies.get_topology_desc("", "cuda", **options)
    else:
        shapes = target["topologies"]
        shape = shapes.get(str(count), shapes[min(shapes)])
        options = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 and "1" in shapes else {}
        found = topologies.get_topology_desc(shape, "tpu", **options)
    return devices.device_mesh(found.devices[:count])


def program_of(case: Case, mesh: jax.sharding.Mesh) -> devices.Program:
    """A case's program, as the library would run it."""
    name, _, part = case.program.partition(" ")
    grey, shape = case.channels == 1, (case.images, _SIDE, _SIDE, case.channels)
    if part:
        method = baselines.METHODS[name]
        return fitting.programs(method, method.paper_config(grey), shape, mesh)[part]
    config = training.paper_config(grey)._replace(
        network=case.network, precision=case.precision, batch_size=case.batch_size
    )
    views, shaped = 4 * case.batch_size, jax.ShapeDtypeStruct
    images, labels = shaped((views, *shape[1:]), np.uint8), shaped((views,), np.int32)
    probe_set = priority.ProbeSet(images, labels, shaped((4, views), np.float32))
    probe = priority.make_probe(case.network, config.k, case.precision)
    options = (probe, probe_set) if name == "watched" else ()
    found = fitting.programs(E3OUTLIER, config, shape, mesh, *options)
    if name in found or name == "watched":
        return found["train" if name == "watched" else name]
    network = networks.build(case.network, config.k, devices.dtype(case.precision))
    measure, inputs = priority.de_facto_update, shaped(images.shape, np.float32)
    arrays = (found["train"].arguments[0].variables, inputs, labels)
    if name == "magnitude":
        measure, arrays = priority.gradient_magnitude, (*arrays, probe_set.groups)
    arguments = (functools.partial(network.apply, train=False), *devices.shapes(mesh, arrays))
    return devices.Program(measure, arguments)


class Compiler:
    """What compiles, in a process of its own.

    Args:
      hlo: folder for the optimised programs; None keeps none.
    """

    def __init__(self, hlo: str | None):
        self.hlo = hlo

    def compile(self, case: list) -> dict:
        """The row of a case."""
        case = Case(*case)
        try:
            mesh = mesh_of(case.target, case.devices)
            row, text = compile_program(case, program_of(case, mesh))
        except Exception as error:  # the compiler's own kinds are not public
            line = f"no: {type(error).__name__}: {str(error).splitlines()[0][:300]}"
            return case._asdict() | {"compiles": line}
        if self.hlo:
            Path(self.hlo).mkdir(parents=True, exist_ok=True)
            Path(self.hlo, f"{'-'.join(map(str, case))}.txt").write_text(text)
        return case._asdict() | row | {"device_kind": mesh.devices.flat[0].device_kind}


def compile_program(case: Case, program: devices.Program) -> tuple[dict, str]:
    """What the compiler says of a program, and the program as it optimised it."""
    start = time.monotonic()
    compiled = program.function.lower(*program.arguments).compile()
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    row = {"compiles": "yes", "compile_seconds": round(seconds, 1), "peak_bytes": peak}
    row["flops"] = (compiled.cost_analysis() or {}).get("flops", "")
    target = TARGETS[case.target]
    if target["platform"] == "tpu":
        cycles, unknown = cycles_of_step(text)
        row |= {"cycles": cycles.total(), "without_estimate": unknown}
        row |= {f"cycles_{kind}": cycles[kind] for kind in (*_KINDS, "collectives", "rest")}
        row["clock_ghz"] = target["clock"]
        if case.program == "train" and cycles.total():
            per_second = target["clock"] * 1e9 / cycles.total()
            row["views_per_second"] = round(case.batch_size * per_second)
    return row, text


# --- A TPU's cycles ---------------------------------------------------------------------------

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (?:\([^=]*?\)|\S+) ([\w-]+)\(")
_COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "reduce-scatter")
_KINDS = {"views": "views_of|all_views", "batch_norm": "BatchNorm", "convolutions": "Conv"}


def cycles_of_step(text: str) -> tuple[collections.Counter, int]:
    """The compiler's estimated cycles of a program's costliest computation, which is its step.

    Returns:
      cycles by kind of work, and how many gathers and collectives have no estimate.
    """
    computations = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computations.append(collections.Counter())
        if found := _INSTRUCTION.match(line):
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            name = re.search(r'op_name="([^"]*)"', line)
            kind = _kind(found[1], name[1] if name else "")
            computations[-1][kind] += int(cycles[1]) if cycles else 0
            is_slow = kind == "collectives" or found[1] in ("gather", "scatter")
            computations[-1]["unknown"] += is_slow and not cycles
    step = max(computations, key=collections.Counter.total)
    return step, step.pop("unknown", 0)


def _kind(instruction: str, name: str) -> str:
    if instruction.startswith(_COLLECTIVES):
        return "collectives"
    return next((kind for kind, part in _KINDS.items() if re.search(part, name)), "rest")


# --- The command ------------------------------------------------------------------------------


def main() -> int:
    args = parse_args()
    cases, failed = left_to_do(plan(args), args.out), 0
    how_long = (
        "most of 5 to 120 seconds on two cores, a training in float32 for a TPU up to 30 minutes"
    )
    CONSOLE.print(f"Plan: {len(cases)} cases, {how_long}")
    try:
        for (target, count), group in itertools.groupby(cases, key=lambda c: (c.target, c.devices)):
            CONSOLE.print(f"{target}, {count} device(s)")
            for row in compile_apart(list(group), args.hlo):
                append_rows(args.out, COLUMNS, [row])
                failed += row["compiles"] != "yes"
                what = (row["program"], row["precision"], row["channels"], row["compiles"])
                CONSOLE.print(*what)
    except KeyboardInterrupt:
        CONSOLE.print("Stopped. Rows are kept; the same command continues from here.")
        return 130
    print(f"{len(cases)} cases, {failed} failed; rows are in {args.out}")
    return 1 if failed else 0


def plan(args: argparse.Namespace) -> list[Case]:
    """All combinations; what has no precision of its own is there once, as float32."""
    names = []
    for name in args.programs:
        names += [f"{name} {part}" for part in _PARTS] if name in _METHODS else [name]
    options = (args.target, args.devices, args.channels, args.precision, names)
    found = {}
    for target, count, channels, precision, program in itertools.product(*options):
        is_method = " " in program
        precision = "float32" if is_method or program in ("init", "draw") else precision
        network = "" if is_method else args.network
        sizes = (channels, args.images, args.batch_size)
        found[Case(target, count, program, network, precision, *sizes)] = None
    return list(found)


def left_to_do(cases: list[Case], path: Path) -> list[Case]:
    """The cases of which the table has no row by these versions."""
    if not path.exists():
        return cases
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    # Older rows name fewer packages.
    made_alike = [set(made.split()) <= set(versions().split()) for made in table["versions"]]
    done = set(table.loc[made_alike, list(Case._fields)].itertuples(index=False, name=None))
    return [case for case in cases if tuple(map(str, case)) not in done]


def compile_apart(cases: list[Case], hlo: Path | None) -> Iterator[dict]:
    """Rows of cases, compiled in another process: a case that ends it costs that case alone."""
    cases, options = collections.deque(cases), {"hlo": hlo and str(hlo)}
    while cases:
        with (
            tempfile.TemporaryFile("w+") as said,
            Worker("compile_for:Compiler", errors=said, **options) as worker,
        ):
            try:
                while cases:
                    yield worker.ask("compile", case=cases[0]) | provenance()
                    cases.popleft()
            except RuntimeError as error:
                said.seek(0)
                why = re.search(r"(Check failed: .*|\w*Error: .*)", said.read())
                text = f"no: {error}: {why[1][:300] if why else ''}"
                yield cases.popleft()._asdict() | {"compiles": text} | provenance()


if __name__ == "__main__":
    sys.exit(main())

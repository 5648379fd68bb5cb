"""Compiles e3jax's own programs for accelerators that may be absent, and tables what came of it.

TPUs need libtpu (pip install libtpu; 700 MB, Google Cloud's terms), GPUs a JAX with CUDA's
libraries (pip install "jax[cuda12]"; 6 GB), but neither a device nor a driver. Every row is one
program; what the table has already, by the same versions, is not compiled again. Peak memory and
cycles are the compiler's estimates. Where it ends the process, as some versions do, a row says so.
"""

import argparse
import collections
import csv
import functools
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import speed
import sweep
from jax.experimental import topologies
from rich.console import Console

from e3jax import baselines, devices, networks, operations, priority, scoring, training


class Target(NamedTuple):
    """A kind of accelerator, by what a compiler must know of it.

    Attributes:
      platform: "tpu" or "cuda".
      clock: GHz, for views a second from a TPU's cycles: what its published peak follows from.
      topologies: a TPU's, by the number of chips.
      gpu: fields of XLA's ``gpu_device_info``, and the device's name.
    """

    platform: str
    clock: float
    topologies: dict[int, str] | None = None
    gpu: tuple[str, str] | None = None


_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 fpus_per_core: {fpus} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 {fields}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
_SLICES = {1: "1x1", 4: "2x2", 8: "2x4"}
TARGETS = {
    "v5e": Target("tpu", 1.5, {n: f"v5e:{shape}" for n, shape in _SLICES.items()}),
    "v6e": Target("tpu", 1.75, {n: f"v6e:{shape}" for n, shape in _SLICES.items()}),
    "v5p": Target("tpu", 1.75, {4: "v5p:2x2x1", 8: "v5p:2x2x2"}),
    "h100": Target(
        "cuda",
        1.98,
        gpu=(
            "NVIDIA H100 80GB HBM3",
            "core_count: 132 clock_rate_ghz: 1.98 memory_bandwidth: 3352320000000 "
            "l2_cache_size: 52428800 device_memory_size: 84942979072 "
            "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 "
            "cuda_compute_capability { major: 9 }",
        ),
    ),
    "a100": Target(
        "cuda",
        1.41,
        gpu=(
            "NVIDIA A100-SXM4-80GB",
            "core_count: 108 clock_rate_ghz: 1.41 memory_bandwidth: 2039000000000 "
            "l2_cache_size: 41943040 device_memory_size: 84942979072 "
            "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 "
            "cuda_compute_capability { major: 8 }",
        ),
    ),
}
_FPUS = {"h100": 128, "a100": 64}
_KINDS = ("views", "convolutions", "batch_norm", "collectives", "rest")
COLUMNS = (
    "target,device_kind,devices,program,network,precision,channels,images,batch_size,compiles,"
    "compile_seconds,peak_bytes,flops,cycles,"
    + "".join(f"cycles_{kind}," for kind in _KINDS)
    + "without_estimate,clock_ghz,views_per_second,versions,commit"
).split(",")
_COMPILERS = {
    "tpu": (("libtpu",), "libtpu"),
    "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), '"jax[cuda12]"'),
}
_METHODS = ("cae", "drae", "rdae", "dagmm", "cae-views")
PROGRAMS = ("init", "draw", "train", "watched", "score", "magnitude", "update", *_METHODS)
_CHUNK, _SIDE, _OPERATIONS = 50, 32, "RA+IA+PR"


class Case(NamedTuple):
    """A program for a target, and what its shapes follow from."""

    target: str
    devices: int
    program: str
    network: str
    precision: str
    channels: int
    images: int
    batch_size: int


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--target", nargs="+", choices=TARGETS, help="accelerators")
    add("--devices", type=int, nargs="+", default=[1], help="chips or GPUs of one host")
    add("--precision", nargs="+", default=["float32"], choices=devices.PRECISIONS)
    add("--channels", type=int, nargs="+", default=[1], choices=(1, 3), help="of the images")
    add("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="methods have several")
    add("--network", default="wrn-10-4", help="of E3Outlier's programs")
    add("--images", type=int, default=7777, help="in the bank")
    add("--batch-size", type=int, default=128, help="views a step")
    add("--out", type=Path, default="results/compiled.csv", help="table that grows by rows")
    add("--hlo", type=Path, metavar="FOLDER", help="also keep the optimised programs there")
    add("--cases", help=argparse.SUPPRESS)  # this is the process that compiles
    arguments = parser.parse_args()
    if not arguments.target and not arguments.cases:
        parser.error(f"--target is missing: give some of {', '.join(TARGETS)}")
    for target in arguments.target or ():
        modules, package = _COMPILERS[TARGETS[target].platform]
        if not any(map(importlib.util.find_spec, modules)):
            parser.error(f"{target} needs a compiler that is not here: pip install {package}")
    return arguments


# --- What is compiled -------------------------------------------------------------------------


def mesh_of(target: str, count: int) -> jax.sharding.Mesh:
    """So many devices of a kind, none of which need be present."""
    kind, options = TARGETS[target], {}
    if kind.platform == "cuda":
        name, fields = kind.gpu
        options = {
            "topology": f"1x1x{count}",
            "target_config": _GPU.format(fields=fields, name=name, fpus=_FPUS[target]),
        }
        found = topologies.get_topology_desc("", "cuda", **options)
    else:
        shape = kind.topologies.get(count) or kind.topologies[min(kind.topologies)]
        if count == 1 and 1 in kind.topologies:
            options = {"chips_per_host_bounds": [1, 1, 1]}
        found = topologies.get_topology_desc(shape, "tpu", **options)
    return devices.device_mesh(found.devices[:count])


def programs(case: Case, mesh: jax.sharding.Mesh) -> dict[str, devices.Program]:
    """A case's programs by name, as the library would run them."""
    if case.program in _METHODS:
        method = baselines.METHODS[case.program]
        shape = (case.images, _SIDE, _SIDE, case.channels)
        found = method.make_model(method.paper_config(), shape, mesh).programs(shape[1:])
        return {f"{case.program} {name}": program for name, program in found.items()}
    operation_set = operations.operation_set(_OPERATIONS, _SIDE)
    config = training.paper_config(grey=case.channels == 1)
    config = config._replace(
        network=case.network, precision=case.precision, batch_size=case.batch_size
    )
    views = 4 * case.batch_size
    probe_set = priority.ProbeSet(
        jax.ShapeDtypeStruct((views, _SIDE, _SIDE, case.channels), np.uint8),
        jax.ShapeDtypeStruct((views,), np.int32),
        jax.ShapeDtypeStruct((4, views), np.float32),
    )
    watched = case.program == "watched"
    probe = priority.make_probe(case.network, operation_set, case.precision) if watched else None
    trainer = training.make_trainer(config, operation_set, mesh, _CHUNK, probe)
    found = trainer.programs(case.images, case.channels, probe_set if watched else ())
    if case.program in found:
        return {case.program: found[case.program]}
    if watched:
        return {"watched": found["train"]}
    state = found["train"].arguments[0]
    if case.program == "score":
        scorer = scoring.Scorer(case.network, operation_set, mesh, case.precision)
        return {"score": scorer.program(state.variables, case.channels)}
    network = networks.build(case.network, len(operation_set), devices.dtype(case.precision))
    inputs = jax.ShapeDtypeStruct(probe_set.images.shape, np.float32)
    arrays = (state.variables, inputs, probe_set.labels)
    measure = priority.de_facto_update
    if case.program == "magnitude":
        measure, arrays = priority.gradient_magnitude, (*arrays, probe_set.groups)
    arguments = (functools.partial(network.apply, train=False), *devices.shapes(mesh, arrays))
    return {case.program: devices.Program(measure, arguments)}


def compile_cases(cases: list[Case], hlo: Path | None) -> None:
    """In a process of its own: prints what came out of each case as a line of JSON."""
    for case in cases:
        try:
            mesh = mesh_of(case.target, case.devices)
            for name, program in programs(case, mesh).items():
                row = {"device_kind": mesh.devices.flat[0].device_kind} | _compile(case, program)
                text = row.pop("text")
                if hlo:
                    hlo.mkdir(parents=True, exist_ok=True)
                    Path(hlo, f"{'-'.join(map(str, case))}-{name}.txt").write_text(text)
                print(json.dumps(case._asdict() | row | {"program": name}), flush=True)
        except Exception as error:  # the compiler's own kinds are not public
            line = f"no: {type(error).__name__}: {str(error).splitlines()[0][:300]}"
            print(json.dumps(case._asdict() | {"compiles": line}), flush=True)
        print(json.dumps("done"), flush=True)


def _compile(case: Case, program: devices.Program) -> dict:
    start = time.monotonic()
    compiled = program.function.lower(*program.arguments).compile()
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    row = {"compiles": "yes", "compile_seconds": round(seconds, 1), "peak_bytes": peak}
    row |= {"flops": (compiled.cost_analysis() or {}).get("flops", ""), "text": text}
    clock = TARGETS[case.target].clock
    if TARGETS[case.target].platform == "tpu":
        cycles, unknown = cycles_of_step(text)
        total = sum(cycles.values())
        row |= {"cycles": total, "without_estimate": unknown, "clock_ghz": clock}
        row |= {f"cycles_{kind}": cycles[kind] for kind in _KINDS}
        if case.program == "train" and total:
            row["views_per_second"] = round(case.batch_size / (total / (clock * 1e9)))
    return row


# --- A TPU's cycles ---------------------------------------------------------------------------

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (?:\([^=]*?\)|\S+) ([\w-]+)\(")
_COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "reduce-scatter")


def cycles_of_step(text: str) -> tuple[collections.Counter, int]:
    """The compiler's estimated cycles of a program's costliest computation, which is its step.

    Returns:
      cycles by kind of work, and how many gathers and collectives have no estimate.
    """
    computations, kinds, unknown = [], collections.Counter(), 0
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            kinds, unknown = collections.Counter(), 0
            computations.append(kinds)
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        name = re.search(r'op_name="([^"]*)"', line)
        kind = _kind(found[1], name[1] if name else "")
        kinds[kind] += int(cycles[1]) if cycles else 0
        if not cycles and (kind == "collectives" or found[1] in ("gather", "scatter")):
            kinds["unknown"] += 1
    step = max(computations, key=lambda kinds: sum(kinds.values()))
    unknown = step.pop("unknown", 0)
    return step, unknown


def _kind(instruction: str, name: str) -> str:
    if instruction.startswith(_COLLECTIVES):
        return "collectives"
    parts = {"views": "views_of|all_views", "batch_norm": "BatchNorm", "convolutions": "Conv"}
    return next((kind for kind, part in parts.items() if re.search(part, name)), "rest")


# --- The command ------------------------------------------------------------------------------


def main() -> int:
    arguments = parse_arguments()
    if arguments.cases:
        cases = [Case(**case) for case in json.loads(arguments.cases)]
        compile_cases(cases, arguments.hlo)
        return 0
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    cases = [case for case in plan(arguments) if not _is_done(case, arguments.out)]
    console.print(f"Plan: {len(cases)} cases, each of 5 to 120 seconds on two cores")
    failed = 0
    try:
        for (target, count), group in itertools.groupby(cases, key=lambda c: (c.target, c.devices)):
            console.print(f"{target}, {count} device(s)")
            for row in compile_apart(list(group), arguments.hlo):
                speed.append_rows(arguments.out, COLUMNS, [row])
                failed += row["compiles"] != "yes"
                what = (row["program"], row["precision"], row["channels"], row["compiles"])
                console.print(" ".join(map(str, what)), markup=False)
    except KeyboardInterrupt:
        console.print("Stopped. Rows are kept; the same command continues from here.")
        return 130
    print(f"{len(cases)} cases, {failed} failed; rows are in {arguments.out}")
    return 1 if failed else 0


def plan(arguments: argparse.Namespace) -> list[Case]:
    """All combinations; what has no precision of its own is there once, as float32."""
    found = {}
    for target, count, channels, precision, program in itertools.product(
        arguments.target,
        arguments.devices,
        arguments.channels,
        arguments.precision,
        arguments.programs,
    ):
        plain = program in ("init", "draw", *_METHODS)
        found[
            Case(
                target=target,
                devices=count,
                program=program,
                network="" if program in _METHODS else arguments.network,
                precision="float32" if plain else precision,
                channels=channels,
                images=arguments.images,
                batch_size=arguments.batch_size,
            )
        ] = None
    return list(found)


def compile_apart(cases: list[Case], hlo: Path | None) -> Iterator[dict]:
    """Rows of cases, compiled in processes of their own: what ends one costs that case alone."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    while cases:
        command = [sys.executable, __file__, "--cases", json.dumps([c._asdict() for c in cases])]
        command += ["--hlo", str(hlo)] if hlo else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            for line in process.stdout:
                if (row := json.loads(line)) == "done":
                    cases = cases[1:]
                else:
                    yield row | sweep.provenance()
            said = process.stderr.read()
        if cases and process.returncode:
            why = re.search(r"(Check failed: .*|\w*Error: .*)", said)
            text = f"no: the process ended ({process.returncode}): {why[1][:300] if why else ''}"
            yield cases[0]._asdict() | {"compiles": text} | sweep.provenance()
            cases = cases[1:]


def _is_done(case: Case, path: Path) -> bool:
    """Whether the table has a case's first row by these versions."""
    key = {name: str(value) for name, value in case._asdict().items()}
    key["versions"] = sweep.versions()
    return any(
        all(
            row[name].split()[0] == value.split()[0] if name == "program" else row[name] == value
            for name, value in key.items()
        )
        for row in _rows(path)
    )


@functools.cache
def _rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())

"""Compiles a case, in a process of its own, and reads what the compiler says of its program."""

import collections
import re
import time
from pathlib import Path

import jax

from compiled.cases import TARGETS, Case, mesh_of, program_of
from e3jax.work import files

HLO_MARK = "// Compiled by e3jax"  # first line of a file


def hlo_file(folder: str | Path, case: Case) -> Path:
    """Where a case's optimised program is kept."""
    return Path(folder, f"{'-'.join(map(str, case))}.txt")


def optimization() -> str:
    """The compiler's level of optimisation that was asked for; "" for its own."""
    level = jax.config.jax_optimization_level
    return "" if level == "UNKNOWN" else level


def compile_case(case: list, hlo: str | None) -> dict:
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
        files.write_text(hlo_file(hlo, case), f"{HLO_MARK}\n{text}")
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    row = {"compiles": "yes", "compile_seconds": round(seconds, 1), "peak_bytes": peak}
    row["flops"] = (compiled.cost_analysis() or {}).get("flops", "")
    row["device_kind"] = mesh.devices.flat[0].device_kind
    level = optimization()
    return case._asdict() | row | ({"optimization": level} if level else on_tpu(case, text))


# --- A TPU's cycles ---------------------------------------------------------------------------

_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%\S+ = (?:\([^=]*?\)|\S+) ([\w-]+)\("
    r'(?:.*?op_name="([^"]*)")?(?:.*?"estimated_cycles":"(\d+)")?',
    re.MULTILINE,
)
_UNKNOWN = str(2**63 - 1)  # instead of cycles, for what the compiler cannot tell
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
      Cycles by kind of work, and how many instructions that take some have no estimate.
    """
    computations = []
    for computation in text.split("\n\n"):
        computations.append(collections.Counter())
        for instruction, name, cycles in _INSTRUCTION.findall(computation):
            what = f"{instruction} {name}"
            kind = next(kind for kind, pattern in _KINDS.items() if re.search(pattern, what))
            is_slow = kind == "collectives" or instruction in ("gather", "scatter")
            is_unknown = cycles == _UNKNOWN or is_slow and not cycles
            computations[-1]["unknown"] += is_unknown
            computations[-1][kind] += 0 if is_unknown else int(cycles or 0)
    step = max(computations, key=collections.Counter.total)
    return step, step.pop("unknown", 0)

"""Programs for accelerators that are absent, and what to run on the first one at hand."""

import csv
import os
import subprocess
import sys

import compile_for
import jax
import pytest
from compiled import compiler
from compiled.cases import Case, plan, program_of
from conftest import ROOT, keeping
from sweep import rows
from sweep.provenance import versions
from timing.worker import COLUMNS

from e3jax import devices


@pytest.mark.nightly
def test_a_script_for_the_first_gpu_runs_small_on_a_cpu(tmp_path, cache):
    """It leaves the device to its parts, which would find a part of its memory taken."""
    arguments = ("--toy", "--source", "embedded", "--results-dir", tmp_path, "--minutes", 5)
    code = (
        "import sys, first_gpu, jax._src.xla_bridge as backends; code = first_gpu.main()\n"
        "assert not backends.backends_are_initialized(); sys.exit(code)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "experiments")} | keeping()
    # Nobody looks at these speeds.
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "first_gpu.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert {row["part"] for row in found} == {"doctor", "speed", "class", "classes"}
    numerics = [row for row in found if row["what"].startswith("numerics: ")]
    assert len(numerics) == 4 and not any(row["wrong"] for row in found)
    assert {row["unit"] for row in found if row["part"] == "speed"} == {"views/s", "s"}
    assert sum(row["what"].startswith("AUROC of class 4") for row in found) == 2 * 3


HLO = """
%branch_1_fun.7 (a: f32[8]) -> f32[8] {
  %fusion.1 = bf16[128,32]{1,0:T(8,128)} fusion(%a), kind=kOutput, metadata={op_name="a/views_of/dot"}, backend_config={"window_config":{},"estimated_cycles":"100"}
  %fusion.2 = (f32[64]{0}, f32[64]{0:T(128)S(1)}) fusion(%a), metadata={op_name="jvp(Net)/BatchNorm_2/mul"}, backend_config={"estimated_cycles":"40"}
  %fusion.3 = f32[64]{0} fusion(%a), metadata={op_name="jvp(Net)/Conv_1/conv"}, backend_config={"estimated_cycles":"300"}
  %all-reduce.1 = f32[64]{0} all-reduce(%a), metadata={op_name="jvp(Net)/BatchNorm_2/pmean"}
  %fusion.4 = f32[64]{0} fusion(%a), metadata={op_name="take"}, backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %gather.1 = f32[8]{0} gather(%a), metadata={op_name="take"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %copy.1 = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501


def test_a_tpus_cycles_are_summed_by_kind_of_work():
    cycles, unknown = compiler.cycles_of_step(HLO)
    assert +cycles == {"views": 100, "batch_norm": 40, "convolutions": 300}
    assert unknown == 3


def planned(monkeypatch, command: str) -> list[Case]:
    monkeypatch.setattr("sys.argv", ["compile_for.py", *command.split()])
    monkeypatch.setattr(compile_for.importlib.util, "find_spec", lambda name: True)
    return plan(compile_for.parse_args())


def test_every_case_of_a_compilation_is_planned_once(monkeypatch):
    flags = "--target h100 v5e --precision float32 bfloat16 --programs draw train cae"
    cases = planned(monkeypatch, flags)
    assert [(c.program, c.precision) for c in cases if c.target == "v5e"] == [
        ("draw", "float32"),
        ("train", "float32"),
        *((f"cae {part}", "float32") for part in ("init", "draw", "train", "score")),
        ("train", "bfloat16"),
    ]


def test_what_the_table_has_by_the_same_versions_is_not_compiled_again(monkeypatch, tmp_path):
    cases = planned(monkeypatch, "--target v5e --programs draw train --images 20")
    older, other = versions().rsplit(" ", 2)[0], "jax=0.1"
    made = [
        case._asdict() | {"versions": names}
        for case, names in zip(cases, (older, other), strict=True)
    ]
    assert compile_for.left_to_do(cases, tmp_path / "table.csv") == cases
    rows.append(tmp_path / "table.csv", made, COLUMNS["compiled"])
    assert compile_for.left_to_do(cases, tmp_path / "table.csv") == cases[1:]
    longer = [case._replace(images=200) for case in cases]
    assert compile_for.left_to_do(longer, tmp_path / "table.csv") == longer


def test_what_was_optimised_less_is_compiled_again_without(monkeypatch, tmp_path):
    table, cases = tmp_path / "table.csv", planned(monkeypatch, "--target v5e --programs draw")
    made = cases[0]._asdict() | {"versions": versions()}
    rows.append(table, [made | {"optimization": "O0"}], COLUMNS["compiled"])
    assert compile_for.left_to_do(cases, table) == cases
    jax.config.update("jax_optimization_level", "O0")
    try:
        assert compile_for.left_to_do(cases, table) == []
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
    rows.append(table, [made], COLUMNS["compiled"])
    assert compile_for.left_to_do(cases, table) == []


def test_a_compiler_that_is_missing_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(compile_for.importlib.util, "find_spec", lambda name: None)
    for target, sentence in (("v6e", "pip install libtpu"), ("a100", 'pip install ".[cuda12]"')):
        command = ["compile_for.py", "--target", target, "--out", str(tmp_path / "table.csv")]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit, match="2"):
            compile_for.main()
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_cases_are_the_librarys_programs():
    mesh = devices.device_mesh(jax.devices()[:1])
    for name in ("train", "watched", "magnitude", "dagmm score"):
        case = Case("v5e", 1, name, "wrn-10-1", "float32", 1, 20, 4)
        function, arguments = program_of(case, mesh)
        assert jax.tree.leaves(function.trace(*arguments).out_info)


def test_a_case_that_fails_is_a_row_and_stops_no_other(tmp_path):
    case = Case("v5e", 1, "draw", "no-network", "float32", 1, 20, 4)
    made = list(compile_for.compile_each([case, case._replace(devices=16)], tmp_path))
    assert made[0]["compiles"].startswith("no: ")
    assert made[1]["compiles"] == "no: ValueError: a v5e host does not have 16 chips"
    assert made[0].keys() <= set(COLUMNS["compiled"])


def test_a_process_that_ends_is_a_row_with_its_reason(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # Python itself ends at once
    case = Case("v5e", 1, "draw", "wrn-10-1", "float32", 1, 20, 4)
    made = list(compile_for.compile_each([case, case._replace(channels=3)], None))
    assert [row["channels"] for row in made] == [1, 3]
    ended = "ended in compile_case with code 1: ModuleNotFoundError"
    assert all(ended in row["compiles"] for row in made)

"""A benchmark in several processes, and what a second start finds."""

import os

import jax
import pytest
from commands import rows
from conftest import ROOT
from jobs import environment, free_port, run_together

SMALL = (
    *("tests/stub_sweep.py", "--dataset", "mnist", "--source", "embedded", "--protocol", "quick"),
    *("--network", "tiny-8", "--operations", "PR", "--max-images", 20, "--steps", 12),
)


def sweeping(devices, **more) -> dict[str, str]:
    """The environment of the script."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "experiments")))
    return environment(devices, **more) | {"PYTHONPATH": path}


def job(folders, each_process=((), ()), arguments=()):
    """A benchmark in as many processes as there are results folders, with a device each."""
    port = free_port()
    commands = [
        (
            *(*SMALL, *arguments, *each_process[i], "--results-dir", folder, "--distributed"),
            *("--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", i),
        )
        for i, folder in enumerate(folders)
    ]
    return run_together(commands, [sweeping(1)] * 2)


@pytest.mark.nightly
def test_a_benchmark_in_two_processes_is_written_by_the_first(cache, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    what = ("--classes", 4, "--methods", "e3outlier", "pixel-pca", "cae")
    done = job(folders, arguments=what)
    for process in done:
        assert process.returncode == 0, process.stderr
    assert "Device: 2 x cpu" in done[0].stderr and "[3/3]" in done[0].stderr
    # Gloo, which connects CPUs, says in its own way that it did.
    said = (done[1].stdout + done[1].stderr).splitlines()
    assert not [line for line in said if not line.startswith("[Gloo]")]
    assert not folders[1].exists()
    table = rows(folders[0])
    trained = ["cae", "cae-if", "e3outlier", "e3outlier-mp", "e3outlier-pl"]
    assert sorted(row["method"] for row in table) == [*trained, "pixel-pca", "ssd-if"]
    assert {row["device"] for row in table} == {"2 x cpu"}
    again = job(folders, arguments=what)
    assert [process.returncode for process in again] == [0, 0], again[1].stderr
    assert "3 of them finished before" in again[0].stderr and "[1/" not in again[0].stderr


@pytest.mark.nightly
def test_processes_with_different_commands_are_told(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    differing = (("--classes", 0), ("--classes", 1))
    for process in job(folders, differing, ("--methods", "pixel-pca")):
        assert process.returncode == 2, process.stderr
        assert "different commands or images" in process.stderr


@pytest.mark.nightly
def test_a_process_that_finds_no_job_says_what_to_do(run_script, tmp_path):
    job = (*SMALL, "--distributed", "--results-dir", tmp_path / "r", "--num-processes", 2)
    third = ("--coordinator", "localhost:1", "--process-id", 2)
    for arguments, said in [(), "found no cluster"], [third, "cannot join the job at loc"]:
        done = run_script(*job, *arguments, env=sweeping(2))
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert said in " ".join(done.stderr.split())


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="refuses the programs that it kept on CPUs"
)
def test_a_second_start_compiles_nothing(run_script, tmp_path):
    misses, home = [], {"E3JAX_CACHE_DIR": str(tmp_path / "cache"), "JAX_EXPLAIN_CACHE_MISSES": "1"}
    env = sweeping(1, **home)
    del env["JAX_COMPILATION_CACHE_DIR"]
    for start in ("first", "second"):
        arguments = (*SMALL[1:], "--methods", "e3outlier", "--classes", 4)
        done = run_script(SMALL[0], *arguments, "--results-dir", tmp_path / start, env=env)
        assert done.returncode == 0, done.stderr
        misses.append(done.stderr.count("PERSISTENT COMPILATION CACHE MISS"))
    assert misses[0] > 5 and misses[1] == 0
    assert (tmp_path / "cache" / "compiled").stat().st_mode & 0o777 == 0o700

"""Plans, shards, failures and engines: whatever happens to a sweep, its table is the same."""

import functools
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import benchmark
import pytest
import runs
import sweep
from conftest import ROOT
from rich.console import Console
from test_benchmark import assert_same_results, rows

MNIST = ("--dataset", "mnist", "--source", "embedded", "--protocol", "quick")
PIXELS = (*MNIST, "--max-images", 40, "--methods", "pixel-pca", "pixel-knn", "--classes", 1, 4)


def plan(monkeypatch, folder, *arguments) -> list[sweep.Run]:
    """What a command would do."""
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, (*MNIST, *arguments))])
    engine = SimpleNamespace(platform="cpu", split=lambda trainings: None, device="", at_once=1)
    asked = benchmark.parse_arguments()
    parts = functools.partial(benchmark.asked, asked), engine, sweep.Folder(folder)
    return benchmark.Benchmark(asked, *parts, Console(quiet=True)).todo


def test_methods_of_one_training_are_one_run(monkeypatch, tmp_path, mnist):
    asked = ("e3outlier-mp", "pixel-if", "e3outlier", "e3outlier-pl")
    found = plan(monkeypatch, tmp_path, "--classes", 4, 4, "--methods", *asked)
    assert [run.method for run in found] == ["e3outlier", "pixel-if"]
    found = plan(monkeypatch, tmp_path, "--classes", 4, "--methods", "all")
    assert [run.method for run in found] == list(
        dict.fromkeys(map(runs.METHODS.get, runs.TABLE_METHODS))
    )
    assert not {"cae-64", "cae-views", "e3outlier-epoch10"} & {run.method for run in found}


def test_a_training_is_named_after_the_first_method_it_serves():
    assert all(key == kind.serves[0] for key, kind in runs.TRAININGS.items())
    assert len(runs.METHODS) == sum(len(kind.serves) for kind in runs.TRAININGS.values())
    assert set(runs.DEFAULT_METHODS) <= set(runs.METHODS) and "all" not in runs.METHODS


def test_shards_are_parts_of_the_plan_with_their_share_of_trainings(monkeypatch, tmp_path, mnist):
    grid = ("--ratios", 0.1, 0.2, "--seeds", 3)
    whole = [run.name for run in plan(monkeypatch, tmp_path, *grid)]
    assert len(whole) == len(set(whole)) == 2 * 3 * 10 * 4
    shards = [plan(monkeypatch, tmp_path, *grid, "--shard", f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(run.name for shard in shards for run in shard) == sorted(whole)
    for shard in shards:
        assert sum(run.method == "e3outlier" for run in shard) == 15
        names = [run.name for run in shard]
        assert names == [name for name in whole if name in names], "in the order of the plan"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--shard", "0/4"], "'0/4' is no shard"),
        (["--shard", "5/4"], "'5/4' is no shard"),
        (["--shard", "half"], "'half' is no shard"),
        (["--engine", "ray", "--share", "GPU=none"], "'GPU=none' is no share"),
        (["--engine", "ray", "--share", "CPU=0"], "'CPU=0' is no share"),
        (["--share", "GPU=1"], "need --engine ray"),
        (["--ray-address", "here:1"], "need --engine ray"),
        (["--engine", "ray", "--runs-at-once", 2], "leave out"),
        (["--engine", "ray", "--tensorboard", "events"], "needs --engine local"),
        (["--methods", "cats"], "invalid choice: 'cats'"),
    ],
)
def test_wrong_flags_are_one_sentence(monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, (*MNIST, *arguments))])
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse_arguments()
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_failing_run_is_told_at_the_end_and_tried_again(monkeypatch, capsys, tmp_path, mnist):
    """One of four fails: the others are done, the next start does that one alone."""
    command = ["benchmark.py", *map(str, PIXELS), "--results-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    knn = runs.TRAININGS["pixel-knn"]

    def fail(task):
        if task.run.inlier_class == 4:
            raise RuntimeError("the disk of the neighbour\nis on fire")
        return knn.do(task)

    with monkeypatch.context() as patch:
        patch.setitem(runs.TRAININGS, "pixel-knn", knn._replace(do=fail))
        assert benchmark.main() == 1
    said, told = capsys.readouterr()
    assert "[4/4]" in told and "4 of them" not in told
    sentence = "mnist class 4 ratio 0.1 seed 0 pixel-knn: RuntimeError: the disk of the neighbour"
    assert told.splitlines()[-2:][0] == f"failed: {sentence}"
    assert "1 run(s) failed" in told.splitlines()[-1]
    assert "| 1 of 2, missing: class 4 seed 0 |" in said
    [traceback] = (tmp_path / "runs").glob("*.failed")
    assert "Traceback" in traceback.read_text() and "in fail" in traceback.read_text()
    assert len(rows(tmp_path)) == 3
    assert benchmark.main() == 0
    assert "3 of them finished before" in capsys.readouterr().err
    assert len(rows(tmp_path)) == 4 and not list((tmp_path / "runs").glob("*.failed"))


def test_without_ray_its_engine_says_what_to_do():
    hide = "import sys; sys.modules['ray'] = None; import benchmark; sys.exit(benchmark.main())"
    command = [sys.executable, "-c", hide, *map(str, PIXELS), "--engine", "ray"]
    done = subprocess.run(command, cwd=ROOT / "experiments", capture_output=True, text=True)
    assert done.returncode == 2 and "pip install ray" in done.stderr
    assert "Traceback" not in done.stderr


# --- Real sweeps -----------------------------------------------------------------------------

GRID = (
    *(*MNIST, "--operations", "PR", "--max-images", 20, "--steps", 20),
    *("--methods", "e3outlier", "--classes", 1, 4, 7, 9),
)
# What Ray's workers have for a share of one CPU, so that all engines give the same bits.
ONE_CORE = {"JAX_NUM_CPU_DEVICES": "1", "NPROC": "1", "OMP_NUM_THREADS": "1"}


def start(folder, *arguments) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "experiments/benchmark.py"), *map(str, GRID)]
    command += ["--results-dir", str(folder), *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE_CORE, **pipes)


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, f"finished too early: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    end(start(folder))
    return folder


@pytest.mark.campaign
def test_shards_at_the_same_time_in_one_folder_make_the_table_of_the_whole(undisturbed, tmp_path):
    shards = [start(tmp_path, "--shard", f"{i}/2") for i in (1, 2)]
    for errors in map(end, shards):
        assert "Plan: 2 runs of shard" in errors
    assert_same_results(tmp_path, undisturbed)


@pytest.fixture(scope="module")
def cluster(cache):
    """A Ray cluster of two nodes, each with a core as far as Ray knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def workers(node) -> list[int]:
    """Processes of a node that are in a run now."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")")[-1].split()[1])
            if parent == raylet and b"_on_worker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except OSError:  # ended meanwhile
            pass
    return found


@pytest.mark.campaign
def test_a_sweep_survives_the_loss_of_a_worker_and_of_a_node(undisturbed, cluster, tmp_path):
    head, [other] = cluster.head_node, cluster.worker_nodes
    driver = start(tmp_path, "--engine", "ray", "--ray-address", cluster.address)
    try:
        wait_until(lambda: workers(head) and workers(other), driver)
        os.kill(workers(head)[0], signal.SIGKILL)
        assert workers(other) and not list((tmp_path / "runs").glob("*.json"))
        cluster.remove_node(other, allow_graceful=False)
        errors = end(driver)
    finally:
        driver.kill()
    assert "Ray cluster with 2 node(s)" in errors and "[4/4]" in errors
    assert_same_results(tmp_path, undisturbed)


@pytest.mark.campaign
def test_a_killed_driver_loses_nothing_and_engines_take_turns(undisturbed, cluster, tmp_path):
    """A run in process; Ray, its driver killed after one more; then Ray to the end."""
    finished = tmp_path / "runs"
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    end(start(tmp_path, "--classes", 4))
    driver = start(tmp_path, *on_ray)
    wait_until(lambda: len(list(finished.glob("*.json"))) == 2, driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert "2 of them finished before" in end(start(tmp_path, *on_ray))
    assert_same_results(tmp_path, undisturbed)

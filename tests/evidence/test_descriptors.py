import jax
import numpy as np
import pytest
import scipy.stats
from skimage.feature import hog

import e3jax
from e3jax.evidence import descriptors
from e3jax.metrics import auroc

KEY = jax.random.key(0)


def grating(degrees, side=32, period=8, channels=1):
    """A wave whose brightness rises in this direction, from right (0) to down (90)."""
    row, column = np.indices((side, side))
    along = np.cos(np.deg2rad(degrees)) * column + np.sin(np.deg2rad(degrees)) * row
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * along / period)
    return np.repeat(wave[..., None], channels, -1).astype(np.float32)


# scikit-image gives a pixel's vote to one orientation and one cell, so the definitions meet inside
# an image of one gradient, for directions in the middle of a bin.
@pytest.mark.parametrize("degrees", [10, 30, 50, 90, 130, 170])
def test_gradients_count_for_the_orientations_that_scikit_image_finds(degrees):
    row, column = np.indices((32, 32)) / 100
    ramp = np.cos(np.deg2rad(degrees)) * column + np.sin(np.deg2rad(degrees)) * row
    ours = np.asarray(descriptors.shape(np.float32(ramp)[..., None])).reshape(8, 8, 9) ** 2
    how = {"orientations": 9, "pixels_per_cell": (4, 4), "cells_per_block": (1, 1)}
    theirs = hog(ramp, **how, block_norm="L1", feature_vector=False)[..., 0, 0, :]
    ours, theirs = (a[1:-1, 1:-1] / a[1:-1, 1:-1].sum() for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_shape_has_length_one_whatever_the_contrast_and_0_without_edges():
    strong, faint = grating(30), 0.5 + 0.1 * (grating(30) - 0.5)
    assert np.linalg.norm(descriptors.shape(strong)) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(descriptors.shape(strong), descriptors.shape(faint), atol=1e-3)
    assert np.abs(descriptors.shape(np.full((32, 32, 3), 0.5, np.float32))).max() == 0


def test_a_shape_sees_the_channel_that_is_strongest():
    colour = np.concatenate([grating(30), np.full((32, 32, 2), 0.5, np.float32)], -1)
    np.testing.assert_allclose(descriptors.shape(colour), descriptors.shape(grating(30)), rtol=1e-5)


@pytest.mark.parametrize("side", [20, 32, 36])
def test_a_layout_is_the_image_in_low_resolution(side):
    image = np.random.default_rng(0).random((side, side, 3), np.float32)
    found = np.asarray(descriptors.layout(image)).reshape(8, 8, 3)
    np.testing.assert_allclose(found.mean((0, 1)), image.mean((0, 1)), rtol=1e-5)
    if side == 32:
        pooled = image.reshape(8, 4, 8, 4, 3).mean((1, 3))
        np.testing.assert_allclose(found, pooled, rtol=1e-5)


@pytest.mark.parametrize("degrees, sector", [(0, 0), (30, 1), (90, 3), (150, 5)])
@pytest.mark.parametrize("period", [3, 12])
def test_statistics_see_the_scale_and_direction_of_a_texture(degrees, sector, period):
    found = np.asarray(descriptors.statistics(grating(degrees, period=period)))
    parts = found[:24].reshape(4, 6)
    assert np.unravel_index(parts.argmax(), (4, 6)) == ({3: 3, 12: 1}[period], sector)


def test_statistics_see_brightness_and_contrast_of_each_channel():
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    found, grey = (np.asarray(descriptors.statistics(x)) for x in (image, image[..., :1]))
    red, green, blue = np.moveaxis(image, -1, 0)
    light = (red + green + blue) / np.sqrt(3)
    opponent = [light, (red - green) / np.sqrt(2), (red + green - 2 * blue) / np.sqrt(6)]
    for values, channels in ((found[24:], opponent), (grey[24:], [red])):
        means, deviations = np.split(values, 2)
        np.testing.assert_allclose(means, np.mean(channels, (1, 2)), atol=1e-6)
        np.testing.assert_allclose(np.exp(deviations), np.std(channels, (1, 2)) + 1e-2, rtol=1e-4)


def references(features, whitened=False):
    """As fit keeps them, of features that are no images'."""
    return descriptors._references(np.float32(features), whitened)


def test_distances_are_to_the_nearest_references_but_oneself():
    points = np.float32([[0], [1], [3], [7]])  # 5 % of four is one
    np.testing.assert_allclose(references(points).distances(points), [1, 1, 2, 4])


def test_whitened_distances_depend_neither_on_scales_nor_on_what_the_features_share():
    features = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    mixed = features @ np.float32([[1, 50, 0], [0, 100, 0], [0, 0, 0.01]]) + 5
    found, again = (references(a, whitened=True).distances(a) for a in (features, mixed))
    np.testing.assert_allclose(found, again, rtol=0.05)
    np.testing.assert_allclose(found, references(features).distances(features), rtol=0.1)
    assert not np.allclose(references(mixed).distances(mixed), found, rtol=0.5)


def test_equal_images_are_at_one_distance_in_any_company():
    features = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    features[[7, 33, 49]] = features[0]
    fitted = references(features, whitened=True)
    together = fitted.distances(features)
    assert len({*together[[0, 7, 33, 49]], *fitted.distances(features[:1])}) == 1


def test_features_that_are_all_the_same_are_at_distance_0():
    features = np.ones((5, 4), np.float32)
    assert references(features, whitened=True).distances(features).max() == 0


@pytest.fixture(scope="module")
def digits():
    return e3jax.datasets.load("mnist", source="embedded")


def test_digits_that_do_not_belong_are_far(digits):
    data = e3jax.contaminate(digits.images, digits.labels, 4, ratio=0.1, seed=0, max_images=100)
    found = descriptors.distances(descriptors.fit(KEY, data.images), data.images)
    assert list(found) == ["shape", "layout", "statistics"]
    assert auroc(-found["shape"], data.is_outlier) > 0.9
    assert all(auroc(-values, data.is_outlier) > 0.6 for values in found.values())


def test_outliers_of_one_kind_are_far_although_they_are_near_each_other():
    random = np.random.default_rng(0)
    inliers, outliers = random.normal(0, 1, (1800, 8)), random.normal(0, 0.3, (60, 8)) + 4
    features = np.concatenate([inliers, outliers]).astype(np.float32)
    found = references(features).distances(features)
    assert auroc(-found, np.arange(len(features)) >= 1800) > 0.95


def test_images_score_alone_as_they_do_among_others(digits):
    images = digits.images[:60]
    fitted = descriptors.fit(KEY, images)
    together = descriptors.distances(fitted, images)
    for name, alone in descriptors.distances(fitted, images[7:8]).items():
        np.testing.assert_array_equal(alone, together[name][7:8])


def test_a_large_collection_is_measured_by_some_of_it(monkeypatch, digits):
    images = digits.images[:300]
    all_of_them = descriptors.distances(descriptors.fit(KEY, images), images)
    monkeypatch.setattr(descriptors, "_REFERENCES", 200)
    monkeypatch.setattr(descriptors, "_CHUNK", 128)
    fitted, progress = descriptors.fit(KEY, images), []
    assert len(fitted["shape"].features) == 200
    how = {"on_progress": lambda *now: progress.append(now)}
    some = descriptors.distances(fitted, images, **how)
    assert progress == [("describing", done, 300) for done in (128, 256, 300)]
    for name, values in some.items():
        assert scipy.stats.spearmanr(values, all_of_them[name]).statistic > 0.9


def test_two_images_are_a_collection(digits):
    images = digits.images[:2]
    found = descriptors.distances(descriptors.fit(KEY, images), images)
    assert all(np.isfinite(values).all() for values in found.values())


def test_an_unknown_descriptor_is_named(digits):
    with pytest.raises(ValueError, match="unknown descriptor 'colour': expected one of shape, lay"):
        descriptors.fit(KEY, digits.images[:5], ["colour"])

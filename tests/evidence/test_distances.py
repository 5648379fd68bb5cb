"""Distances to a collection, by one descriptor."""

import math

import jax
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

import e3jax
from e3jax import devices
from e3jax.evidence import EVIDENCE, Context, distances, fit_and_measure
from e3jax.metrics import auroc

KEY = jax.random.key(0)
DESCRIPTORS = ("shape", "layout", "statistics")


def references(features, whitened=False):
    """As fit keeps them, of features that are no images'."""
    return distances.references(np.float32(features), whitened)


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


@pytest.mark.parametrize("count", [2, 30, 1000, 1800])
def test_distances_are_scipys(count):
    features = np.random.default_rng(0).normal(size=(count, 40)).astype(np.float32)
    distances = np.sort(cdist(features, features))
    nearest = distances[:, 1 : math.ceil(0.05 * count) + 1]
    np.testing.assert_allclose(references(features).distances(features), nearest.mean(1), rtol=1e-6)


def test_one_program_measures_collections_of_any_size():
    measure = distances._measurer(devices.device_mesh())
    before = None
    for count in (10, 700, 1000):
        features = np.random.default_rng(0).normal(size=(count, 7)).astype(np.float32)
        references(features).distances(features)
        size = measure._program.__wrapped__._cache_size()
        assert before in (None, size)
        before = size


def test_features_that_are_all_the_same_are_at_distance_0():
    features = np.ones((5, 4), np.float32)
    assert references(features, whitened=True).distances(features).max() == 0


@pytest.fixture(scope="module")
def digits():
    return e3jax.datasets.load("mnist", source="embedded")


def test_digits_that_do_not_belong_are_far(digits):
    data = e3jax.contaminate(digits.images, digits.labels, 4, ratio=0.1, seed=0, max_images=100)
    measured = fit_and_measure(KEY, {"images": data.images}, DESCRIPTORS, Context())
    assert list(measured) == ["shape", "layout", "statistics"]
    assert auroc(-measured["shape"], data.is_outlier) > 0.9
    assert all(auroc(-values, data.is_outlier) > 0.6 for values in measured.values())


def test_outliers_of_one_kind_are_far_although_they_are_near_each_other():
    random = np.random.default_rng(0)
    inliers, outliers = random.normal(0, 1, (1800, 8)), random.normal(0, 0.3, (60, 8)) + 4
    features = np.concatenate([inliers, outliers]).astype(np.float32)
    values = references(features).distances(features)
    assert auroc(-values, np.arange(len(features)) >= 1800) > 0.95


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_an_image_is_measured_by_itself_as_it_is_among_others(digits, name):
    images, kind = digits.images[:60], EVIDENCE[name]
    model = kind.fit(KEY, images, Context()).model
    together = kind.measure(model, images, Context()).values
    by_itself = kind.measure(model, images[7:8], Context()).values
    np.testing.assert_array_equal(by_itself, together[7:8])


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_large_collection_is_measured_by_some_of_it(monkeypatch, digits, name):
    images, kind, progress = digits.images[:300], EVIDENCE[name], []
    of_all = fit_and_measure(KEY, {"images": images}, [name], Context())[name]
    monkeypatch.setattr(distances, "_REFERENCES", 200)
    monkeypatch.setattr(distances, "_BLOCK", 128)
    model = kind.fit(KEY, images, Context()).model
    assert len(model.features) == 200
    context = Context(on_progress=lambda *now: progress.append(now))
    values = kind.measure(model, images, context).values
    assert progress == [("describing", done, 300) for done in (128, 256, 300)]
    assert scipy.stats.spearmanr(values, of_all).statistic > 0.9


def test_two_images_are_a_collection(digits):
    measured = fit_and_measure(KEY, {"images": digits.images[:2]}, DESCRIPTORS, Context())
    assert all(np.isfinite(values).all() for values in measured.values())


def test_unknown_evidence_is_named(digits):
    with pytest.raises(ValueError, match="needs the evidence 'colour': register it in"):
        fit_and_measure(KEY, {"images": digits.images[:5]}, ["colour"], Context())

"""The pixel baselines on real digits, against brute force."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from e3jax.methods import METHODS
from e3jax.methods.pixels import PIXELS
from e3jax.training.method import Evaluated


@pytest.fixture(scope="module")
def images():
    """100 handwritten zeros and, behind them, a two, a three and a five: uint8 [103, 8, 8, 1]."""
    digits = load_digits()
    zeros = digits.images[digits.target == 0][:100]
    foreign = [digits.images[digits.target == digit][0] for digit in (2, 3, 5)]
    return (np.concatenate([zeros, foreign]) * (255 / 16)).astype(np.uint8)[..., None]


def score(images, method, seed=0):
    scores = METHODS[method].scores[method](Evaluated(jax.random.key(seed), images))
    assert scores.shape == (len(images),)
    return scores


@pytest.mark.parametrize("method", [method.name for method in PIXELS])
def test_planted_foreign_images_have_the_three_smallest_scores(images, method):
    scores = score(images, method)
    assert set(np.argsort(scores)[:3]) == {100, 101, 102}
    assert (scores < 0).all()


@pytest.mark.parametrize("n", [103, 6])
def test_knn_is_minus_the_mean_distance_to_the_nearest_5_percent_of_the_others(images, n):
    x = images[:n].reshape(n, -1) / 255
    distances = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : {103: 6, 6: 1}[n]]
    np.testing.assert_allclose(score(images[:n], "pixel-knn"), -nearest.mean(1), rtol=1e-4)


def test_pca_is_minus_the_energy_outside_the_components_of_70_percent(images):
    x = images.reshape(len(images), -1) / 255
    centred = x - x.mean(0)
    _, spectrum, components = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(spectrum**2) / np.sum(spectrum**2)
    kept = int(np.sum(share < 0.7)) + 1
    assert 2 <= kept < 20 and share[kept - 1] > 0.7 > share[kept - 2]
    inside = centred @ components[:kept].T
    expected = np.square(centred).sum(1) - np.square(inside).sum(1)
    np.testing.assert_allclose(score(images, "pixel-pca"), -expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [method.name for method in PIXELS])
def test_the_same_key_gives_the_same_scores(images, method):
    np.testing.assert_array_equal(score(images, method, seed=3), score(images, method, seed=3))


@pytest.mark.parametrize(
    ("method", "depends"), [("pixel-if", True), ("pixel-knn", False), ("pixel-pca", False)]
)
def test_only_the_isolation_forest_depends_on_the_key(images, method, depends):
    assert np.array_equal(score(images, method), score(images, method, seed=1)) != depends


@pytest.mark.parametrize("method", ["pixel-knn", "pixel-pca"])
def test_scores_follow_their_images_through_any_order(images, method):
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_allclose(
        score(images[order], method), score(images, method)[order], rtol=1e-4, atol=1e-5
    )

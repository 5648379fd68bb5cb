"""The contaminated set: its size, its randomness, and one sentence per bad argument."""

import hashlib
import itertools

import numpy as np
import pytest

from e3jax.datasets import content_order
from e3jax.datasets.contamination import contaminate, count_outliers
from e3jax.errors import InputError

# Outliers per ratio for 500 inliers.
OUTLIERS = {0.05: 26, 0.1: 55, 0.15: 88, 0.2: 125, 0.25: 166, 0.005: 2, 0.5: 500}


def random_images(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 1), dtype=np.uint8)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def pool():
    """5,000 distinct small images, 500 of each of 10 classes."""
    return random_images(5000, side=4), np.arange(5000) % 10


@pytest.mark.parametrize("inlier_class", [0, 9])
@pytest.mark.parametrize(("ratio", "outliers"), OUTLIERS.items())
def test_numbers_per_class_and_ratio(pool, inlier_class, ratio, outliers):
    images, labels = pool
    got = contaminate(images, labels, inlier_class, ratio, seed=0)
    assert (got.n_inliers, got.n_outliers) == (500, outliers)
    assert got.images.shape == (500 + outliers, 4, 4, 1)
    assert got.is_outlier.dtype == bool and got.is_outlier.sum() == outliers
    assert got.ids.dtype == np.int64 and len(np.unique(got.ids)) == len(got.ids)
    order = content_order(images, labels)
    np.testing.assert_array_equal(images[order][got.ids], got.images)
    np.testing.assert_array_equal(labels[order][got.ids] != inlier_class, got.is_outlier)


def test_outliers_come_from_all_other_classes_and_are_mixed_in(pool):
    images, labels = pool
    got = contaminate(images, labels, 4, 0.25, seed=0)
    drawn = labels[content_order(images, labels)][got.ids[got.is_outlier]]
    assert set(drawn) == set(range(10)) - {4}
    quarters = [part.mean() for part in np.array_split(got.is_outlier, 4)]
    assert min(quarters) > 0.15 and max(quarters) < 0.35


def test_the_number_of_outliers_is_exact_for_all_percentages():
    for percent, n_inliers in itertools.product(range(1, 51), range(1, 2000, 7)):
        exact = n_inliers * percent // (100 - percent)
        assert count_outliers(n_inliers, percent / 100) == exact


def test_the_draw_does_not_depend_on_the_order_of_the_source(pool):
    images, labels = pool
    shuffle = np.random.default_rng(1).permutation(len(images))
    first = contaminate(images, labels, 3, 0.1, seed=7)
    assert equal(first, contaminate(images[shuffle], labels[shuffle], 3, 0.1, seed=7))


def test_same_arguments_same_set_and_other_arguments_another(pool):
    base = contaminate(*pool, 3, 0.1, seed=0)
    assert equal(base, contaminate(*pool, np.int32(3), 0.1, seed=np.int64(0)))
    outliers = set(base.ids[base.is_outlier])
    for other in ((3, 0.1, 1), (3, 0.2, 0), (4, 0.1, 0)):
        got = contaminate(*pool, *other)
        assert outliers != set(got.ids[got.is_outlier])


@pytest.mark.parametrize(
    ("arguments", "digest"),
    [
        ((3, 0.1, 7), "9abdb05edc601e52"),
        ((0, 0.25, 0, 100), "a7245601abd27070"),
    ],
)
def test_published_results_can_be_drawn_again(pool, arguments, digest):
    inlier_class, ratio, seed, *limit = arguments
    got = contaminate(*pool, inlier_class, ratio, seed, max_images=limit[0] if limit else None)
    assert hashlib.sha256(got.ids.astype("<i8")).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("max_images", "ratio", "numbers"),
    [(500, 0.1, (450, 50)), (501, 0.1, (451, 50)), (20, 0.1, (18, 2)), (4, 0.5, (2, 2))]
    + [(9999, 0.1, (500, 55)), (100, 0.2, (80, 20)), (401, 0.005, (399, 2))]
    + [(400, 0.005, (398, 2))],
)
def test_max_images(pool, max_images, ratio, numbers):
    got = contaminate(*pool, 0, ratio, seed=0, max_images=max_images)
    assert (got.n_inliers, got.n_outliers) == numbers
    assert len(got.images) == sum(numbers) <= max_images


def test_a_large_set_is_cut_after_mixing(pool):
    whole = contaminate(*pool, 0, 0.25, seed=0)
    got = contaminate(*pool, 0, 0.25, seed=0, cut=400)
    np.testing.assert_array_equal(got.ids, whole.ids[:400])
    assert got.n_inliers + got.n_outliers == 400 == len(got.images)
    assert got.n_outliers == got.is_outlier.sum() and 70 < got.n_outliers < 130
    assert len(contaminate(*pool, 0, 0.25, seed=0, cut=666).images) == 666


def test_the_default_cut_is_twelve_thousand():
    labels = np.repeat([0, 1], [12_500, 3_500])
    assert len(contaminate(random_images(16_000, 2), labels, 0, 0.1, seed=0).images) == 12_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inlier_class": 10}, "no image has the inlier class 10: choose one of 0, 1"),
        ({"inlier_class": -1}, "no image has the inlier class -1"),
        ({"inlier_class": 1.5}, "inlier class is 1.5, expected integers"),
        ({"ratio": 0.0}, "outlier ratio is 0.0, expected more than 0 and at most 0.5"),
        ({"ratio": 0.51}, "outlier ratio is 0.51"),
        ({"ratio": 10}, "outlier ratio is 10"),
        ({"ratio": float("nan")}, "outlier ratio is nan"),
        ({"ratio": 0.001}, "500 inliers and 0 outliers, expected at least 2 each: increase"),
        ({"seed": -1}, "seed is -1 .* not negative"),
        ({"seed": 0.5}, "seed is 0.5 .* expected integers"),
        ({"max_images": 19}, "max_images is 19, expected at least 20"),
        ({"max_images": 0}, "max_images is 0"),
        ({"labels": np.zeros(3, int)}, "expected 5000 integers"),
        ({"labels": np.zeros(5000)}, "dtype float64"),
        ({"labels": np.where(np.arange(5000) < 4900, 0, 1)}, "544 outliers, but .* 100 images"),
        ({"labels": np.where(np.arange(5000) < 1, 0, 1)}, "has 1 inliers and 0 outliers"),
        ({"images": np.zeros((5000, 4, 4), np.float32)}, "dtype float32, expected uint8"),
    ],
)
def test_bad_arguments_are_one_sentence(pool, change, sentence):
    arguments = {"images": pool[0], "labels": pool[1], "inlier_class": 0, "ratio": 0.1, "seed": 0}
    with pytest.raises(InputError, match=sentence) as caught:
        contaminate(**(arguments | change))
    assert "\n" not in str(caught.value)

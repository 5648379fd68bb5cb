"""Likeness: copies however they are turned, groups of what is alike, neighbours that are usual."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from e3jax.collection import reading
from e3jax.report import likeness as module
from e3jax.report.likeness import likeness


def screenshots(count):
    """White pages with a bar and lines of different lengths."""
    random, pages = np.random.default_rng(0), []
    for _ in range(count):
        page = Image.new("RGB", (36, 64), "white")
        pen = ImageDraw.Draw(page)
        pen.rectangle([0, 0, 36, 6], fill=(40, 80, 160))
        for y in range(10, 62, 4):
            pen.line([2, y, 2 + int(random.integers(8, 32)), y], fill=(60, 60, 60))
        pages.append(np.asarray(page.resize((32, 32))))
    return np.stack(pages)


def like(images, is_outlier, copy_of=None):
    copy_of = np.arange(len(images)) if copy_of is None else copy_of
    return likeness(reading.thumbnails(images), copy_of, is_outlier)


def test_all_eight_ways_become_one(digits):
    ways = [
        np.rot90(flipped, turns, (1, 2))
        for flipped in (digits, digits[:, :, ::-1])
        for turns in range(4)
    ]
    expected = module.upright(digits)
    for way in ways:
        np.testing.assert_array_equal(module.upright(way), expected)
    assert len({way.tobytes() for way in ways}) == 8


def test_turned_and_flipped_pictures_are_copies_and_others_are_not(digits):
    images = digits[:30].copy()
    images[7], images[12], images[20] = images[3, ::-1], np.rot90(images[3]), images[5, :, ::-1]
    copy_of = np.arange(30)
    copy_of[25] = 24  # by what the collection knows
    found = like(images, np.arange(30) < 3, copy_of).copy_of
    expected = np.arange(30)
    expected[[7, 12]], expected[20], expected[25] = 3, 5, 24
    assert found.tolist() == expected.tolist()


def test_thirty_screenshots_are_one_group(digits):
    others = np.repeat(digits, 3, axis=-1)
    images = np.concatenate([screenshots(30), others])
    groups = like(images, np.arange(90) < 40).groups
    assert len(groups) == 80 and len(set(groups[:30])) == 1
    assert not set(groups[:30]) & set(groups[30:])


def test_neighbours_are_the_nearest_usual_pictures_each_once(digits):
    images = digits.copy()
    is_outlier = np.arange(60) < 6
    images[40] = images[41]  # a copy is shown once
    images[0] = images[50]  # and not beside itself
    found = like(images, is_outlier)
    vectors = module._vectors(np.repeat(images, 3, axis=-1))
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
    usual = np.flatnonzero(~is_outlier & (found.copy_of == np.arange(60)))
    for i, near in enumerate(found.nearest):
        others = usual[found.copy_of[usual] != found.copy_of[i]]
        expected = others[np.argsort(distances[i, others])[:3]]
        np.testing.assert_allclose(distances[i, near], distances[i, expected], rtol=1e-4)
    assert len(found.nearest) == 50 and 0 not in found.nearest


@pytest.mark.parametrize("seen", [*itertools.product([True, False], repeat=3)])
def test_pictures_that_cannot_be_seen_are_like_no_other(digits, seen):
    thumbnails = [
        t if s else b"" for t, s in zip(reading.thumbnails(digits[:3]), seen, strict=True)
    ]
    copy_of, groups, nearest = likeness(thumbnails, np.arange(3), np.array([True, False, False]))
    assert copy_of.tolist() == [0, 1, 2] and len(groups) == 3
    expected = [i for i in (1, 2) if seen[0] and seen[i]]
    assert sorted(j for j in nearest[0] if j >= 0) == expected

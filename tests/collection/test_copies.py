import io

import numpy as np
import pytest
from PIL import Image

from e3jax.collection import copies

RANDOM = np.random.default_rng(0)


def test_exact_copies_are_told_by_the_first_of_them():
    images = RANDOM.integers(0, 256, (6, 8, 8, 3), np.uint8)
    images[[3, 5]] = images[1]
    np.testing.assert_array_equal(copies.exact(images), [0, 1, 2, 1, 4, 1])
    images[3, 0, 0, 0] ^= 1
    np.testing.assert_array_equal(copies.exact(images), [0, 1, 2, 3, 4, 1])


class Counted:
    """Images as a bank has them, where each look-up takes long."""

    def __init__(self, images):
        self.images, self.count = images, 0

    def __getitem__(self, index):
        self.count += 1
        return self.images[index]


def test_a_million_copies_are_few_look_ups():
    images = Counted(np.repeat(RANDOM.integers(0, 256, (3, 2, 2, 1), np.uint8), 2000, axis=0))
    known = copies.digests(images.images)
    assert copies.exact(images, known).tolist() == np.repeat([0, 2000, 4000], 2000).tolist()
    assert images.count < 20


def test_images_of_one_digest_that_differ_are_no_copies():
    images = RANDOM.integers(0, 256, (5, 2, 2, 1), np.uint8)
    images[[2, 4]] = images[[0, 1]]
    same = np.zeros(5, np.uint64)
    np.testing.assert_array_equal(copies.exact(images, same), [0, 1, 0, 3, 4])
    assert copies.exact(images[:0]).shape == (0,)


def seen(image, side=128, **how):
    """A large picture of the image, saved as a file and read again."""
    picture = Image.fromarray(image.squeeze()).resize((128, 128)).resize((side, side))
    content = io.BytesIO()
    picture.save(content, **how)
    again = Image.open(content).resize((32, 32), reducing_gap=3)
    return np.asarray(again).reshape(image.shape)


def test_near_copies_are_the_same_picture_in_another_quality_or_size(mnist):
    images = np.stack([seen(image, format="PNG") for image in mnist.images[:60]])
    images[[20, 40]] = [seen(mnist.images[7], format="JPEG", quality=q) for q in (50, 90)]
    images[5] = seen(mnist.images[30], side=64, format="PNG")
    expected = np.arange(60)
    expected[[20, 40, 30]] = 7, 7, 5
    np.testing.assert_array_equal(copies.near(images), expected)


def test_different_digits_of_one_kind_are_no_copies(mnist):
    ones = mnist.images[mnist.labels == 1]
    np.testing.assert_array_equal(copies.near(ones), np.arange(len(ones)))


def test_faint_images_differ_by_little_and_are_no_copies():
    """Stars on a dark sky, say."""
    faint = np.uint8(RANDOM.normal(20, 1.5, (50, 16, 16, 1)).round())
    np.testing.assert_array_equal(copies.near(faint), np.arange(50))


@pytest.mark.parametrize("n", [1, 2, 500])
def test_images_that_are_all_the_same_are_copies_of_the_first(n):
    flat = np.full((n, 8, 8, 1), 77, np.uint8)
    assert copies.near(flat).max() == copies.exact(flat).max() == 0

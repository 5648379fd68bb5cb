"""ImageBank: what is taken, and one clear sentence for everything that is not."""

import numpy as np
import pytest

from e3jax.images import ImageBank, InputError, as_bank, pad_to


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def test_channel_axis_is_added_and_ids_are_numbered():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    bank = as_bank(images)
    assert isinstance(bank, ImageBank)
    assert bank.images.shape == (5, 4, 4, 1) and bank.images.dtype == np.uint8
    np.testing.assert_array_equal(bank.images[..., 0], images)
    np.testing.assert_array_equal(bank.ids, np.arange(5))
    assert bank.ids.dtype == np.int64


def test_four_axes_pass_unchanged_and_uncopied():
    images = zeros(3, 8, 8, 3)
    assert np.shares_memory(as_bank(images).images, images)


def test_lists_of_equal_images_are_stacked():
    assert as_bank([zeros(6, 6, 3), zeros(6, 6, 3)]).images.shape == (2, 6, 6, 3)


@pytest.mark.parametrize("ids", [["a.png", "b.png"], np.array([7, 3], np.int32)])
def test_ids_are_kept(ids):
    bank = as_bank(zeros(2, 4, 4), ids)
    assert list(bank.ids) == list(ids)
    assert bank.ids.dtype.kind == "U" or bank.ids.dtype == np.int64


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (zeros(32, 32), r"shape \(32, 32\), expected \[n, h, w\] or \[n, h, w, c\]: stack"),
        (zeros(2, 2, 4, 4, 1), r"expected \[n, h, w\]"),
        (zeros(4, 8, 8, dtype=np.float32), "dtype float32, expected uint8 .*: scale"),
        (zeros(4, 8, 8, dtype=bool), "dtype bool, expected uint8"),
        (zeros(0, 8, 8), r"shape \(0, 8, 8\), expected at least 2"),
        (zeros(1, 8, 8), "expected at least 2"),
        (zeros(4, 8, 8, 0), "non-empty"),
        (zeros(4, 8, 10), "8 x 10, expected square"),
        (zeros(4, 3, 32, 32), "3 x 32, expected square ones with channels last"),
        (zeros(4, 9, 9), r"9 x 9, expected an even side .* pad with pad_to\(images, 10\)"),
        ([zeros(4, 4), zeros(6, 6)], "different shapes"),
    ],
)
def test_every_complaint_is_one_sentence(images, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        as_bank(images)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[1], [0.5, 1.5], [[1, 2]]])
def test_wrong_ids(ids):
    with pytest.raises(InputError, match="expected 2 integers or strings"):
        as_bank(zeros(2, 4, 4), ids)


def test_mnist_gets_two_black_pixels_on_each_side():
    images = np.full((3, 28, 28, 1), 255, np.uint8)
    padded = pad_to(images, 32)
    assert padded.shape == (3, 32, 32, 1) and padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[:, 2:30, 2:30], images)
    assert padded.sum() == images.sum(dtype=int)


def test_padding_to_the_same_side_changes_nothing_and_odd_margins_end_longer():
    images = np.full((2, 5, 5, 3), 9, np.uint8)
    np.testing.assert_array_equal(pad_to(images, 5), images)
    np.testing.assert_array_equal(pad_to(images, 8)[:, 1:6, 1:6], images)


@pytest.mark.parametrize("images", [zeros(2, 28, 28), zeros(2, 40, 40, 1)])
def test_padding_what_does_not_fit(images):
    with pytest.raises(InputError, match="with h, w <= 32"):
        pad_to(images, 32)

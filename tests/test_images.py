"""Arrays of images: what is accepted, what becomes of it, and one sentence for everything else."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.errors import InputError
from e3jax.images import FITS, as_bank, pad_to, resize, to_uint8, to_unit, usual_range


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def test_channel_axis_is_added_and_ids_are_numbered():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    bank = as_bank(images)
    np.testing.assert_array_equal(bank.images, images[..., None])
    np.testing.assert_array_equal(bank.ids, np.arange(5))
    assert bank.images.dtype == np.uint8 and bank.ids.dtype == np.int64


def test_four_axes_pass_unchanged_and_uncopied_and_lists_are_stacked():
    images = zeros(3, 8, 8, 3)
    assert np.shares_memory(as_bank(images).images, images)
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
        (zeros(4, 8, 10), r"\(4, 8, 10\), expected square ones"),
        (zeros(4, 3, 32, 32), r"\(4, 3, 32, 32\), expected square ones, channels last"),
        (zeros(4, 9, 9), r"\(4, 9, 9\), expected an even side .* pad_to\(images, 10\)"),
        ([zeros(4, 4), zeros(6, 6)], "different shapes"),
    ],
)
def test_bad_arrays_are_one_sentence(images, sentence):
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


def test_unit_images_range_from_minus_one_to_one():
    unit = to_unit(jnp.asarray([0, 51, 255], jnp.uint8))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, [-1, -0.6, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("values", "value_range", "expected"),
    [
        ([0, 7, 255], None, [0, 7, 255]),
        ([False, True, True], None, [0, 255, 255]),
        ([-1.0, 0.0, 3.0], (-1, 1), [0, 128, 255]),
        (np.float16([-60000, 0, 60000]), (-60000, 60000), [0, 128, 255]),
        (np.float32([-3e38, 0, 3e38]), (-3e38, 3e38), [0, 128, 255]),
        ([5.0, 5.0, 4.0], (5, 5), [0, 0, 0]),
    ],
)
def test_arrays_of_every_dtype_become_uint8(values, value_range, expected):
    images = np.repeat(values, 16).reshape(3, 4, 4)
    got = to_uint8(images, value_range)
    assert got.dtype == np.uint8 and got.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(got[:, 0, 0, 0], expected)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (zeros(2, 4, 4, 2), r"shape \(2, 4, 4, 2\), expected \[n, h, w\], .* 3\]: stack"),
        (zeros(32, 32, 3), r"shape \(32, 32, 3\), .*: for a single image, .* give image\[None\]"),
        (zeros(32, 32, 1), r"for a single image"),
        (zeros(9, 3, 8, 8), "move channels last"),
        (zeros(9, 3072), "e3jax.E3OutlierDetector takes flattened rows"),
        (np.full((2, 4, 4), 0.5), "unknown range: give value_range"),
        (np.full((2, 4, 4), np.nan), "not finite"),
        (np.full((2, 4, 4), 256), "dtype int64, expected integers from 0 to 255"),
        (np.full((2, 4, 4), -1), "expected integers from 0 to 255"),
    ],
)
def test_what_cannot_become_uint8_is_one_sentence(images, sentence):
    with pytest.raises(InputError, match=sentence):
        to_uint8(images)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.9], (0, 1)),
        ([0.0, 1 + 2e-16], (0, 1)),
        ([-1e-7, 1 + 1e-7], (0, 1)),
        ([-0.1, 0.9], (-1, 1)),
        ([0.0, 200.0], (0, 255)),
        ([0.0, 255 + 1e-5], (0, 255)),
        ([0.0, 16.0], (0, 16)),
        ([-3.0, 9.0], (-3, 9)),
        ([0.0, np.inf], None),
        ([0, 9], None),
    ],
)
def test_the_usual_range_of_floats(values, expected):
    assert usual_range(values) == expected


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("fit", FITS)
def test_resized_arrays_keep_their_channels_and_flat_colours(c, fit):
    images = np.broadcast_to(np.uint8([40, 90, 200])[:c], (2, 20, 20, c))
    assert resize(images, 20, fit) is images
    resized = resize(images, 8, fit)
    assert resized.shape == (2, 8, 8, c) and resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, images[:, :8, :8])

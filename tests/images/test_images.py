"""Arrays of images: what is accepted, what becomes of it, and one sentence for everything else."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.choices import FITS
from e3jax.errors import InputError
from e3jax.images import checked, pad_to, resize, to_uint8, to_unit, usual_range, value_extremes


def zeros(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def test_a_channel_axis_is_added():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    np.testing.assert_array_equal(checked(images), images[..., None])


def test_four_axes_pass_unchanged_and_uncopied_and_lists_are_stacked():
    images = zeros(3, 8, 8, 3)
    assert np.shares_memory(checked(images), images)
    assert checked([zeros(6, 6, 3), zeros(6, 6, 3)]).shape == (2, 6, 6, 3)


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
        checked(images)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


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
        (zeros(2, 4, 4, 5), r"shape \(2, 4, 4, 5\), expected \[n, h, w\] or .* 1 to 4: stack"),
        (zeros(32, 32, 3), r"shape \(32, 32, 3\), .*: for a single image, .* give image\[None\]"),
        (zeros(32, 32, 1), r"for a single image"),
        (zeros(32, 32, 4), r"for a single image"),
        (zeros(9, 3, 8, 8), "move channels last"),
        (zeros(9, 3072), "e3jax.E3OutlierDetector takes flattened rows"),
        (np.full((2, 4, 4), 0.5), "unknown range: give value_range"),
        (np.full((2, 4, 4), np.nan), "not finite"),
        (np.full((2, 4, 4, 4), np.nan), "not finite"),
        (np.full((2, 4, 4, 4), 256), "dtype int64, expected integers from 0 to 255"),
        (np.full((2, 4, 4), 256), "dtype int64, expected integers from 0 to 255"),
        (np.full((2, 4, 4), -1), "expected integers from 0 to 255"),
    ],
)
def test_what_cannot_become_uint8_is_one_sentence(images, sentence):
    with pytest.raises(InputError, match=sentence):
        to_uint8(images)


@pytest.mark.parametrize(
    ("convert", "value_range"),
    [
        (np.uint8, None),
        (np.int64, None),
        (lambda x: x / 255, (0, 1)),
        (np.float16, (0, 255)),
        (lambda x: np.float32(x) / 127.5 - 1, (-1, 1)),
        (lambda x: np.concatenate([x[..., :-1] * 9.0 - 99, x[..., -1:] / 255], -1), (-99, 2196)),
    ],
)
@pytest.mark.parametrize("colour", [(60,), (200, 60, 0)])
def test_opacities_of_every_dtype_put_arrays_on_a_ground(colour, convert, value_range):
    picture = zeros(6, 6, len(colour) + 1)
    picture[:3], picture[3, 3, -1] = (*colour, 255), 51
    [got] = to_uint8(convert(picture)[None], value_range)
    assert got.dtype == np.uint8 and got.shape == (6, 6, len(colour))
    assert (got[:3] == colour).all() and (got[4:] == 255).all() and (got[3, 3] == 204).all()


def test_booleans_of_opacity_hide_or_show():
    bank = zeros(1, 3, 3, 4, dtype=bool)
    bank[0, 0], bank[0, 1, :, 3] = True, True
    assert to_uint8(bank)[0, :, 0].tolist() == [[255] * 3, [0] * 3, [255] * 3]


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
    ],
)
def test_the_usual_range_of_floats(values, expected):
    assert usual_range(np.array([values])) == expected


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (2, -1), (255, 0), (9, 5)])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda images: images[3, 4, 5:7].fill(-9999),
        lambda images: images[:, 4, 5].fill(1e6),
        lambda images: images[2:5, :9].fill(1e38),
        lambda images: np.multiply(images[1], 1000, out=images[1]),
    ],
)
def test_a_few_values_far_from_all_others_set_no_range(scale, shift, spoil):
    images = np.random.default_rng(0).random((12, 16, 16, 3), np.float32) * scale + shift
    images[-1, 0, 0], images[-1, -1, -1] = shift, scale + shift
    expected = usual_range(value_extremes(images))
    assert expected == (images.min(), images.max())
    spoil(images)
    assert usual_range(value_extremes(images)) == expected


def test_the_extremes_of_images_are_their_own_unless_a_gap_shows_isolated_ones():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 300, 300))
    outer = np.stack([images.min(axis=(1, 2)), images.max(axis=(1, 2))], axis=1)
    np.testing.assert_array_equal(value_extremes(images), outer)
    images[1:, 7, :9] = 1e3
    np.testing.assert_array_equal(value_extremes(images)[:, 0], outer[:, 0])
    assert (value_extremes(images)[1:, 1] <= outer[1:, 1]).all()
    images[2, :9], images[3, 0, 0] = 1e3, np.nan  # 3 % are a part of the image
    low, high = value_extremes(images)[2:4].T
    assert high[0] == 1e3 and np.isnan([low[1], high[1]]).all()
    assert value_extremes(np.zeros((2, 1, 1))).tolist() == [[0, 0], [0, 0]]
    with_alpha = np.stack([images[:2] / 100, np.full((2, 300, 300), 50.0)], axis=-1)
    assert value_extremes(with_alpha).max() < 11


@pytest.mark.parametrize(("n", "is_counted"), [(2, True), (4, True), (5, False), (12, False)])
def test_up_to_a_quarter_of_five_images_or_more_set_no_range(n, is_counted):
    extremes = np.array([[2.0, 5.0]] * n)
    extremes[: max(n // 4, 1)] = 7, 90
    assert usual_range(extremes) == ((2, 90) if is_counted else (2, 5))
    blank = np.zeros((n, 2)) + 2
    assert usual_range(np.concatenate([blank, [[2.0, 90.0]]])) == (2, 90)


@pytest.mark.parametrize(("n", "flat"), [(4, 1), (4, 2), (9, 3), (3, 9)])
@pytest.mark.parametrize("value", [0, 65535])
def test_images_of_a_single_value_set_no_range_and_are_none_of_the_quarter(n, flat, value):
    extremes = np.array([[2.0, 5.0]] * n + [[value, value]] * flat)
    assert usual_range(extremes) == (2, 5)
    assert usual_range(np.concatenate([extremes, [[7.0, 90.0]]])) == ((2, 5 if n > 3 else 90))


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("fit", FITS)
def test_resized_arrays_keep_their_channels_and_flat_colours(c, fit):
    images = np.broadcast_to(np.uint8([40, 90, 200])[:c], (2, 20, 20, c))
    assert resize(images, 20, fit) is images
    resized = resize(images, 8, fit)
    assert resized.shape == (2, 8, 8, c) and resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, images[:, :8, :8])

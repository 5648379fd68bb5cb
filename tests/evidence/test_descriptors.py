import jax
import numpy as np
import pytest
from skimage.feature import hog

from e3jax.evidence import descriptors

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


@pytest.mark.parametrize(("degrees", "sector"), [(0, 0), (30, 1), (90, 3), (150, 5)])
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


def test_an_outline_is_the_shape_of_the_image_at_half_its_resolution():
    image = np.random.default_rng(0).random((32, 32, 3), np.float32)
    halved = image.reshape(16, 2, 16, 2, 3).mean((1, 3))
    np.testing.assert_allclose(descriptors.coarse(image), descriptors.shape(halved), rtol=1e-5)

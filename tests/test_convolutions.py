"""Convolutions and their gradients against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from e3jax.convolutions import conv, conv_transpose


def native_conv(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding), (padding, padding)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def native_transpose(x, kernel, stride, padding):
    low = kernel.shape[0] - 1 - padding
    return jax.lax.conv_transpose(
        x,
        kernel,
        (stride, stride),
        [(low, low + stride - 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        transpose_kernel=True,
        precision="highest",
    )


def random_arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def value_and_gradients(convolution, stride, x, kernel, dy, padding=1):
    """[forward, gradient of x, gradient of the kernel]."""
    y, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, padding), x, kernel)
    return [y, *pullback(dy)]


def assert_same(ours, native):
    for a, b in zip(ours, native, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "side"), [(8, 8), (5, 9), (6, 8)])
def test_value_and_gradients_are_those_of_the_native_convolution(batch, side, stride):
    out = (side + 2 - 3) // stride + 1
    arrays = random_arrays((batch, side, side, 3), (3, 3, 3, 5), (batch, out, out, 5))
    ours = jax.jit(functools.partial(value_and_gradients, conv, stride))(*arrays)
    native = jax.jit(functools.partial(value_and_gradients, native_conv, stride))(*arrays)
    assert_same(ours, native)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("batch", "side"), [(4, 6), (5, 7)])
def test_a_convolution_of_single_pixels_is_the_native_one(batch, side, stride):
    out = (side - 1) // stride + 1
    arrays = random_arrays((batch, side, side, 3), (1, 1, 3, 5), (batch, out, out, 5))
    both = (
        jax.jit(functools.partial(value_and_gradients, c, stride, padding=0))(*arrays)
        for c in (conv, native_conv)
    )
    assert_same(*both)


# (images, height, width, channels in, channels out): the paper's shapes, and odd ones.
@pytest.mark.parametrize(
    "shape",
    [(4, 32, 32, 64, 64), (4, 16, 16, 128, 128), (8, 8, 8, 256, 256), (3, 12, 4, 16, 24)],
)
def test_winograds_algorithm_is_the_native_convolution(shape):
    b, h, w, i, o = shape
    x, kernel, dy = random_arrays((b, h, w, i), (3, 3, i, o), (b, h, w, o))
    run = jax.jit(value_and_gradients, static_argnums=(0, 1))
    ours, native = run(conv, 1, x, kernel, dy), run(native_conv, 1, x, kernel, dy)
    for a, b in zip(ours, native, strict=True):
        # Rounding in proportion to the sums' size; tiles multiply it by about ten.
        assert np.abs(a - b).max() < 3e-5 * np.abs(b).max()


def test_winograds_algorithm_is_used_where_it_is_claimed():
    """On CPU 3 x 3 convolutions of stride 1 become batched products of 36 matrices."""
    x, kernel = random_arrays((2, 8, 8, 16), (3, 3, 16, 16))
    text = jax.jit(conv, static_argnums=(2, 3)).lower(x, kernel, 1, 1).compile().as_text()
    assert "f32[36," in text
    assert " convolution(" not in text


@pytest.mark.parametrize("channels", [3, 16])
def test_bfloat16_rounds_entries_and_not_sums(channels):
    x, kernel, dy = random_arrays((2, 8, 8, channels), (3, 3, channels, 16), (2, 8, 8, 16))
    rounded = [a.astype(jnp.bfloat16) for a in (x, kernel, dy)]
    ours = value_and_gradients(conv, 1, *rounded)
    native = value_and_gradients(native_conv, 1, *(a.astype(np.float32) for a in rounded))
    for a, b in zip(ours, native, strict=True):
        assert a.dtype == jnp.bfloat16
        # Half a unit in the last of bfloat16's 8 places, and rounding before it.
        np.testing.assert_allclose(np.float32(a), b, rtol=2.0**-8, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_the_same_inside_a_jitted_scan(stride):
    out = 8 // stride
    x, kernel, dy = random_arrays((3, 4, 8, 8, 2), (3, 3, 2, 4), (3, 4, out, out, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def scanned(convolution, x, kernel, dy):
        def step(total, x_and_dy):
            y, dx, dkernel = value_and_gradients(convolution, stride, x_and_dy[0], kernel, dy[0])
            return total + dkernel, (y, dx)

        total, (y, dx) = jax.lax.scan(step, jnp.zeros_like(kernel), (x, dy))
        return y, dx, total

    assert_same(scanned(conv, x, kernel, dy), scanned(native_conv, x, kernel, dy))


def test_gradients_are_the_same_for_a_batch_of_networks():
    x, kernel, dy = random_arrays((2, 4, 8, 8, 2), (2, 3, 3, 2, 4), (2, 4, 4, 4, 4))

    def many(convolution):
        return jax.jit(jax.vmap(functools.partial(value_and_gradients, convolution, 2)))

    assert_same(many(conv)(x, kernel, dy), many(native_conv)(x, kernel, dy))


def test_gradients_agree_with_finite_differences():
    x, kernel = random_arrays((2, 5, 5, 2), (3, 3, 2, 2))
    jax.test_util.check_grads(
        jax.jit(lambda x, kernel: conv(x, kernel, 2, 1)),
        (x, kernel),
        order=1,
        modes=["rev"],
        rtol=1e-2,
        atol=1e-2,
    )


def test_strided_convolutions_pad_one_pixel_on_every_side():
    x, kernel = random_arrays((1, 8, 8, 2), (3, 3, 2, 4))
    y = np.asarray(conv(x, kernel, 2, 1))
    assert y.shape == (1, 4, 4, 4)
    # The first pixel sees the image's corner [0:2, 0:2]; the last one its rows and columns 5 to 7.
    first = np.einsum("hwi,hwio->o", x[0, :2, :2], kernel[1:, 1:])
    last = np.einsum("hwi,hwio->o", x[0, 5:, 5:], kernel)
    np.testing.assert_allclose(y[0, 0, 0], first, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[0, 3, 3], last, rtol=1e-5, atol=1e-5)


# (images, height, width, channels in, channels out): the autoencoder's last one, and odd ones.
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 16, 16, 64, 1), (5, 7, 4, 3, 24), (3, 4, 4, 32, 16)])
def test_transposed_convolutions_and_their_gradients_are_the_native_ones(shape, stride):
    b, h, w, i, o = shape
    arrays = random_arrays((b, h, w, i), (3, 3, o, i), (b, stride * h, stride * w, o))
    run = jax.jit(value_and_gradients, static_argnums=(0, 1))
    ours, native = run(conv_transpose, stride, *arrays), run(native_transpose, stride, *arrays)
    for a, b in zip(ours, native, strict=True):
        assert np.abs(a - b).max() < 3e-6 * np.abs(b).max()


def test_a_transposed_convolution_is_the_adjoint_of_the_convolution_with_its_kernel():
    small, large, kernel = random_arrays((2, 4, 4, 5), (2, 8, 8, 3), (3, 3, 3, 5))
    forth, back = conv(large, kernel, 2, 1), conv_transpose(small, kernel, 2, 1)
    assert np.vdot(small, forth) == pytest.approx(np.vdot(back, large), rel=1e-4)


def test_transposed_convolutions_double_the_side_with_padding_1_2():
    x, kernel = random_arrays((1, 4, 4, 5), (3, 3, 2, 5))
    y = np.asarray(conv_transpose(x, kernel, 2, 1))
    assert y.shape == (1, 8, 8, 2)
    # Pixel 0 comes from the first pixel alone, pixel 7 from the last alone, pixel 1 from two.
    np.testing.assert_allclose(y[0, 0, 0], kernel[1, 1] @ x[0, 0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[0, 7, 7], kernel[2, 2] @ x[0, 3, 3], rtol=1e-4, atol=1e-5)
    between = kernel[1, 2] @ x[0, 0, 0] + kernel[1, 0] @ x[0, 0, 1]
    np.testing.assert_allclose(y[0, 0, 1], between, rtol=1e-4, atol=1e-5)

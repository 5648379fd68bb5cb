"""Convolutions and their gradients against PyTorch's, in float64."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from e3jax.networks.convolutions import conv, conv_transpose

pytestmark = pytest.mark.usefixtures("unoptimised")

# Undecorated, they are what accelerators compute.
ON_ACCELERATORS = {conv: inspect.unwrap(conv), conv_transpose: inspect.unwrap(conv_transpose)}
on_every_platform = pytest.mark.parametrize("platform", ["cpu", "accelerators"])


def random_arrays(*shapes):
    generator = np.random.default_rng(0)
    return [jnp.float32(generator.normal(size=shape)) for shape in shapes]


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(convolution, stride, x, kernel, dy):
    """[forward, gradient of x, gradient of the kernel]."""
    y, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride), x, kernel)
    return [y, *pullback(dy)]


def torchs(convolution, stride, x, kernel, dy):
    """The same by PyTorch."""
    x, kernel, dy = (torch.tensor(np.float64(a)) for a in (x, kernel, dy))
    x.requires_grad_(), kernel.requires_grad_()
    images, weight = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)
    options = {"stride": stride, "padding": len(kernel) // 2}
    if convolution is conv:
        y = functional.conv2d(images, weight, **options)
    else:
        y = functional.conv_transpose2d(images, weight, **options, output_padding=stride - 1)
    y = y.permute(0, 2, 3, 1)
    y.backward(dy)
    return [y.detach().numpy(), x.grad.numpy(), kernel.grad.numpy()]


def assert_same(ours, theirs, share=1e-6):
    """Up to rounding in proportion to the size of the sums."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < share * np.abs(b).max()


# (images, height, width, channels in, channels out, size of the kernel): few channels and more, odd
# sides, an odd number of images, pixels that no tap reads.
@on_every_platform
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(5, 9, 7, 3, 5, 3), (6, 8, 8, 7, 5, 3), (3, 9, 8, 3, 4, 5), (5, 7, 8, 3, 5, 1)]
)
def test_convolutions_and_their_gradients_are_pytorchs(shape, stride, platform):
    b, h, w, i, o, k = shape
    arrays = random_arrays((b, h, w, i), (k, k, i, o), (b, -(-h // stride), -(-w // stride), o))
    run = conv if platform == "cpu" else ON_ACCELERATORS[conv]
    assert_same(value_and_gradients(run, stride, *arrays), torchs(conv, stride, *arrays))


# (images, height, width, channels in, channels out): the paper's shapes, and odd ones.
@pytest.mark.parametrize(
    "shape",
    [(4, 16, 16, 64, 64), (8, 8, 8, 128, 256), (3, 12, 4, 16, 24)],
)
def test_winograds_algorithm_is_pytorchs_convolution(shape):
    b, h, w, i, o = shape
    arrays = random_arrays((b, h, w, i), (3, 3, i, o), (b, h, w, o))
    # Tiles multiply rounding by about ten.
    assert_same(value_and_gradients(conv, 1, *arrays), torchs(conv, 1, *arrays), 3e-5)


def test_winograds_algorithm_is_used_where_it_is_claimed():
    """On CPU 3 x 3 convolutions of stride 1 become batched products of 36 matrices."""
    x, kernel = random_arrays((2, 8, 8, 16), (3, 3, 16, 16))
    text = jax.jit(conv, static_argnums=2).lower(x, kernel, 1).compile().as_text()
    assert "f32[36," in text
    assert " convolution(" not in text


# (images, height, width, channels in, channels out): the autoencoder's last one, and odd ones.
@on_every_platform
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4, 8, 8, 64, 1, 3), (5, 7, 4, 3, 24, 3), (3, 4, 5, 6, 3, 5)])
def test_transposed_convolutions_and_their_gradients_are_pytorchs(shape, stride, platform):
    b, h, w, i, o, k = shape
    arrays = random_arrays((b, h, w, i), (k, k, o, i), (b, stride * h, stride * w, o))
    run = conv_transpose if platform == "cpu" else ON_ACCELERATORS[conv_transpose]
    theirs = torchs(conv_transpose, stride, *arrays)
    assert_same(value_and_gradients(run, stride, *arrays), theirs, 3e-6)


def test_a_transposed_convolution_is_the_adjoint_of_the_convolution_with_its_kernel():
    small, large, kernel = random_arrays((2, 4, 4, 5), (2, 8, 8, 3), (3, 3, 3, 5))
    forth, back = conv(large, kernel, 2), conv_transpose(small, kernel, 2)
    assert np.vdot(small, forth) == pytest.approx(np.vdot(back, large), rel=1e-4)


@pytest.mark.parametrize("channels", [3, 16])
def test_bfloat16_rounds_entries_and_not_sums(channels):
    x, kernel, dy = random_arrays((2, 8, 8, channels), (3, 3, channels, 16), (2, 8, 8, 16))
    rounded = [a.astype(jnp.bfloat16) for a in (x, kernel, dy)]
    ours, theirs = value_and_gradients(conv, 1, *rounded), torchs(conv, 1, *rounded)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        # Half a unit in the last of bfloat16's 8 places, and rounding before it.
        np.testing.assert_allclose(np.float32(a), b, rtol=2.0**-8, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_the_same_inside_a_jitted_scan(stride):
    out = 8 // stride
    x, kernel, dy = random_arrays((3, 4, 8, 8, 2), (3, 3, 2, 4), (3, 4, out, out, 4))

    @jax.jit
    def scanned(x, kernel, dy):
        def step(total, x_and_dy):
            x, dy = x_and_dy
            y, dx, dkernel = value_and_gradients(conv, stride, x, kernel, dy)
            return total + dkernel, (y, dx)

        total, (y, dx) = jax.lax.scan(step, jnp.zeros_like(kernel), (x, dy))
        return y, dx, total

    y, dx, dkernel = zip(
        *(torchs(conv, stride, x, kernel, dy) for x, dy in zip(x, dy, strict=True)), strict=True
    )
    assert_same(scanned(x, kernel, dy), [np.stack(y), np.stack(dx), sum(dkernel)])


def test_gradients_are_the_same_for_a_batch_of_networks():
    arrays = random_arrays((2, 4, 8, 8, 2), (2, 3, 3, 2, 4), (2, 4, 4, 4, 4))
    many = jax.vmap(functools.partial(value_and_gradients, conv, 2))
    theirs = [torchs(conv, 2, *network) for network in zip(*arrays, strict=True)]
    assert_same(many(*arrays), map(np.stack, zip(*theirs, strict=True)))

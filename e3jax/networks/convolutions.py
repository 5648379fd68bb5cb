"""Square convolutions that are as fast on a CPU as a CPU can be.

On CPUs, XLA computes convolutions well forward. But its filter gradients, and all gradients of
strided convolutions, are many times slower than the same sums written as matrix products, and they
are slower again inside ``lax.scan``, where training happens. So on CPUs

- 3 x 3 convolutions of stride 1, most of the work of a residual network, use Winograd's algorithm
  (Lavin & Gray 2016, arXiv:1509.09308), which needs a quarter of the multiplications;
- all other filter gradients are matrix products over patches ("im2col", Chellapilla et al. 2006),
  laid out for a few images at a time so that the patches stay in the cache;
- gradients of strided inputs, and transposed convolutions, are computed phase by phase as dense
  convolutions (Shi et al. 2016, arXiv:1609.07009).

Accelerators keep XLA's convolutions. Which of the two is compiled is decided per platform
(``lax.platform_dependent``), so a program can be exported from a CPU to a TPU.

Shapes: images [b, h, w, channels]; kernels [k, k, i, o] with odd k, padded by k // 2 on every side,
which is PyTorch's usual padding. ("SAME" would pad a 3 x 3 convolution of stride 2 by (0, 1).)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from e3jax.networks.patches import (
    DIMENSIONS,
    FEW_CHANNELS,
    Images,
    Kernel,
    Outputs,
    filter_gradient,
    input_gradient,
    native_conv,
    pointwise,
    sum_of_shifts,
)
from e3jax.networks.winograd import winograd, winograd_filter_gradient, winograd_fits


def _with_cpu_version(forward: Callable, backward: Callable) -> Callable:
    """Decorates a convolution ``(x, kernel, stride) -> y`` with a version of its own for CPUs.

    Args:
      forward: ``(x, kernel, stride) -> y``, the convolution on CPUs.
      backward: ``(x, kernel, stride, dy) -> (dx, dkernel)``, its gradients on CPUs.
        JAX could derive them from ``forward``, but these would be XLA's slow ones again.

    Returns:
      A decorator. Other platforms get the decorated function and XLA's gradients of it.
    """

    def decorate(native):
        @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
        @functools.wraps(native)
        def convolution(x, kernel, stride):
            return jax.lax.platform_dependent(
                x,
                kernel,
                cpu=_in_float32(lambda x, kernel: forward(x, kernel, stride)),
                default=lambda x, kernel: native(x, kernel, stride),
            )

        def gradients(stride, arrays, dy):
            def native_gradients(x, kernel, dy):
                return jax.vjp(lambda x, kernel: native(x, kernel, stride), x, kernel)[1](dy)

            return jax.lax.platform_dependent(
                *arrays,
                dy,
                cpu=_in_float32(lambda x, kernel, dy: backward(x, kernel, stride, dy)),
                default=native_gradients,
            )

        convolution.defvjp(
            lambda x, kernel, stride: (convolution(x, kernel, stride), (x, kernel)), gradients
        )
        return convolution

    return decorate


def _in_float32(function: Callable) -> Callable:
    """Computes in float32 and rounds only the results to the arguments' dtype.

    Accelerators also multiply entries of bfloat16 and sum in float32; a CPU gains nothing from
    bfloat16.
    """

    def run(*arrays):
        dtype = arrays[0].dtype
        wide = (a.astype(jnp.promote_types(dtype, jnp.float32)) for a in arrays)
        return jax.tree.map(lambda a: a.astype(dtype), function(*wide))

    return run


def _forward(x: Images, kernel: Kernel, stride: int) -> Outputs:
    if kernel.shape[0] == 1:
        return pointwise(x, kernel, stride)
    if winograd_fits(x, kernel, stride):
        return winograd(x, kernel)
    if x.shape[-1] <= FEW_CHANNELS:
        return sum_of_shifts(x, kernel, stride)
    return native_conv(x, kernel, stride, [(kernel.shape[0] // 2,) * 2] * 2)


def _backward(x: Images, kernel: Kernel, stride: int, dy: Outputs) -> tuple[Images, Kernel]:
    if winograd_fits(x, kernel, stride):
        # The input's gradient is a convolution too: with the kernel turned by 180 degrees, from
        # output to input channels.
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return winograd(dy, turned), winograd_filter_gradient(x, dy)
    dx = input_gradient(x.shape[1:3], kernel, stride, dy)
    return dx, filter_gradient(x, kernel, stride, dy)


@_with_cpu_version(_forward, _backward)
def conv(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """Square convolution, padded by k // 2 on every side.

    Where Winograd's algorithm is used, results differ from the plain sum by rounding: about 1e-5 of
    the largest entry in float32.

    Args:
      x: float [b, h, w, i].
      kernel: [k, k, i, o] of the same dtype, k odd.
      stride: step in pixels, in both directions.

    Returns:
      [b, ceil(h / stride), ceil(w / stride), o], of the same dtype.
    """
    if kernel.shape[0] == 1 and stride == 1:  # A matrix product is faster than a convolution.
        return pointwise(x, kernel, stride)
    # A strided one stays a convolution: XLA's Triton fusions abort the process where a product and
    # a convolution read the same array and the product reads only every other pixel of it
    # (openxla/xla#47381).
    return native_conv(x, kernel, stride, [(kernel.shape[0] // 2,) * 2] * 2)


def _forward_transpose(x: Outputs, kernel: Kernel, stride: int) -> Images:
    return input_gradient([stride * side for side in x.shape[1:3]], kernel, stride, x)


def _backward_transpose(
    x: Outputs, kernel: Kernel, stride: int, dy: Images
) -> tuple[Outputs, Kernel]:
    # The adjoint of the adjoint is the convolution itself; for the filter's gradient, input and
    # output change places.
    return _forward(dy, kernel, stride), filter_gradient(dy, kernel, stride, x)


@_with_cpu_version(_forward_transpose, _backward_transpose)
def conv_transpose(x: Outputs, kernel: Kernel, stride: int) -> Images:
    """Transposed convolution: the adjoint of :func:`conv` with the same kernel and stride.

    It is PyTorch's with ``padding = k // 2`` and ``output_padding = stride - 1``. For k = 3 and
    stride 2 that is a padding of (1, 2) in JAX's terms, where "SAME" would be (2, 1).

    Args:
      x: float [b, h, w, i].
      kernel: [k, k, o, i] of the same dtype, k odd.
      stride: factor by which the sides grow.

    Returns:
      [b, stride * h, stride * w, o], of the same dtype.
    """
    half = kernel.shape[0] // 2
    return jax.lax.conv_transpose(
        x,
        kernel,
        (stride, stride),
        [(half, half + stride - 1)] * 2,
        dimension_numbers=DIMENSIONS,
        transpose_kernel=True,
    )

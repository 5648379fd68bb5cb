"""Networks (Flax Linen), by name; everything outside this folder sees plain pytrees of variables.

To add a network, register one :class:`Network` in ``NETWORKS``.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from e3jax.networks.autoencoders import ConvAutoencoder, MixtureAutoencoder
from e3jax.networks.classifiers import DenseNet, ResNet, WideResNet
from e3jax.networks.layers import forward_flops

__all__ = [
    "NETWORKS",
    "ConvAutoencoder",
    "DenseNet",
    "MixtureAutoencoder",
    "Network",
    "ResNet",
    "WideResNet",
    "build",
    "check_classifier",
    "forward_flops",
]


class Network(NamedTuple):
    """A family of networks; a member's name is the family and one or more numbers.

    Attributes:
      form: how members are named, as error messages show it.
      numbers: the values that each of the numbers may have.
      make: ``(num_outputs, *numbers, dtype, axis_name) -> module``.
    """

    form: str
    numbers: tuple[range, ...]
    make: Callable[..., nn.Module]


def _autoencoder(network: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda num_outputs, latent, dtype, axis_name: network(latent, axis_name=axis_name)


# On maps of half the side it costs about as much as a WRN of half its width, and learns faster.
_STRIDED_WRN = functools.partial(WideResNet, stem=(5, 2))
_ANY, _6N_PLUS_4, _6N_PLUS_2 = range(1, 10**6), range(10, 10**6, 6), range(8, 10**6, 6)
NETWORKS = {
    "wrn": Network("wrn-DEPTH-WIDTH (DEPTH 10, 16, 22 ...)", (_6N_PLUS_4, _ANY), WideResNet),
    "pwrn": Network("pwrn-DEPTH-WIDTH (the same)", (_6N_PLUS_4, _ANY), _STRIDED_WRN),
    "resnet": Network("resnet-DEPTH (DEPTH 8, 14, 20 ...)", (_6N_PLUS_2,), ResNet),
    "densenet": Network("densenet-DEPTH (DEPTH 10, 16, 22 ...)", (_6N_PLUS_4,), DenseNet),
    "cae": Network("cae-LATENT", (_ANY,), _autoencoder(ConvAutoencoder)),
    "dagmm": Network("dagmm-LATENT", (_ANY,), _autoencoder(MixtureAutoencoder)),
}


def build(
    name: str | Callable[..., nn.Module],
    num_outputs: int,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
) -> nn.Module:
    """Builds a network by name, or one of your own.

    Args:
      name: a family of ``NETWORKS`` and its numbers. Classifiers: "wrn-DEPTH-WIDTH", e.g. the
        paper's "wrn-10-4", with DEPTH 6n + 4; "pwrn-DEPTH-WIDTH", the same with a first convolution
        of 5 x 5 and stride 2; "resnet-DEPTH", e.g. "resnet-20" and "resnet-50",
        with DEPTH 6n + 2; "densenet-DEPTH", e.g. "densenet-40", with DEPTH 6n + 4. Autoencoders:
        "cae-LATENT" and "dagmm-LATENT", e.g. the paper's "cae-256" and DAGMM's "dagmm-5", with
        LATENT entries in the code. Or a function that takes the other three arguments, e.g. a
        Linen class, and returns a module
        ``(x [b, h, w, c], train) -> (logits [b, k], representation [b, d])``; running statistics,
        if it has any, belong in the collection "batch_stats" and must be averaged over
        ``axis_name``.
      num_outputs: number of operations K; autoencoders ignore it.
      dtype: dtype of the convolutions, float32 or bfloat16; autoencoders ignore it and use float32.
      axis_name: mesh axis over which training batches are split; None if they are not.

    Returns:
      An uninitialised Linen module.

    Raises:
      ValueError: if the name is unknown.
    """
    if callable(name):
        return name(num_outputs, dtype, axis_name)
    family, *numbers = name.split("-")
    numbers = [int(number) if number.isdecimal() else 0 for number in numbers]  # 0 is never valid
    network = NETWORKS.get(family)
    if network and len(numbers) == len(network.numbers):
        if all(map(operator.contains, network.numbers, numbers)):
            return network.make(num_outputs, *numbers, dtype, axis_name)
    known = ", ".join(network.form for network in NETWORKS.values())
    raise ValueError(f"unknown network {name!r}: expected {known}, for example wrn-10-4")


def check_classifier(name: str | Callable[..., nn.Module]) -> None:
    """Raises a ValueError where :func:`build` would not return a classifier for this name."""
    if isinstance(build(name, 2), ConvAutoencoder | MixtureAutoencoder):
        raise ValueError(
            f"network {name!r} reconstructs images: choose a classifier, e.g. wrn-10-4"
        )

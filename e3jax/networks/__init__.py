"""Networks (Flax Linen); everything outside this folder sees plain pytrees of variables."""

from e3jax.networks.autoencoders import ConvAutoencoder, MixtureAutoencoder
from e3jax.networks.classifiers import DenseNet, ResNet, WideResNet, build
from e3jax.networks.layers import forward_flops

__all__ = [
    "ConvAutoencoder",
    "DenseNet",
    "MixtureAutoencoder",
    "ResNet",
    "WideResNet",
    "build",
    "forward_flops",
]

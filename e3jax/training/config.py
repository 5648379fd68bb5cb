"""How long and with what a method is trained: the paper's settings, and those for a CPU."""

import math
from collections.abc import Callable
from typing import NamedTuple

from e3jax import operations


class TrainConfig(NamedTuple):
    """What a run depends on besides its method, key and images; hashable.

    Attributes:
      network: name or function for :func:`e3jax.networks.build`.
      operations: families for :func:`e3jax.operation_set`, or a tuple of operations; "" trains on
        the images themselves (k = 1).
      optimizer: "sgd" (momentum 0.9, not Nesterov) or "adam" (0.9, 0.999, eps 1e-7).
      learning_rate: constant, or the peak of ``schedule="onecycle"``.
      schedule: "constant" or "onecycle" (cosine up over 30 % of the run, cosine down).
      weight_decay: L2 added to the gradient of every parameter, before the optimizer sees it.
      batch_size: views per step.
      steps: length of the run; None means ``epochs`` over all n * k views.
      epochs: used where ``steps`` is None, may be fractional; None means the paper's ceil(250 / k).
      precision: "float32", on every device; "tensorfloat32": factors of products rounded to it on
        accelerators (three passes of bfloat16 on a TPU); "bfloat16": convolutions of bfloat16.
    """

    network: str | Callable = "wrn-10-4"
    operations: str | tuple = "RA+IA+PR"
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 5e-4
    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    precision: str = "float32"

    @property
    def k(self) -> int:
        """Number of operations, 1 where the images themselves are trained on."""
        if isinstance(self.operations, str) and self.operations:
            return len(operations.paper_operations(self.operations))
        return len(self.operations) or 1

    def batch(self, n: int) -> int:
        """Views per step of a run over n images: a batch larger than an epoch would repeat views.

        It is a power of two then, so that collections of similar size share a program.
        """
        return min(self.batch_size, 1 << (n * self.k - 1).bit_length())

    def num_steps(self, n: int) -> int:
        """Steps of a run over n images; the last batch is filled up from a further epoch."""
        epochs = self.epochs or math.ceil(250 / self.k)
        return self.steps or math.ceil(epochs * n * self.k / self.batch(n))


def paper_config(grey: bool) -> TrainConfig:
    """The paper's training (Sec. 4.1): ceil(250 / k) epochs, so 3 for the 111 operations.

    Grey images (MNIST, Fashion-MNIST) are trained with SGD, colour ones (CIFAR-10, CIFAR-100,
    SVHN) with Adam.
    """
    return TrainConfig(optimizer="sgd" if grey else "adam")


def quick_config(edition: int = 2) -> TrainConfig:
    """The same method sized for a CPU and a few hundred images: a narrow network and few steps.

    Its constants were chosen by results on MNIST alone. The first edition has another network,
    half as many views per step and half the learning rate.
    """
    return TrainConfig(
        network={1: "wrn-10-1", 2: "pwrn-10-2"}[edition],
        optimizer="adam",
        learning_rate={1: 0.005, 2: 0.01}[edition],
        schedule="onecycle",
        batch_size={1: 64, 2: 128}[edition],
        steps=433,
    )

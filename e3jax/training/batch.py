"""What a loss is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Batch(NamedTuple):
    """The part of a step's batch that one device trains on, b views.

    Attributes:
      views: float32 [b, h, w, c], what the network is applied to, about -1 to 1.
      image_index: int32 [b], the image of each view in the bank.
      operation_index: int32 [b], the operation of each view, its pseudo label.
      all_image_index: int32 [whole b], ``image_index`` of all devices.
      factors: int32 [f, k], see :class:`e3jax.operations.OperationSet`; [0, 1] without operations.
    """

    views: jax.Array
    image_index: jax.Array
    operation_index: jax.Array
    all_image_index: jax.Array
    factors: jax.Array


Loss = Callable[[tuple, Batch, Any], tuple[jax.Array, Any]]

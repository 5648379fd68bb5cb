"""Observes inlier priority while a network is trained."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3jax import devices, networks, operations, training
from e3jax.images import to_unit
from e3jax.priority.gradients import group_gradients, magnitude
from e3jax.priority.steps import Update, gradient_of_step, updates


class ProbeSet(NamedTuple):
    """What is measured in the steps that record: always the same, so that points are comparable.

    Attributes:
      images: uint8 [v, h, w, c], the image of each view whose gradient counts in Fig. 2.
      labels: int32 [v], pseudo labels of these views.
      groups: float32 [g, v], weight of each view in each group. They say what is recorded; the
        training that is observed does not depend on them.
      data: uint8 [n, h, w, c], the images whose de facto update is recorded, over all K views.
      weights: float32 [n], of these images in the step's loss, see :func:`de_facto_update`.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    data: np.ndarray
    weights: np.ndarray


class PriorityLog(NamedTuple):
    """What a probe records in a step, before the step's update: the probe set under the last layer.

    Running statistics are used, so nothing depends on which images are measured together.

    Attributes:
      step: int32, or -1 where nothing was recorded.
      gradient_magnitude: float32 [g], see :func:`gradient_magnitude`.
      of_images: :class:`Update` of arrays [n], image by image, for the step of all of the data.
      of_views: the same view by view, in the mean over each image's views.
      loss: float32 [n], eq. 2, in nats.
    """

    step: jax.Array
    gradient_magnitude: jax.Array
    of_images: Update
    of_views: Update
    loss: jax.Array


@functools.cache
def make_probe(
    network: str | Callable, num_outputs: int, precision: str = "float32"
) -> training.Probe:
    """Builds a probe that records a :class:`PriorityLog`, for :func:`e3jax.training.fitting.fit`.

    Its ``probe_data`` is a :class:`ProbeSet` whose views and whose data are multiples of the
    devices. It serves any network whose last layer gives the logits from the representation. The
    same arguments give the same probe, so that programs are compiled once.
    """
    network = networks.build(network, num_outputs, devices.dtype(precision))

    def probe(state: training.TrainState, tables: Any, probe_set: ProbeSet) -> PriorityLog:
        def apply(_: None, pairs: tuple[jax.Array, jax.Array]) -> Any:
            views = operations.views_of(tables, to_unit(pairs[0]), pairs[1])
            return network.apply(state.variables, views, train=False)

        # Every device has all of the probe set and computes its own part of it.
        mine = probe_set._replace(groups=probe_set.groups.T)
        mine = jax.tree.map(devices.part_of_device, mine)
        pairs = (mine.images, mine.labels)
        of_groups = group_gradients(apply, None, pairs, mine.labels, mine.groups.T)
        labels = jnp.arange(num_outputs)
        # Outputs are kept: an image's gradient is measured after the sum of all of them.
        outputs = jax.lax.map(
            lambda image: apply(None, (jnp.repeat(image[None], num_outputs, 0), labels)), mine.data
        )
        images = (outputs, jnp.tile(labels, (len(mine.data), 1)))
        weights = mine.weights / probe_set.weights.sum()
        of_data = gradient_of_step(_as_they_are, None, *images, weights)
        of_groups, of_data = devices.sum_over_devices((of_groups, of_data))
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs[0], images[1]).mean(1)
        measure = functools.partial(updates, _as_they_are, None, of_data, *images, weights)
        of_views = jax.tree.map(lambda a: a.mean(1), measure(datum="view"))
        of_images, of_views, loss = devices.gather_over_devices((measure(), of_views, loss))
        return PriorityLog(state.step, magnitude(of_groups), of_images, of_views, loss)

    return probe


def _as_they_are(_: Any, outputs: Any) -> Any:
    return outputs

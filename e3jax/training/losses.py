"""Losses: ``(outputs, batch, extra) -> (losses [b], extra)``, for :class:`training.Objective`.

``outputs`` is what the network returns for the views of ``batch``, a :class:`Batch`; training
minimises the mean of ``losses`` over all devices. ``extra`` is whatever the method carries from
step to step in ``TrainState.extra``; every device holds all of it and must return the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3jax import devices
from e3jax.training import rules
from e3jax.training.batch import Batch, Loss

# Of images and operations, by their numbers modulo this: no size of a collection is a shape of a
# program. Beyond it images share a slot, and the larger the groups, the less their scores mean.
_SLOTS = 1 << 15


def surrogate_supervision(outputs: tuple, batch: Batch, extra: Any) -> tuple[jax.Array, Any]:
    """Cross-entropy of each view's pseudo label in nats (eq. 2); outputs are logits and more."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs[0], batch.operation_index)
    return losses, extra


def factored_supervision(outputs: tuple, batch: Batch, extra: Any) -> tuple[jax.Array, Any]:
    """Surrogate supervision on the operation and, besides, on each of its factors, in nats.

    The probability of a factor's value, say of a quarter turn by 90 degrees, is the sum over the
    operations that have it. So the network learns from every view what it can, e.g. how the image
    is turned although not yet how it is shifted. A factor that all operations share adds 0.
    """
    log_p = jax.nn.log_softmax(outputs[0])
    factors = batch.factors[:, batch.operation_index]
    alike = batch.factors[:, None] == factors[..., None]
    of_factors = -jax.nn.logsumexp(log_p[None], axis=-1, where=alike)
    losses, _ = surrogate_supervision(outputs, batch, extra)
    return losses + of_factors.sum(0), extra


def pretext_accuracy(outputs: tuple, batch: Batch) -> dict[str, jax.Array]:
    """A metric for :func:`surrogate_supervision`: the share of operations recognised."""
    return {"pretext_accuracy": jnp.mean(outputs[0].argmax(-1) == batch.operation_index)}


def trimmed(loss: Loss, share: float | jax.Array) -> Loss:
    """The loss of each batch but for the views of the images that were least certain so far.

    After the trimming of Wang et al. (TPAMI 2023), by which outliers disturb the training less. An
    image's certainty is a moving average of the NE of its views (eq. 6), each less what its
    operation has on average and the mean of its batch. It means as much as the network has learnt,
    so the share that is trimmed is multiplied by the mean probability of the pseudo labels (PL).

    Args:
      loss: of outputs that begin with logits; it gets no ``extra``.
      share: of a batch's views that count nothing, times PL; the others count as before.

    Returns:
      A loss whose ``extra`` starts as :func:`initial_certainty`.
    """

    def of_batch(outputs: tuple, batch: Batch, certainty: jax.Array) -> tuple[jax.Array, Any]:
        log_p = jax.lax.stop_gradient(jax.nn.log_softmax(outputs[0]))
        certain = (rules.negative_entropy, rules.pseudo_label_probability)
        of_views = [rule(log_p, batch.operation_index) for rule in certain]
        of_views.append(jnp.float32(batch.operation_index))
        ne, pl, operation = devices.gather_over_devices(of_views)
        image, operation = batch.all_image_index % _SLOTS, jnp.int32(operation) % _SLOTS
        of_images, of_operations = certainty
        centred = ne - ne.mean()
        of_images = _moved(of_images, image, centred - of_operations[operation])
        of_operations = _moved(of_operations, operation, centred)
        least = jnp.quantile(of_images[image], share * pl.mean())
        # Interpolation between equal values may round above all of them, and no view would count.
        least = jnp.minimum(least, of_images[image].max())
        counts = of_images[batch.image_index % _SLOTS] >= least
        # Where a certainty is not finite no view counts: then the loss is not finite either.
        losses = counts * loss(outputs, batch, ())[0] + 0 * least
        return losses, jnp.stack([of_images, of_operations])

    return of_batch


def _moved(averages: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
    """Moving averages [s] after a batch of values [b] for some of the slots.

    Each value moves its slot's average a tenth of the way towards it. A slot that occurs more than
    ten times takes the mean of its values, for tenths of more than ten would move it past them.
    """
    occurrences = jnp.zeros_like(averages).at[slots].add(1)[slots]
    weights = jnp.minimum(0.1, 1 / occurrences)
    return averages.at[slots].add(weights * (values - averages[slots]))


def initial_certainty(images: Any) -> np.ndarray:
    """The ``extra`` of :func:`trimmed` before the first step, float32 [2, slots]."""
    return np.zeros((2, _SLOTS), np.float32)

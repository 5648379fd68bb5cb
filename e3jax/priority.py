"""Inlier priority (Sec. 3.2 of the paper): whose loss training serves first.

Two measures, for any network given as ``apply(variables, inputs) -> (logits, representation)``
with logits [v, k] and representation [v, d], whose last layer is ``logits = representation @ kernel
+ bias``. ``inputs`` is any pytree of arrays with leading axis v, so ``apply`` may make views from
indices and hold the memory of one block of them only.

The loss of a view is the cross-entropy of its pseudo label under ``apply``. Batch normalisation
makes it depend on the views beside it if ``apply`` uses the batch's own statistics, as in training:
then a block is the batch that is meant. With running statistics it does not.

Legend: ``v`` views, ``k`` operations, ``g`` groups of views, ``d`` features, ``b`` batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3jax import devices, losses, networks, operations, training
from e3jax.images import to_unit

Apply = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


@functools.partial(jax.jit, static_argnames=("apply", "wrt", "per_operation", "block"))
@devices.in_float32
def gradient_magnitude(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: jax.Array,
    groups: jax.Array,
    *,
    wrt: tuple[str, ...] | None = None,
    per_operation: bool = False,
    block: int = 256,
) -> jax.Array:
    """Norm of each group's summed gradient, ||sum over i of groups[g, i] grad L_i|| (Fig. 2).

    A sum, not a mean: a group of twice the views pulls twice as hard (eq. 3 is about this).

    Args:
      apply: the network; compiled once for each function object, so pass the same one.
      variables: its parameters and statistics.
      inputs: pytree of arrays [v, ...].
      labels: int [v], pseudo labels.
      groups: bool or float [g, v], the weight of each view in each group.
      wrt: names that lead to a subtree of ``variables``, e.g. ("params", "Conv_0"). Default: the
        last layer's kernel and bias, by their closed form, without a backward pass.
      per_operation: instead, for every operation c, the norm with respect to the last layer's
        column c and its bias, summed over the views of operation c alone: eq. 3.
      block: views at a time, which bounds memory.

    Returns:
      float32 [g], or [g, k] with ``per_operation``; >= 0, in units of the loss (nats) a parameter.

    Raises:
      ValueError: for ``per_operation`` with ``wrt``, or shapes that do not fit.
    """
    if per_operation and wrt is not None:
        raise ValueError("per_operation is defined for the last layer: leave out wrt")
    groups = jnp.asarray(groups, jnp.float32)
    if groups.ndim != 2 or groups.shape[1:] != labels.shape:
        raise ValueError(
            f"groups must be [g, v] for labels [v], got {groups.shape}, {labels.shape}"
        )
    gradients = group_gradients(
        apply, variables, inputs, labels, groups, wrt=wrt, per_operation=per_operation, block=block
    )
    return magnitude(gradients, per_operation)


def magnitude(gradients: Any, per_operation: bool = False) -> jax.Array:
    """Norms of :func:`group_gradients`: float32 [g], or [g, k] of the last layer's columns."""
    if per_operation:
        return jnp.linalg.norm(gradients, axis=1)
    return jax.vmap(optax.tree.norm)(gradients)


@functools.partial(jax.jit, static_argnames=("apply", "wrt", "block"))
@devices.in_float32
def de_facto_update(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: jax.Array,
    *,
    wrt: tuple[str, ...] | None = None,
    block: int | None = None,
) -> jax.Array:
    """How far a step along the batch's descent direction goes along each view's own (Fig. 3).

    d_i = -grad L(X) . (-grad L_i / ||grad L_i||), with L(X) the mean loss of all views. It contains
    the view's own share ||grad L_i|| / v, which is large where the loss is.

    Args:
      apply, variables, inputs, labels, wrt: as of :func:`gradient_magnitude`. For another ``wrt``
        than the last layer every view takes a backward pass of its block.
      block: views at a time; None takes the whole batch at once, as training does.

    Returns:
      float32 [v], positive where the step reduces the view's loss, at most the norm of the mean
      gradient; 0 for a view without gradient.
    """
    block = block or len(labels)
    mean = jnp.full((1, len(labels)), 1 / len(labels))
    options = {"wrt": wrt, "block": block}
    mean = group_gradients(apply, variables, inputs, labels, mean, **options)
    mean = jax.tree.map(lambda a: a[0], mean)

    def project(inputs, labels):
        if wrt is None:
            logits, representation = apply(variables, inputs)
            return last_layer_projection(mean, representation, logits, labels)
        losses, subtree = _losses_of_subtree(apply, variables, wrt, inputs, labels)
        values, pull_back = jax.vjp(losses, subtree)

        def project_one(one):
            (gradient,) = pull_back(one)
            return _ratio(optax.tree.vdot(mean, gradient), optax.tree.norm(gradient))

        return jax.lax.map(project_one, jnp.eye(len(values), dtype=values.dtype))

    blocks, rest = _in_blocks((inputs, labels), block)
    parts = [project(*rest)] if len(rest[1]) else []
    if len(blocks[1]):
        parts.insert(0, jax.lax.map(lambda part: project(*part), blocks).reshape(-1))
    return jnp.concatenate(parts)


def group_gradients(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: jax.Array,
    groups: jax.Array,
    *,
    wrt: tuple[str, ...] | None = None,
    per_operation: bool = False,
    block: int = 256,
) -> Any:
    """The groups' summed gradients themselves, see :func:`gradient_magnitude`.

    Returns:
      float32 [g, d + 1, k], the last layer's kernel with its bias as the last row; with ``wrt`` the
      subtree with a leading axis g.
    """

    def of_block(inputs, labels, groups):
        if wrt is None:
            logits, representation = apply(variables, inputs)
            return last_layer_gradients(representation, logits, labels, groups, per_operation)
        losses, subtree = _losses_of_subtree(apply, variables, wrt, inputs, labels)
        values, pull_back = jax.vjp(losses, subtree)
        return jax.lax.map(lambda weights: pull_back(weights)[0], groups.astype(values.dtype))

    def add_block(total, part):
        inputs, labels, groups = part
        return jax.tree.map(jnp.add, total, of_block(inputs, labels, groups.T)), None

    blocks, rest = _in_blocks((inputs, labels, groups.T), block)
    if len(rest[1]):
        total = of_block(*rest[:2], rest[2].T)
    else:
        shapes = jax.eval_shape(of_block, inputs, labels, groups)
        total = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add_block, total, blocks)[0] if len(blocks[1]) else total


def last_layer_gradients(
    representation: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    groups: jax.Array,
    per_operation: bool = False,
) -> jax.Array:
    """Groups' summed gradients of the last layer: a view's is (representation, 1) x (p - one-hot).

    Args:
      representation, logits, labels: [v, d], [v, k], [v].
      groups: float [g, v].
      per_operation: count in column c the views of operation c alone (eq. 3).

    Returns:
      float32 [g, d + 1, k]; the last row is the bias.
    """
    residual = _residual(logits, labels)
    if per_operation:
        residual = residual * jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.einsum("gv,vd,vk->gdk", groups, _with_one(representation), residual)


def last_layer_projection(
    gradient: jax.Array, representation: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """A last layer's gradient [d + 1, k] projected on every view's own: float32 [v]."""
    features, residual = _with_one(representation), _residual(logits, labels)
    product = jnp.einsum("vd,dk,vk->v", features, gradient, residual)
    return _ratio(product, last_layer_norm(representation, logits, labels))


def last_layer_norm(representation: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Norm of every view's own gradient of the last layer: float32 [v]."""
    norm = functools.partial(jnp.linalg.norm, axis=-1)
    return norm(_with_one(representation)) * norm(_residual(logits, labels))


def _with_one(representation: jax.Array) -> jax.Array:
    return jnp.pad(representation, ((0, 0), (0, 1)), constant_values=1)


def _residual(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _losses_of_subtree(apply, variables, wrt, inputs, labels) -> tuple[Callable, Any]:
    """The losses [v] as a function of a subtree, and the subtree."""
    subtree = functools.reduce(lambda tree, name: tree[name], wrt, variables)

    def losses_of(subtree):
        logits, _ = apply(_replaced(variables, wrt, subtree), inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return losses_of, subtree


def _replaced(tree: Any, path: tuple[str, ...], subtree: Any) -> Any:
    if not path:
        return subtree
    return tree | {path[0]: _replaced(tree[path[0]], path[1:], subtree)}


def _in_blocks(tree: Any, block: int) -> tuple[Any, Any]:
    """Arrays [v, ...] as [v // block, block, ...], and what is left over [v % block, ...]."""
    full = len(jax.tree.leaves(tree)[0]) // block * block
    blocks = jax.tree.map(lambda a: a[:full].reshape(-1, block, *a.shape[1:]), tree)
    return blocks, jax.tree.map(lambda a: a[full:], tree)


class ProbeSet(NamedTuple):
    """Fixed views on which gradient magnitudes are recorded, so that points are comparable.

    Attributes:
      images: uint8 [v, h, w, c], the image of each view.
      labels: int32 [v], pseudo labels.
      groups: float32 [g, v], weight of each view in each group. They say what is recorded; the
        training that is observed does not depend on them.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


class PriorityLog(NamedTuple):
    """What a probe records in a step, before its update; last layer, in nats per parameter.

    Attributes:
      step: int32, or -1 where nothing was recorded.
      image: int32 [b], the batch's images: means over inliers and outliers are taken afterwards,
        so that no label comes near the training.
      loss: float32 [b], cross-entropy of each view of the batch.
      de_facto_update: float32 [b], see :func:`de_facto_update`, for the gradient of this batch.
      gradient_norm: float32 [b], norm of each view's own gradient.
      gradient_magnitude: float32 [g], see :func:`gradient_magnitude`, of the probe set's groups
        under running statistics.
    """

    step: jax.Array
    image: jax.Array
    loss: jax.Array
    de_facto_update: jax.Array
    gradient_norm: jax.Array
    gradient_magnitude: jax.Array


@functools.cache
def make_probe(
    network: str | Callable, num_outputs: int, precision: str = "float32"
) -> training.Probe:
    """Builds a probe that records a :class:`PriorityLog`, for :func:`e3jax.fitting.fit`.

    Its ``probe_data`` is a :class:`ProbeSet` whose views are a multiple of the devices. It serves
    any network whose last layer gives the logits from the representation. The same arguments give
    the same probe, so that programs are compiled once.
    """
    network = networks.build(network, num_outputs, devices.dtype(precision))

    def probe(state, batch: losses.Batch, outputs, tables, data: ProbeSet) -> PriorityLog:
        def apply(variables, pairs):
            views = operations.views_of(tables, to_unit(pairs[0]), pairs[1])
            return network.apply(variables, views, train=False)

        # Every device has all of the probe set and computes its own part of it.
        data = data._replace(groups=data.groups.T)
        data = jax.tree.map(devices.part_of_device, data)
        pairs = (data.images, data.labels)
        of_groups = group_gradients(apply, state.variables, pairs, data.labels, data.groups.T)
        logits, representation = outputs
        view = (representation, logits, batch.operation_index)
        mean = jnp.full((1, len(logits)), 1 / len(batch.all_image_index))
        of_batch = last_layer_gradients(*view, mean)[0]
        of_groups, of_batch = devices.sum_over_devices((of_groups, of_batch))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.operation_index)
        of_views = (loss, last_layer_projection(of_batch, *view), last_layer_norm(*view))
        of_views = devices.gather_over_devices(of_views)
        return PriorityLog(state.step, batch.all_image_index, *of_views, magnitude(of_groups))

    return probe

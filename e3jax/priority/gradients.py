"""Gradients that groups of views have together, and their norms (Fig. 2 of the paper).

For any network given as ``apply(variables, inputs) -> (logits, representation)``
with logits [v, k] and representation [v, d], whose last layer is ``logits = representation @ kernel
+ bias``. ``inputs`` is any pytree of arrays with leading axis v, so ``apply`` may make views from
indices and hold the memory of one block of them only.

The loss of a view is the cross-entropy of its pseudo label under ``apply``. Batch normalisation
makes it depend on the views beside it if ``apply`` uses the batch's own statistics, as in training:
then a block is the batch that is meant. With running statistics it does not.

Legend: ``v`` views, ``n`` images, ``k`` operations, ``g`` groups of views, ``d`` features.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3jax import devices
from e3jax.shapes import Float, Int, Num, Shaped

Array = jax.Array | np.ndarray
Apply = Callable[[Any, Any], tuple[jax.Array, jax.Array]]


@functools.partial(jax.jit, static_argnames=("apply", "wrt", "per_operation", "block"))
@devices.in_float32
def gradient_magnitude(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: Int[Array, " v"],
    groups: Shaped[Array, "..."],
    *,
    wrt: tuple[str, ...] | None = None,
    per_operation: bool = False,
    block: int = 256,
) -> Float[jax.Array, "g ..."]:
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
        column c and its bias, summed over only the views of operation c: eq. 3.
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


def group_gradients(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: Int[Array, " v"],
    groups: Num[Array, "g v"],
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
            return last_layer_gradients(logits, representation, labels, groups, per_operation)
        losses, subtree = losses_of_subtree(apply, variables, wrt, inputs, labels)
        values, pull_back = jax.vjp(losses, subtree)
        return jax.lax.map(lambda weights: pull_back(weights)[0], groups.astype(values.dtype))

    def add_block(total, part):
        inputs, labels, groups = part
        return jax.tree.map(jnp.add, total, of_block(inputs, labels, groups.T)), None

    blocks, rest = in_blocks((inputs, labels, groups.T), block)
    if len(rest[1]):
        total = of_block(rest[0], rest[1], rest[2].T)
    else:
        shapes = jax.eval_shape(of_block, inputs, labels, groups)
        total = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return jax.lax.scan(add_block, total, blocks)[0] if len(blocks[1]) else total


def last_layer_gradients(
    logits: Float[Array, "v k"],
    representation: Float[Array, "v d"],
    labels: Int[Array, " v"],
    groups: Num[Array, "g v"],
    per_operation: bool = False,
) -> Float[jax.Array, "g d_and_1 k"]:
    """Groups' summed gradients of the last layer: a view's is (representation, 1) x (p - one-hot).

    Args:
      logits, representation: outputs of the network.
      labels: pseudo labels.
      groups: the weight of each view in each group.
      per_operation: count in column c only the views of operation c (eq. 3).

    Returns:
      Gradients of the kernel; the last of d + 1 rows is the bias.
    """
    residual = _residual(logits, labels)
    if per_operation:
        residual = residual * jax.nn.one_hot(labels, logits.shape[-1], dtype=residual.dtype)
    groups = groups.astype(residual.dtype)
    return jnp.einsum("gv,vd,vk->gdk", groups, _with_one(representation), residual)


def _with_one(representation: Array) -> jax.Array:
    return jnp.pad(representation, ((0, 0), (0, 1)), constant_values=1)


def _residual(logits: Array, labels: Array) -> jax.Array:
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def losses_of_subtree(
    apply: Apply, variables: Any, wrt: tuple[str, ...], inputs: Any, labels: Int[Array, " v"]
) -> tuple[Callable[[Any], jax.Array], Any]:
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


def in_blocks(tree: Any, block: int) -> tuple[Any, Any]:
    """Arrays [v, ...] as [v // block, block, ...], and what is left over [v % block, ...]."""
    full = len(jax.tree.leaves(tree)[0]) // block * block
    blocks = jax.tree.map(lambda a: a[:full].reshape(-1, block, *a.shape[1:]), tree)
    return blocks, jax.tree.map(lambda a: a[full:], tree)

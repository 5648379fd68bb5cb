"""Inlier priority (Sec. 3.2 of the paper): whose loss training serves first.

Two measures, for any network given as ``apply(variables, inputs) -> (logits, representation)``
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from e3jax import devices

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


class Update(NamedTuple):
    """A step measured along each datum's own descent direction: float32 arrays of one shape.

    With the step's loss L(X) = sum over i of w_i L_i, weights that sum to 1, and -grad L_i / ||grad
    L_i|| the descent direction of datum i:

    Attributes:
      de_facto: d_i = -grad L(X) . (-grad L_i / ||grad L_i||) (Sec. 3.2 and Fig. 3 of the paper), in
        nats per unit of parameter; positive where the step reduces L_i, 0 without a gradient.
      leave_one_out: the same of the other data's loss alone, (d_i - w_i ||grad L_i||) / (1 - w_i);
        0 where there is no other.
      cosine: d_i / ||grad L(X)||, in [-1, 1].
      norm: ||grad L_i||, >= 0.
    """

    de_facto: jax.Array
    leave_one_out: jax.Array
    cosine: jax.Array
    norm: jax.Array


@functools.partial(jax.jit, static_argnames=("apply", "datum", "wrt", "block"))
@devices.in_float32
def de_facto_update(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: jax.Array,
    *,
    datum: str = "image",
    weights: jax.Array | None = None,
    wrt: tuple[str, ...] | None = None,
    block: int | None = 256,
) -> Update:
    """How far a step goes along the descent direction of every image, or of every view (Fig. 3).

    The paper's datum is an image, whose loss L(x_i) is the mean over its views (eq. 2). A view by
    itself is a contrast: its gradient is mostly its own.

    Args:
      apply, variables: as of :func:`gradient_magnitude`.
      inputs: pytree of arrays [n, m, ...], m views of each of n images.
      labels: int [n, m], pseudo labels.
      datum: "image", whose loss is the mean over its views, or "view".
      weights: float [n], of the images in the step's loss L(X), which they are normalised for.
        Default: equal.
      wrt: as of :func:`gradient_magnitude`; for another subtree than the last layer every datum
        takes a backward pass of its block.
      block: views at a time, rounded to whole images, which bounds memory; None takes all at once.

    Returns:
      Arrays [n], or [n, m] of views.

    Raises:
      ValueError: for an unknown datum.
    """
    if datum not in ("image", "view"):
        raise ValueError(f"datum is {datum!r}, expected 'image' or 'view'")
    weights = jnp.ones(len(labels)) if weights is None else weights
    weights = weights / weights.sum()
    options = {"wrt": wrt, "block": block or labels.size}
    step = gradient_of_step(apply, variables, inputs, labels, weights, **options)
    return updates(apply, variables, step, inputs, labels, weights, datum=datum, **options)


def gradient_of_step(
    apply: Apply, variables: Any, inputs: Any, labels: jax.Array, weights: jax.Array, **options: Any
) -> Any:
    """The gradient of L(X), with ``weights`` [n] as they are; see :func:`de_facto_update`."""
    m = labels.shape[1]
    inputs, labels = jax.tree.map(_merge_axes, (inputs, labels))
    of_views = jnp.repeat(weights / m, m)[None]
    total = group_gradients(apply, variables, inputs, labels, of_views, **options)
    return jax.tree.map(lambda a: a[0], total)


def updates(
    apply: Apply,
    variables: Any,
    step: Any,
    inputs: Any,
    labels: jax.Array,
    weights: jax.Array,
    *,
    datum: str = "image",
    wrt: tuple[str, ...] | None = None,
    block: int = 256,
) -> Update:
    """Measures a step, the gradient of L(X), along each datum's direction.

    Args:
      step: [d + 1, k] of the last layer, or as the subtree ``wrt``.
      weights: float [n], each image's share in L(X).
      apply, variables, inputs, labels, datum, wrt, block: as of :func:`de_facto_update`.
    """
    n, m = labels.shape
    if datum == "view":  # an image of one view
        inputs, labels = jax.tree.map(lambda a: _merge_axes(a)[:, None], (inputs, labels))
        of_views = jnp.repeat(weights / m, m)
        found = updates(apply, variables, step, inputs, labels, of_views, wrt=wrt, block=block)
        return jax.tree.map(lambda a: a.reshape(n, m), found)

    def of_images(part):
        inputs, labels = jax.tree.map(_merge_axes, part)
        share = jnp.full((1, m), 1 / m)
        if wrt is None:
            outputs = jax.tree.map(
                lambda a: a.reshape(-1, m, *a.shape[1:]), (*apply(variables, inputs), labels)
            )
            gradients = jax.vmap(last_layer_gradients, (0, 0, 0, None))(*outputs, share)[:, 0]
            return jax.vmap(lambda g: (jnp.vdot(step, g), jnp.linalg.norm(g)))(gradients)
        losses, subtree = _losses_of_subtree(apply, variables, wrt, inputs, labels)
        values, pull_back = jax.vjp(losses, subtree)

        def of_image(of_views):
            (gradient,) = pull_back(of_views)
            return optax.tree.vdot(step, gradient), optax.tree.norm(gradient)

        n = len(part[1])
        return jax.lax.map(of_image, jnp.kron(jnp.eye(n), share).astype(values.dtype))

    blocks, rest = _in_blocks((inputs, labels), max(block // m, 1))
    parts = [of_images(rest)] if len(rest[1]) else []
    if len(blocks[1]):
        parts.insert(0, jax.tree.map(_merge_axes, jax.lax.map(of_images, blocks)))
    product, norm = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
    weights = weights.astype(norm.dtype)
    de_facto = _ratio(product, norm)
    cosine = _ratio(de_facto, optax.tree.norm(step))
    return Update(de_facto, _ratio(de_facto - weights * norm, 1 - weights), cosine, norm)


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
            outputs = apply(variables, inputs)
            return last_layer_gradients(*outputs, labels, groups, per_operation)
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
    logits: jax.Array,
    representation: jax.Array,
    labels: jax.Array,
    groups: jax.Array,
    per_operation: bool = False,
) -> jax.Array:
    """Groups' summed gradients of the last layer: a view's is (representation, 1) x (p - one-hot).

    Args:
      logits, representation, labels: [v, k], [v, d], [v].
      groups: float [g, v].
      per_operation: count in column c the views of operation c alone (eq. 3).

    Returns:
      float32 [g, d + 1, k]; the last row is the bias.
    """
    residual = _residual(logits, labels)
    if per_operation:
        residual = residual * jax.nn.one_hot(labels, logits.shape[-1], dtype=residual.dtype)
    groups = groups.astype(residual.dtype)
    return jnp.einsum("gv,vd,vk->gdk", groups, _with_one(representation), residual)


def _with_one(representation: jax.Array) -> jax.Array:
    return jnp.pad(representation, ((0, 0), (0, 1)), constant_values=1)


def _residual(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _merge_axes(a: jax.Array) -> jax.Array:
    """[n, m, ...] as [n * m, ...]."""
    return a.reshape(-1, *a.shape[2:])


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

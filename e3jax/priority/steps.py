"""How far a training step goes along the descent direction of each image or view (Fig. 3)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from e3jax import devices
from e3jax.priority.gradients import (
    Apply,
    Array,
    group_gradients,
    in_blocks,
    last_layer_gradients,
    losses_of_subtree,
)
from e3jax.shapes import Float, Int


class Update(NamedTuple):
    """A step measured along each datum's own descent direction: float32 arrays of one shape.

    With the step's loss L(X) = sum over i of w_i L_i, weights that sum to 1, and -grad L_i / ||grad
    L_i|| the descent direction of datum i:

    Attributes:
      de_facto: d_i = -grad L(X) . (-grad L_i / ||grad L_i||) (Sec. 3.2 and Fig. 3 of the paper), in
        nats per unit of parameter; positive where the step reduces L_i, 0 without a gradient.
      leave_one_out: the same of the other data's loss, (d_i - w_i ||grad L_i||) / (1 - w_i);
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
    labels: Int[Array, "n m"],
    *,
    datum: str = "image",
    weights: Float[Array, " n"] | None = None,
    wrt: tuple[str, ...] | None = None,
    block: int | None = 256,
) -> Update:
    """How far a step goes along the descent direction of every image, or of every view (Fig. 3).

    The paper's datum is an image, whose loss L(x_i) is the mean over its views (eq. 2). A view by
    itself is a contrast: its gradient is mostly its own.

    Args:
      apply, variables: see :func:`gradient_magnitude`.
      inputs: pytree of arrays [n, m, ...], m views of each of n images.
      labels: int [n, m], pseudo labels.
      datum: "image", whose loss is the mean over its views, or "view".
      weights: float [n], of the images in the step's loss L(X), which they are normalised for.
        Default: equal.
      wrt: see :func:`gradient_magnitude`; for another subtree than the last layer every datum
        takes a backward pass of its block.
      block: views at a time, rounded to whole images, which bounds memory; None takes all at once.

    Returns:
      Arrays [n], or [n, m] of views.

    Raises:
      ValueError: for an unknown datum.
    """
    if datum not in ("image", "view"):
        raise ValueError(f"datum is {datum!r}, expected 'image' or 'view'")
    shares = jnp.ones(len(labels)) if weights is None else jnp.asarray(weights)
    shares = shares / shares.sum()
    block = block or labels.size
    step = gradient_of_step(apply, variables, inputs, labels, shares, wrt=wrt, block=block)
    return updates(
        apply, variables, step, inputs, labels, shares, datum=datum, wrt=wrt, block=block
    )


def gradient_of_step(
    apply: Apply,
    variables: Any,
    inputs: Any,
    labels: Int[Array, "n m"],
    weights: Float[Array, " n"],
    *,
    wrt: tuple[str, ...] | None = None,
    block: int = 256,
) -> Any:
    """The gradient of L(X), with ``weights`` as they are; see :func:`de_facto_update`."""
    m = labels.shape[1]
    inputs, labels = jax.tree.map(_merge_axes, (inputs, labels))
    of_views = jnp.repeat(weights / m, m)[None]
    total = group_gradients(apply, variables, inputs, labels, of_views, wrt=wrt, block=block)
    return jax.tree.map(lambda a: a[0], total)


def updates(
    apply: Apply,
    variables: Any,
    step: Any,
    inputs: Any,
    labels: Int[Array, "n m"],
    weights: Float[Array, " n"],
    *,
    datum: str = "image",
    wrt: tuple[str, ...] | None = None,
    block: int = 256,
) -> Update:
    """Measures a step, the gradient of L(X), along each datum's direction.

    Args:
      step: [d + 1, k] of the last layer, or as the subtree ``wrt``.
      weights: float [n], each image's share in L(X).
      apply, variables, inputs, labels, datum, wrt, block: see :func:`de_facto_update`.
    """
    n, m = labels.shape
    if datum == "view":  # an image of one view
        inputs, labels = jax.tree.map(lambda a: _merge_axes(a)[:, None], (inputs, labels))
        of_views = jnp.repeat(weights / m, m)
        update = updates(apply, variables, step, inputs, labels, of_views, wrt=wrt, block=block)
        return jax.tree.map(lambda a: a.reshape(n, m), update)

    measure = functools.partial(_along_images, apply, variables, step, wrt)
    blocks, rest = in_blocks((inputs, labels), max(block // m, 1))
    parts = [measure(rest)] if len(rest[1]) else []
    if len(blocks[1]):
        parts.insert(0, jax.tree.map(_merge_axes, jax.lax.map(measure, blocks)))
    product, norm = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
    shares = jnp.asarray(weights, norm.dtype)
    de_facto = _ratio(product, norm)
    cosine = _ratio(de_facto, optax.tree.norm(step))
    return Update(de_facto, _ratio(de_facto - shares * norm, 1 - shares), cosine, norm)


def _along_images(
    apply: Apply, variables: Any, step: Any, wrt: tuple[str, ...] | None, images: tuple[Any, Array]
) -> tuple[Float[jax.Array, " n"], Float[jax.Array, " n"]]:
    """The products of a step with images' gradients, and the norms of these gradients.

    ``images`` are the views' inputs [n, m, ...] and pseudo labels [n, m], all evaluated at once.
    """
    n, m = images[1].shape
    inputs, labels = jax.tree.map(_merge_axes, images)
    share = jnp.full((1, m), 1 / m)
    if wrt is None:
        logits, representation = apply(variables, inputs)
        logits, representation, labels = (
            a.reshape(n, m, *a.shape[1:]) for a in (logits, representation, labels)
        )
        of_image = jax.vmap(last_layer_gradients, (0, 0, 0, None))
        gradients = of_image(logits, representation, labels, share)[:, 0]
        return jax.vmap(lambda g: (jnp.vdot(step, g), jnp.linalg.norm(g)))(gradients)
    losses, subtree = losses_of_subtree(apply, variables, wrt, inputs, labels)
    values, pull_back = jax.vjp(losses, subtree)

    def along_gradient(of_views: jax.Array) -> tuple[Any, Any]:
        (gradient,) = pull_back(of_views)
        return optax.tree.vdot(step, gradient), optax.tree.norm(gradient)

    return jax.lax.map(along_gradient, jnp.kron(jnp.eye(n), share).astype(values.dtype))


def _merge_axes(a: jax.Array) -> jax.Array:
    """[n, m, ...] as [n * m, ...]."""
    return a.reshape(-1, *a.shape[2:])


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

"""Views: images under operations, as gathers or as products of matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from e3jax.operations.rotations import PAD, TAPS
from e3jax.operations.tables import OperationSet
from e3jax.shapes import Float, Float32, Int

Images = jax.Array | np.ndarray
_PRECISION = "jax_default_matmul_precision"


def apply_operation(
    operations: OperationSet, image: Images, label: ArrayLike
) -> Float[jax.Array, "h w c"]:
    """Makes one view: operation ``label`` applied to one image.

    Args:
      operations: compiled for the image's side.
      image: float [h, w, c] in [-1, 1].
      label: int scalar in [0, k), the pseudo label; may be traced.

    Returns:
      float [h, w, c], of the image's dtype.

    Raises:
      ValueError: if the image is not [side, side, c] or not floating.
    """
    side = operations.side
    _check_images(operations, image[None])
    channels = image.shape[-1]
    pixels = image.reshape(-1, channels)[operations.gather[label]].reshape(image.shape)
    rotation = operations.rotation[label]
    prefilter = operations.prefilter.astype(np.promote_types(image.dtype, np.float32))
    wide = pixels.astype(prefilter.dtype)
    coefficients = jnp.einsum("ij,jkc,lk->ilc", prefilter, wide, prefilter, precision="highest")
    source = jnp.where(rotation > 0, coefficients.astype(image.dtype), pixels)
    source = jnp.pad(source, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="reflect")
    width = side + 2 * PAD
    source = source.reshape(width * width, channels)
    tap, row_weight = operations.tap[rotation], operations.row_weight[rotation]
    column_weight = operations.column_weight[rotation]
    view = jnp.zeros((side * side, channels), image.dtype)
    for i, j in itertools.product(range(TAPS), range(TAPS)):
        weight = row_weight[:, i] * column_weight[:, j]
        view += weight[:, None].astype(image.dtype) * source[tap + (i * width + j)]
    return view.reshape(image.shape)


def _check_images(operations: OperationSet, images: Images) -> None:
    side = operations.side
    if images.ndim != 4 or images.shape[1:3] != (side, side):
        raise ValueError(
            f"expected an image [{side}, {side}, c] for these operations, got {images.shape[1:]}: "
            "resize the image or compile the operations for its side"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected floating values in [-1, 1], got {images.dtype}: scale the image"
        )


@jax.jit
@jax.named_scope("all_views")
def all_views(operations: OperationSet, images: Images) -> Float[jax.Array, "n k h w c"]:
    """Makes all views of all images on the device.

    Args:
      operations: compiled for the images' side.
      images: float [n, h, w, c] in [-1, 1].

    Returns:
      float [n, k, h, w, c], of the images' dtype.

    Raises:
      ValueError: if the images are not [n, side, side, c] or not floating.
    """
    _check_images(operations, images)

    def by_gathers(operations, images):
        labels = jnp.arange(len(operations))
        views = jax.vmap(apply_operation, in_axes=(None, None, 0))
        return jax.vmap(views, in_axes=(None, 0, None))(operations, images, labels)

    return jax.lax.platform_dependent(
        operations, images, tpu=_all_views_by_products, default=by_gathers
    )


@jax.named_scope("views_of")
def views_of(
    operations: OperationSet, images: Images, labels: Int[Images, " b"]
) -> Float[jax.Array, "b h w c"]:
    """Makes one view of each image.

    On a TPU, views are as exact as JAX's default matmul precision; float32 if none is set.

    Args:
      operations: compiled for the images' side.
      images: float [b, h, w, c] in [-1, 1].
      labels: int [b] in [0, k), the pseudo label of each view.

    Returns:
      float [b, h, w, c], of the images' dtype.

    Raises:
      ValueError: if the images are not [b, side, side, c] or not floating.
    """
    _check_images(operations, images)
    return jax.lax.platform_dependent(
        operations,
        images,
        labels,
        tpu=_views_by_products,
        default=jax.vmap(apply_operation, in_axes=(None, 0, 0)),
    )


def _views_by_products(
    operations: OperationSet, images: Float[jax.Array, "b h w c"], labels: Int[jax.Array, " b"]
) -> Float[jax.Array, "b h w c"]:
    """:func:`views_of` by matrix products only, about 50 MFLOP per view of three channels.

    Each patch is selected by two matrices of zeros and ones. Then each image is rotated by all
    angles and only its own angle is kept, because labels are not known until the program runs.
    """
    x = _select(operations, images, labels)
    if len(operations.tap) == 1:
        return x
    matrices = _rotations(operations).astype(images.dtype)
    rotated = _product("apq,bqc->bapc", matrices, x.reshape(len(x), -1, x.shape[-1]))
    rotation = operations.rotation[labels]
    which = jax.nn.one_hot(rotation - 1, len(matrices), dtype=images.dtype)
    rotated = (rotated * which[:, :, None, None]).sum(1).reshape(images.shape)
    return jnp.where(rotation[:, None, None, None] > 0, rotated, x)


def _all_views_by_products(
    operations: OperationSet, images: Float[jax.Array, "n h w c"]
) -> Float[jax.Array, "n k h w c"]:
    """:func:`all_views` by matrix products.

    Here the labels are known when the program is traced, so each view is rotated by its own angle
    alone.
    """
    n, k = len(images), len(operations)
    x = _select(operations, jnp.repeat(images, k, axis=0), jnp.tile(jnp.arange(k), n))
    x = x.reshape(n, k, -1, images.shape[-1])
    rows = np.array(operations.rotation_rows)
    groups = [np.flatnonzero(rows == row) for row in range(len(operations.tap))]
    parts = [x[:, groups[0]]]
    matrices = _rotations(operations).astype(images.dtype)
    for matrix, group in zip(matrices, groups[1:], strict=True):
        parts.append(_product("pq,nkqc->nkpc", matrix, x[:, group]))
    in_order = np.argsort(np.concatenate(groups))
    return jnp.concatenate(parts, axis=1)[:, in_order].reshape(n, k, *images.shape[1:])


def _select(
    operations: OperationSet, images: Float[jax.Array, "b h w c"], labels: Int[jax.Array, " b"]
) -> Float[jax.Array, "b h w c"]:
    """What the gather of :func:`apply_operation` does, for several images."""
    b, side, _, channels = images.shape
    turned = operations.transposed[labels][:, None, None, None]
    x = jnp.where(turned, images.swapaxes(1, 2), images)
    select = jax.nn.one_hot(operations.source[labels], side, dtype=images.dtype)
    x = _product("bqir,brsc->bqisc", select[:, 0], x)
    x = _product("bqisc,bqjs->bqijc", x, select[:, 1])
    x = x.reshape(b, 2, 2, side // 2, side // 2, channels).swapaxes(2, 3)
    return x.reshape(images.shape)


def _rotations(operations: OperationSet) -> Float32[jax.Array, "rotations p p"]:
    """All rotations except row 0, each as a matrix from pixels to pixels."""
    rows, columns = operations.row_factor[1:], operations.column_factor[1:]
    return (rows[..., None] * columns[..., None, :]).reshape(*rows.shape[:2], rows.shape[1])


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    precision = getattr(jax.config, _PRECISION) or "highest"
    return jnp.einsum(formula, a, b.astype(a.dtype), precision=precision)

"""The K operations of surrogate supervision, as data.

An operation turns one image into one *view*; its position in the set is the view's pseudo label.
Operations differ by tables, not by code: every one is a pixel gather (flip, shift, quarter turns,
patch permutation) followed by a rotation whose identity is one of its cases. So a batch that mixes
operations costs the same under ``vmap`` as a batch of one, and nothing branches. On a TPU, which
pads gathers of three channels to 128, the same views are products of matrices.

Shapes: ``n`` images, ``k`` operations, ``p = side * side`` pixels, ``h = w = side``, ``c``
channels.
Values are in [-1, 1]; rotated views leave that range by spline overshoot (about -1.4 ... 1.4).
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.special

FAMILIES = ("RA", "IA", "PR")
FILLS = ("grey", "border", "mirror")
_ANGLES = (30, 60, 120, 150, 210, 240, 300, 330)
# A cubic spline reads 4 x 4 coefficients around a point; that many mirrored ones lie outside.
_TAPS = 4
_PAD = 2


class Operation(NamedTuple):
    """One operation in words, applied in the order of the fields.

    Attributes:
      flip: mirror left-right.
      shift: pixels (row, column); ``out[r, c] = in[m(r + shift[0]), m(c + shift[1])]`` where ``m``
        mirrors at the border with the edge pixel repeated.
      quarter_turns: counter-clockwise, as :func:`numpy.rot90`.
      patches: the image is cut into 2 x 2 patches, numbered row by row; output patch j is input
        patch ``patches[j]``.
      angle: degrees, counter-clockwise, as :func:`scipy.ndimage.rotate` with a cubic spline, cut to
        the image's own size.
    """

    flip: bool = False
    shift: tuple[int, int] = (0, 0)
    quarter_turns: int = 0
    patches: tuple[int, int, int, int] = (0, 1, 2, 3)
    angle: float = 0.0

    @property
    def name(self) -> str:
        """For people, e.g. ``flip·shift(-8,0)·turn90``."""
        parts = [
            "flip" if self.flip else "",
            "shift({},{})".format(*self.shift) if any(self.shift) else "",
            f"turn{90 * (self.quarter_turns % 4)}" if self.quarter_turns % 4 else "",
            "patches{}{}{}{}".format(*self.patches) if self.patches != (0, 1, 2, 3) else "",
            f"rotate{self.angle:g}" if self.angle % 360 else "",
        ]
        return "·".join(filter(None, parts)) or "identity"

    @property
    def family(self) -> str:
        """ "PR" if patches move, else "IA" if rotated by an angle, else "RA"."""
        if self.patches != (0, 1, 2, 3):
            return "PR"
        return "IA" if self.angle % 360 else "RA"


_TABLES = (
    *("gather", "rotation", "tap", "row_weight", "column_weight", "prefilter"),
    *("transposed", "source", "row_factor", "column_factor"),
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=_TABLES,
    meta_fields=("names", "families", "side", "rotation_rows"),
)
@dataclasses.dataclass(frozen=True)
class OperationSet:
    """K operations compiled for one image side; a pytree, so it passes through jit as an argument.

    Attributes:
      names, families: K strings each.
      side: the image side the tables are for.
      rotation_rows: K numbers, ``rotation`` as a constant of programs.
      gather: int32 [k, p], the input pixel each pixel is taken from.
      rotation: int32 [k], the operation's row in the tables below; row 0 rotates nothing.
      tap: int32 [a, p], top-left of the 4 x 4 window in the padded coefficient image.
      row_weight, column_weight: float32 [a, p, 4], spline weights; all 0 where the fill is grey.
      prefilter: float32 [h, h], image column -> spline coefficients.
      transposed, source: the gathers again, as selections: bool [k], whether rows are columns
        first; int32 [k, 2, 4, h / 2], the input rows and columns of each output patch.
      row_factor, column_factor: float32 [a, p, h], the rotations again, with the prefilter: output
        pixel p is ``row_factor[a, p] @ image @ column_factor[a, p]``.
    """

    names: tuple[str, ...]
    families: tuple[str, ...]
    side: int
    rotation_rows: tuple[int, ...]
    gather: jax.Array
    rotation: jax.Array
    tap: jax.Array
    row_weight: jax.Array
    column_weight: jax.Array
    prefilter: jax.Array
    transposed: jax.Array
    source: jax.Array
    row_factor: jax.Array
    column_factor: jax.Array

    def __len__(self) -> int:
        return len(self.names)


def paper_operations(name: str = "RA+IA+PR", side: int = 32) -> list[Operation]:
    """The operations of the paper in the authors' order of pseudo labels.

    Args:
      name: families joined by "+", each once, from "RA" (72), "IA" (16) and "PR" (23).
      side: image side; shifts are a quarter of it (8 at the paper's 32).

    Raises:
      ValueError: if ``name`` has an unknown or repeated family.
    """
    families = name.split("+")
    if not set(families) <= set(FAMILIES) or len(set(families)) < len(families):
        raise ValueError(
            f"operation set {name!r}: expected families from RA, IA, PR joined by '+', each once"
        )
    step = side // 4
    shifts = (0, -step, step)
    members = {
        "RA": [
            Operation(flip=flip, shift=(row, column), quarter_turns=turns)
            for flip, row, column, turns in itertools.product(
                (False, True), shifts, shifts, range(4)
            )
        ],
        "IA": [Operation(flip=flip, angle=angle) for flip in (False, True) for angle in _ANGLES],
        "PR": [Operation(patches=p) for p in list(itertools.permutations(range(4)))[1:]],
    }
    return [operation for family in families for operation in members[family]]


def operation_set(
    name: str | Sequence[Operation] = "RA+IA+PR", side: int = 32, fill: str = "grey"
) -> OperationSet:
    """Compiles operations for images of one side.

    Args:
      name: "RA", "RA+IA" or "RA+IA+PR" (the paper's 72, 88 and 111 operations), any other union of
        the families, or a sequence of :class:`Operation`.
      side: image side in pixels, even and at least 4.
      fill: what a rotation shows outside the image: "grey" (0, as the paper), "border" (the nearest
        border value) or "mirror".

    Raises:
      ValueError: for an odd or too small side, an unknown fill or family, a permutation that is
        none, an angle that is a quarter turn, fewer than two operations or two that are the same.
    """
    if side < 4 or side % 2:
        raise ValueError(f"side must be even and at least 4, got {side}: resize or pad the images")
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
    operations = paper_operations(name, side) if isinstance(name, str) else list(name)
    for operation in operations:
        _check(operation)
    gather = np.stack([_gather_table(operation, side) for operation in operations])
    angles = [0.0, *sorted({op.angle % 360 for op in operations} - {0.0})]
    tables = [_rotation_table(angle, side, fill) for angle in angles]
    tap, row_weight, column_weight = map(np.stack, zip(*tables, strict=True))
    prefilter = scipy.ndimage.spline_filter1d(np.eye(side), 3, axis=0, mode="mirror")
    top_left = np.divmod(tap, side + 2 * _PAD)
    factors = (
        _rotation_factor(*table, prefilter)
        for table in zip(top_left, (row_weight, column_weight), strict=True)
    )
    rotation = np.array([angles.index(op.angle % 360) for op in operations], np.int32)
    if len(np.unique(np.column_stack([gather, rotation]), axis=0)) < max(len(operations), 2):
        raise ValueError("an operation set needs at least two operations, all different")
    return OperationSet(
        names=tuple(op.name for op in operations),
        families=tuple(op.family for op in operations),
        side=side,
        rotation_rows=tuple(rotation.tolist()),
        **{
            name: jnp.asarray(table)
            for name, table in zip(
                _TABLES,
                (
                    *(gather, rotation, tap, row_weight, column_weight),
                    *(np.float32(prefilter), *_selections(gather, side), *factors),
                ),
                strict=True,
            )
        },
    )


def _check(operation: Operation) -> None:
    if sorted(operation.patches) != [0, 1, 2, 3] or not isinstance(operation.patches, tuple):
        raise ValueError(
            f"patches must be a permutation of (0, 1, 2, 3), a tuple, got {operation.patches}"
        )
    if operation.angle % 90 == 0 and operation.angle % 360:
        raise ValueError(f"angle {operation.angle:g} is a quarter turn: set quarter_turns instead")


def _gather_table(operation: Operation, side: int) -> np.ndarray:
    """int32 [p]: what flip, shift, quarter turns and patches do to the pixels' own numbers."""
    pixels = np.arange(side * side, dtype=np.int32).reshape(side, side)
    if operation.flip:
        pixels = pixels[:, ::-1]
    rows, columns = (_mirror_repeating_edge(np.arange(side) + t, side) for t in operation.shift)
    pixels = np.rot90(pixels[rows][:, columns], operation.quarter_turns)
    half = side // 2
    quarters = [pixels[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
    top_left, top_right, bottom_left, bottom_right = (quarters[j] for j in operation.patches)
    return np.block([[top_left, top_right], [bottom_left, bottom_right]]).ravel()


def _mirror_repeating_edge(index: np.ndarray, side: int) -> np.ndarray:
    """... 1 0 | 0 1 2 ..."""
    index = index % (2 * side)
    return np.where(index < side, index, 2 * side - 1 - index)


def _rotation_table(
    angle: float, side: int, fill: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tap and weights of one rotation, at the points that scipy.ndimage.rotate would sample.

    The canvas grows as SciPy's does and the window at floor((canvas - side) / 2) is kept.
    """
    cos, sin = scipy.special.cosdg(angle), scipy.special.sindg(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    corners = matrix @ [[0, 0, side, side], [0, side, 0, side]]
    canvas = (np.ptp(corners, axis=1) + 0.5).astype(int)
    # np.indices is [2, h, w]: the pixel's place on the grown canvas, relative to its centre.
    place = (
        np.indices((side, side)).reshape(2, -1) + ((canvas - side) // 2 - (canvas - 1) / 2)[:, None]
    )
    point = matrix @ place + (side - 1) / 2
    outside = ((point < 0) | (point > side - 1)).any(axis=0)
    if fill == "mirror":
        point = (side - 1) - np.abs((side - 1) - np.abs(point) % (2 * (side - 1)))
    point = np.clip(point, 0, side - 1)
    corner = np.floor(point).astype(np.int32)
    weights = _cubic_spline_weights(point - corner)
    if angle == 0:  # reads the pixels themselves, which are not spline coefficients
        weights = np.broadcast_to(np.float64([0, 1, 0, 0]), weights.shape)
    if fill == "grey":
        weights = np.where(outside[:, None], 0.0, weights)
    row, column = corner - 1 + _PAD
    tap = row * (side + 2 * _PAD) + column
    return tap.astype(np.int32), weights[0].astype(np.float32), weights[1].astype(np.float32)


def _selections(gather: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The gathers [k, p] as ``OperationSet.transposed`` and ``source``."""
    half = side // 2
    patches = gather.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, 4, half, half)
    # A pixel's row depends on the output's row alone, or, transposed, on its column.
    rows = patches // side
    transposed = (rows != rows[..., :1]).any((1, 2, 3))
    turned = transposed[:, None, None, None]
    patches = np.where(turned, patches.swapaxes(2, 3), patches)
    source = np.stack([patches[..., 0] // side, patches[:, :, 0] % side], axis=1)
    return transposed, np.where(turned, source[:, ::-1], source).astype(np.int32)


def _rotation_factor(first: np.ndarray, weight: np.ndarray, prefilter: np.ndarray) -> np.ndarray:
    """What one dimension of the rotations reads of an image, float32 [a, p, h].

    Args:
      first: int [a, p], the first padded coefficient that is read.
      weight: float [a, p, 4], of the four from there.
      prefilter: float [h, h]; row 0 of the rotations reads pixels instead.
    """
    side = len(prefilter)
    padded = np.pad(np.eye(side), ((_PAD, _PAD), (0, 0)), mode="reflect")
    factor = np.einsum("apt,apth->aph", weight, padded[first[..., None] + np.arange(_TAPS)])
    factor[1:] = factor[1:] @ prefilter
    return factor.astype(np.float32)


def _cubic_spline_weights(fraction: np.ndarray) -> np.ndarray:
    """Weights [..., 4] of the cubic B-spline at offsets -1, 0, 1, 2 from the pixel below."""
    t = fraction[..., None] - np.arange(-1, 3)
    near, far = 2 / 3 - t**2 + np.abs(t) ** 3 / 2, np.maximum(2 - np.abs(t), 0) ** 3 / 6
    return np.where(np.abs(t) < 1, near, far)


def apply_operation(operations: OperationSet, image: jax.Array, label: jax.Array) -> jax.Array:
    """One view: operation ``label`` applied to one image.

    Args:
      operations: compiled for the image's side.
      image: float [h, w, c].
      label: int scalar in [0, k); may be traced.

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
    coefficients = jnp.einsum(
        "ij,jkc,lk->ilc", operations.prefilter, pixels, operations.prefilter, precision="highest"
    )
    source = jnp.where(rotation > 0, coefficients, pixels).astype(image.dtype)
    source = jnp.pad(source, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)), mode="reflect")
    width = side + 2 * _PAD
    source = source.reshape(width * width, channels)
    tap, row_weight, column_weight = (
        table[rotation]
        for table in (operations.tap, operations.row_weight, operations.column_weight)
    )
    view = jnp.zeros((side * side, channels), image.dtype)
    for i, j in itertools.product(range(_TAPS), range(_TAPS)):
        weight = row_weight[:, i] * column_weight[:, j]
        view += weight[:, None].astype(image.dtype) * source[tap + (i * width + j)]
    return view.reshape(image.shape)


def _check_images(operations: OperationSet, images: jax.Array) -> None:
    side = operations.side
    if images.ndim != 4 or images.shape[1:3] != (side, side):
        raise ValueError(
            f"expected an image [{side}, {side}, c] for these operations, got {images.shape[1:]}"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"expected floating values in [-1, 1], got {images.dtype}: scale the image"
        )


@jax.jit
@jax.named_scope("all_views")
def all_views(operations: OperationSet, images: jax.Array) -> jax.Array:
    """All views of all images, made on device: float [n, h, w, c] -> [n, k, h, w, c]."""
    _check_images(operations, images)

    def by_gathers(operations, images):
        labels = jnp.arange(len(operations))
        views = jax.vmap(apply_operation, in_axes=(None, None, 0))
        return jax.vmap(views, in_axes=(None, 0, None))(operations, images, labels)

    return jax.lax.platform_dependent(
        operations, images, tpu=_all_views_by_products, default=by_gathers
    )


@jax.named_scope("views_of")
def views_of(operations: OperationSet, images: jax.Array, labels: jax.Array) -> jax.Array:
    """One view an image: float [b, h, w, c] and int [b] -> [b, h, w, c].

    On a TPU as exact as JAX's ambient matmul precision, float32 where there is none.
    """
    _check_images(operations, images)
    return jax.lax.platform_dependent(
        operations,
        images,
        labels,
        tpu=_views_by_products,
        default=jax.vmap(apply_operation, in_axes=(None, 0, 0)),
    )


def _views_by_products(operations: OperationSet, images: jax.Array, labels: jax.Array) -> jax.Array:
    """As :func:`views_of`, by products of matrices alone: about 50 MFLOP a view of three channels.

    Every patch is selected by two matrices of zeros and ones; then every image is rotated by all
    angles, and the right one is kept.
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


def _all_views_by_products(operations: OperationSet, images: jax.Array) -> jax.Array:
    """As :func:`all_views`; each view is turned by its own angle alone, which is known here."""
    n, k = len(images), len(operations)
    x = _select(operations, jnp.repeat(images, k, axis=0), jnp.tile(jnp.arange(k), n))
    x = x.reshape(n, k, -1, images.shape[-1])
    rows = np.array(operations.rotation_rows)
    groups = [np.flatnonzero(rows == row) for row in range(len(operations.tap))]
    parts = [x[:, groups[0]]]
    for matrix, group in zip(_rotations(operations), groups[1:], strict=True):
        parts.append(_product("pq,nkqc->nkpc", matrix, x[:, group]))
    in_order = np.argsort(np.concatenate(groups))
    return jnp.concatenate(parts, axis=1)[:, in_order].reshape(n, k, *images.shape[1:])


def _select(operations: OperationSet, images: jax.Array, labels: jax.Array) -> jax.Array:
    """What the gathers of :func:`apply_operation` do, [b, h, w, c] -> [b, h, w, c]."""
    b, side, _, channels = images.shape
    turned = operations.transposed[labels][:, None, None, None]
    x = jnp.where(turned, images.swapaxes(1, 2), images)
    select = jax.nn.one_hot(operations.source[labels], side, dtype=images.dtype)
    x = _product("bqir,brsc->bqisc", select[:, 0], x)
    x = _product("bqisc,bqjs->bqijc", x, select[:, 1])
    x = x.reshape(b, 2, 2, side // 2, side // 2, channels).swapaxes(2, 3)
    return x.reshape(images.shape)


def _rotations(operations: OperationSet) -> jax.Array:
    """The rotations but for that by 0, each a matrix of pixels: float32 [a - 1, p, p]."""
    rows, columns = operations.row_factor[1:], operations.column_factor[1:]
    return (rows[..., None] * columns[..., None, :]).reshape(*rows.shape[:2], rows.shape[1])


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    precision = jax.config.jax_default_matmul_precision or "highest"
    return jnp.einsum(formula, a, b.astype(a.dtype), precision=precision)

"""Samples of a collection, and batches: the images and operations that a training step shows.

Legend: ``n`` images, ``k`` operations, ``b`` views per batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import devices
from e3jax.shapes import Int32, UInt32

# Of the Feistel network, and so the number of words in a shuffle key.
ROUNDS = 8
Size = jax.Array | int


def choose(key: Any, n: int, count: int) -> Int32[np.ndarray, " {count}"]:
    """Draws ``count`` <= n of n images, each at most once; in ascending order.

    It costs the same for any n, and one program serves all: the images are the first of an epoch's
    order, see :func:`draw_batch`.
    """
    key = devices.as_key(key)
    with devices.settings():
        return np.sort(_first_images(key, np.int32(n), count))


@functools.partial(jax.jit, static_argnames="count")
def _first_images(key: jax.Array, n: jax.Array, count: int) -> jax.Array:
    shuffle_key = jax.random.bits(key, (ROUNDS,))
    return draw_batch(shuffle_key, jnp.zeros(3, jnp.int32), count, n, 1)[0]


def draw_batch(
    shuffle_key: UInt32[jax.Array, "8"],
    epoch_position: Int32[jax.Array, "3"],
    batch_size: int,
    n: Int32[jax.Array, ""],
    k: int,
) -> tuple[Int32[jax.Array, " b"], Int32[jax.Array, " b"], Int32[jax.Array, "3"]]:
    """Draws the next (image, operation) pairs of a random order that is new in every epoch.

    Each epoch visits each of the n * k pairs once. The order is a keyed bijection that is computed
    on the fly, so it needs no memory, n is no constant of the program, and n * k may exceed 2**31.

    Args:
      shuffle_key: random; the orders of all epochs follow from it.
      epoch_position: (epoch, image, operation) before shuffling; zeros at the start.
      batch_size: pairs to draw.
      n: images.
      k: operations; 1 draws only images.

    Returns:
      Image indices, operation indices, and the position after the batch.
    """
    epoch, image, operation = epoch_position
    operation = operation + jnp.arange(batch_size + 1)
    image = image + operation // k
    epoch, image, operation = epoch + image // n, image % n, operation % k
    keys = _hash(shuffle_key[None] ^ _hash(epoch.astype(jnp.uint32))[:, None])
    epoch_position = jnp.stack([epoch[-1], image[-1], operation[-1]])
    image, operation = _shuffle(
        keys[:-1],
        image[:-1].astype(jnp.uint32),
        operation[:-1].astype(jnp.uint32),
        jnp.uint32(n),
        k,
    )
    return image.astype(jnp.int32), operation.astype(jnp.int32), epoch_position


def _shuffle(
    keys: jax.Array, image: jax.Array, operation: jax.Array, n: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """A keyed bijection of Z_n x Z_k."""
    if k > 1:
        return _feistel(keys, image, operation, n, k)
    # A single operation leaves nothing to mix with, so an image's number is split into two digits.
    # They can write a few numbers from n on; from those the walk goes on until it is below n again.
    rows = jnp.sqrt(n.astype(jnp.float32)).astype(jnp.uint32) + 1
    columns = n // rows + 1

    def step(number):
        row, column = _feistel(keys, number // columns, number % columns, rows, columns)
        return row * columns + column

    def walk(number):
        return jnp.where(number < n, number, step(number))

    image = jax.lax.while_loop(lambda number: (number >= n).any(), walk, step(image))
    return image, operation


def _feistel(
    keys: jax.Array, a: jax.Array, b: jax.Array, size_a: Size, size_b: Size
) -> tuple[jax.Array, jax.Array]:
    """A bijection of Z_a x Z_b: each half in turn is shifted by a hash of the other."""
    for i in range(0, ROUNDS, 2):
        b = (b + _hash(a ^ keys[:, i]) % size_b) % size_b
        a = (a + _hash(b ^ keys[:, i + 1]) % size_a) % size_a
    return a, b


def _hash(x: UInt32[jax.Array, "..."]) -> UInt32[jax.Array, "..."]:
    """Every bit of the input reaches every bit of the output (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

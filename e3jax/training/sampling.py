"""Samples of a collection, and batches: the images and operations that a training step shows.

Legend: ``n`` images, ``k`` operations, ``b`` views per batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import devices

# Of the Feistel network, and so the number of words in a shuffle key.
ROUNDS = 8


def choose(key: jax.Array, n: int, count: int) -> np.ndarray:
    """Draws ``count`` of n images, each at most once: int32 [count], in ascending order."""
    key = devices.as_key(key)
    with devices.settings():
        return np.sort(jax.random.choice(key, n, (count,), replace=False))


def draw_batch(
    shuffle_key: jax.Array, epoch_position: jax.Array, batch_size: int, n: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the next (image, operation) pairs of a random order that is new in every epoch.

    Each epoch visits each of the n * k pairs once. The order is a keyed bijection that is computed
    on the fly, so it needs no memory, n is no constant of the program, and n * k may exceed 2**31.

    Args:
      shuffle_key: uint32 [8], random; the orders of all epochs follow from it.
      epoch_position: int32 [3], (epoch, image, operation) before shuffling; zeros at the start.
      batch_size: pairs to draw.
      n: int32, images.
      k: operations; 1 draws images alone.

    Returns:
      int32 [b] image indices, int32 [b] operation indices, and the position after the batch.
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


def _shuffle(keys, image, operation, n, k):
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


def _feistel(keys, a, b, size_a, size_b):
    """A bijection of Z_a x Z_b: each half in turn is shifted by a hash of the other."""
    for i in range(0, ROUNDS, 2):
        b = (b + _hash(a ^ keys[:, i]) % size_b) % size_b
        a = (a + _hash(b ^ keys[:, i + 1]) % size_a) % size_a
    return a, b


def _hash(x: jax.Array) -> jax.Array:
    """uint32 -> uint32; every bit of the input reaches every bit of the output (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

"""Batches: the views that a training's steps see, and where their images come from.

A batch is pairs of an image's and an operation's number, and the images. Where the bank is small,
accelerators hold a part of it each, and draw; otherwise the host draws, ahead of them.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from e3jax import devices
from e3jax.collection.lazy import AnyArray
from e3jax.shapes import Int32, UInt32
from e3jax.training import sampling


class DrawnBatches(NamedTuple):
    """The batches of several steps: arrays with a leading axis of steps, or something for each.

    Attributes:
      images: uint8 [b, h * w * c], a device's part of the batch.
      image_index: int32 [b], their numbers in the bank.
      operation_index: int32 [b], what is done with each.
      all_image_index: int32 [whole b], ``image_index`` of all devices.
      epoch_position: int32 [3], the place after the batch, see
        :func:`e3jax.training.sampling.draw_batch`.
    """

    images: Any
    image_index: Any
    operation_index: Any
    all_image_index: Any
    epoch_position: Any


# Batches of several steps are split over the devices, steps are not.
_SPLIT = PartitionSpec(None, devices.AXIS)
SPECS = DrawnBatches(
    images=_SPLIT,
    image_index=_SPLIT,
    operation_index=_SPLIT,
    all_image_index=devices.EVERYWHERE,
    epoch_position=devices.EVERYWHERE,
)

_PRECISION = "float32"  # of no product: drawing has none
_AHEAD = 2  # calls of a training whose batches are made before they are asked for


def place_bank(mesh: Mesh, images: AnyArray, on_host: bool | None = None) -> Any:
    """Puts images uint8 [n, h, w, c] where a training on a mesh draws them from.

    Args:
      mesh: the devices that train.
      images: an array, or what is indexed like one, see :class:`e3jax.collection.lazy.LazyArray`.
      on_host: leaves the images where they are. Default: on a CPU, whose memory holds them already,
        and where they would take more than a quarter of the devices' memory.

    Returns:
      The images; or rows uint8 [n and more, h * w * c] that are split over the devices. Rows are
      stored as they are; a TPU would store images of three channels in four times the space.
    """
    if on_host is None:
        on_host = devices.is_cpu(mesh) or not devices.fits(mesh, math.prod(images.shape))
    return images if on_host else devices.place_split(mesh, images)


@functools.lru_cache(256)
def place_number(mesh: Mesh, number: int) -> jax.Array:
    """An int32 on every device of a mesh, moved there once for all calls that take it."""
    return devices.place(mesh, np.int32(number))


def draw_pairs(
    shuffle_key: UInt32[jax.Array, "8"],
    position: Int32[jax.Array, "3"],
    n: Int32[jax.Array, ""],
    *,
    steps: int,
    batch_size: int,
    k: int,
) -> tuple[Int32[jax.Array, "steps b"], Int32[jax.Array, "steps b"], Int32[jax.Array, "steps 3"]]:
    """Inside a program: draws the (image, operation) pairs of several steps.

    Args:
      shuffle_key, position, n, batch_size, k: of :func:`e3jax.training.sampling.draw_batch`.
      steps: batches to draw.

    Returns:
      Image indices, operation indices, and the position after each step.
    """

    def next_batch(position: jax.Array, _: None) -> tuple[jax.Array, Any]:
        image, operation, position = sampling.draw_batch(shuffle_key, position, batch_size, n, k)
        return position, (image, operation, position)

    return jax.lax.scan(next_batch, position, length=steps)[1]


class BatchLoader:
    """Draws a training's batches and brings their images to the devices.

    Args:
      mesh: devices that each batch is split over.
      batch_size: views per step.
      k: operations; 1 draws images only.
      steps: drawn at a time, at most.
      fixed: draws ``steps`` or one, and no other number.
    """

    def __init__(self, mesh: Mesh, batch_size: int, k: int, steps: int, fixed: bool = False):
        self.mesh, self.steps, self.is_fixed = mesh, steps, fixed
        self._host = devices.host_mesh(mesh)
        in_specs = (*[devices.EVERYWHERE] * 4, devices.SPLIT)
        out_specs = (SPECS, devices.EVERYWHERE)
        self._draw_pairs, self._draw_rows = {}, {}  # by the number of steps
        for length in {steps, 1} if fixed else {steps}:
            draw = functools.partial(draw_pairs, steps=length, batch_size=batch_size, k=k)
            rows = functools.partial(_rows, draw)
            self._draw_pairs[length] = devices.on_mesh(draw, self._host, _PRECISION)
            self._draw_rows[length] = devices.on_mesh(rows, mesh, _PRECISION, in_specs, out_specs)

    def next_count(self, left: int) -> int:
        """How many of the steps that are left come next."""
        return 1 if self.is_fixed and left < self.steps else min(left, self.steps)

    def _length(self, count: int) -> int:
        """How many steps are drawn where ``count`` will be done."""
        return count if self.is_fixed else self.steps

    def batches(
        self, shuffle_key: jax.Array, position: jax.Array, bank: Any, n: int, counts: Iterable[int]
    ) -> Iterator[DrawnBatches]:
        """Yields the batches of some steps at a time.

        Args:
          shuffle_key, position: of the first step, see :func:`draw_pairs`.
          bank: :func:`place_bank`'s, of n images.
          n: images.
          counts: for each time, how many steps will be done, see :meth:`next_count`; where more are
            drawn, the next time goes on after those.
        """
        # Copies, for the state that they are part of is donated.
        if isinstance(bank, jax.Array):
            shuffle_key, position = devices.copied((shuffle_key, position))
            return self._from_devices(shuffle_key, position, bank, n, counts)
        start = devices.fetched((shuffle_key, position))
        shuffle_key, position = devices.place(self._host, start)
        return made_ahead(self._from_host(shuffle_key, position, bank, n, counts))

    def _from_host(self, shuffle_key, position, bank, n, counts) -> Iterator[DrawnBatches]:
        for count in counts:
            draw = self._draw_pairs[self._length(count)]
            drawn = draw(shuffle_key, position, place_number(self._host, n))
            image, operation, positions = devices.fetched(drawn)
            images = bank[image.ravel()].reshape(*image.shape, -1)
            batches = DrawnBatches(images, image, operation, image, positions)
            yield jax.tree.map(functools.partial(devices.place, self.mesh), batches, SPECS)
            position = devices.place(self._host, positions[count - 1])

    def _from_devices(self, shuffle_key, position, bank, n, counts) -> Iterator[DrawnBatches]:
        for count in counts:
            numbers = (place_number(self.mesh, n), place_number(self.mesh, count))
            draw = self._draw_rows[self._length(count)]
            batches, position = draw(shuffle_key, position, *numbers, bank)
            yield batches

    def program(self, shuffle_key, position, n: int, pixels: int) -> devices.Program:
        """What draws from n images of so many pixels, channels counted, split over the devices.

        The devices may be absent; ``shuffle_key`` and ``position`` may be shapes.
        """
        size = self.mesh.size
        bank = jax.ShapeDtypeStruct((-(-n // size) * size, pixels), np.uint8)
        whole = (shuffle_key, position, np.int32(n), np.int32(n))
        arguments = devices.shapes(self.mesh, whole)
        arguments = (*arguments, devices.shapes(self.mesh, bank, devices.SPLIT))
        return devices.Program(self._draw_rows[self.steps], arguments)


def _rows(
    draw: Callable, shuffle_key: jax.Array, position: jax.Array, n: Any, count: Any, bank: jax.Array
) -> tuple[DrawnBatches, jax.Array]:
    """Inside a program: batches from a split bank, and the position after ``count`` steps."""
    image, operation, positions = draw(shuffle_key, position, n)

    def of_device(_: tuple, pairs: tuple[jax.Array, jax.Array]) -> tuple[tuple, Any]:
        # Every device draws the same batch and takes its own part of it.
        indices = tuple(map(devices.part_of_device, pairs))
        return (), (devices.rows_of_split(bank, pairs[0]), *indices)

    _, parts = jax.lax.scan(of_device, (), (image, operation))
    images, image_index, operation_index = parts
    batches = DrawnBatches(images, image_index, operation_index, image, positions)
    return batches, positions[count - 1]


def made_ahead(items: Iterator) -> Iterator:
    """The items of an iterator, made in a thread while the one or two before are in use."""
    thread = ThreadPoolExecutor(1)
    try:
        waiting = collections.deque(thread.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)

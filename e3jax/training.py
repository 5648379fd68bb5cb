"""Training a network to tell operations apart: one whole run as a pure function.

Views are born inside the step from the uint8 bank by (image, operation) pairs; no array of views
and no permutation of all of them exists. Legend: ``n`` images, ``k`` operations, ``b`` batch.
"""

import collections
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from e3jax import devices, networks, operations
from e3jax.images import to_unit

_ROUNDS = 8
# Batches of a chunk are split over the devices, steps are not.
_SPLIT_BATCHES = PartitionSpec(None, devices.AXIS)
# Chunks, of two programs each, that a run is ahead of its devices. With more than 32 programs under
# way XLA's CPU client deadlocks if they span several of its devices.
_MOST_UNDER_WAY = 8


class TrainConfig(NamedTuple):
    """What a run depends on besides key and images; hashable.

    Attributes:
      network: name or function for :func:`e3jax.networks.build`.
      optimizer: "sgd" (momentum 0.9, not Nesterov) or "adam" (0.9, 0.999, eps 1e-7).
      learning_rate: constant, or the peak of ``schedule="onecycle"``.
      schedule: "constant" or "onecycle" (cosine up over 30 % of the run, cosine down).
      weight_decay: L2 added to the gradient of every parameter, before the optimizer sees it.
      batch_size: views a step.
      steps: length of the run; None means ``epochs`` over all n * k views.
      epochs: used where ``steps`` is None, may be broken; None means the paper's ceil(250 / k).
      precision: "float32", on every device; "tensorfloat32": factors of products rounded to it on
        accelerators (three passes of bfloat16 on a TPU); "bfloat16": convolutions of bfloat16.
    """

    network: str | Callable = "wrn-10-4"
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 5e-4
    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    precision: str = "float32"

    def num_steps(self, n: int, k: int) -> int:
        """Steps of a run over n images and k operations; the last batch is filled up."""
        epochs = self.epochs or math.ceil(250 / k)
        return self.steps or math.ceil(epochs * n * k / self.batch_size)


def paper_config(grey: bool) -> TrainConfig:
    """The paper's training (Sec. 4.1): ceil(250 / k) epochs, so 3 for the 111 operations.

    Grey images (MNIST, Fashion-MNIST) are trained with SGD, colour ones (CIFAR-10, CIFAR-100,
    SVHN) with Adam.
    """
    return TrainConfig(optimizer="sgd" if grey else "adam")


def quick_config() -> TrainConfig:
    """The same method sized for a CPU and a few hundred images: a narrow network and few steps.

    Its constants were chosen by results on MNIST alone.
    """
    return TrainConfig(
        network="wrn-10-1",
        optimizer="adam",
        learning_rate=0.005,
        schedule="onecycle",
        batch_size=64,
        steps=433,
    )


class TrainState(NamedTuple):
    """What the next step needs.

    Attributes:
      variables: ``{"params": ..., "batch_stats": ...}`` of the network.
      opt_state: of the optax optimizer.
      step: int32, steps done.
      cursor: int32 [3], (epoch, image, operation): the next place in the epoch's order.
      order_key: uint32 [8], random; the epochs' orders follow from it.
    """

    variables: Any
    opt_state: Any
    step: jax.Array
    cursor: jax.Array
    order_key: jax.Array


class StepLog(NamedTuple):
    """What a person wants to see: float32 [steps of a chunk], NaN where no step was left to do.

    ``probe`` is what the trainer's probe returned, every array with a leading axis of steps;
    NaN or -1 where it was not asked; () without one.
    """

    loss: jax.Array
    accuracy: jax.Array
    probe: Any = ()


class Batch(NamedTuple):
    """What a probe sees of a step; one device's part of the batch, b views, where not said.

    Attributes:
      image: int32 [whole b], index in the bank of every view of the whole batch.
      labels: int32 [b], pseudo labels.
      logits, representation: float32 [b, k] and [b, d], in training mode, before the update.
      gradient: of the mean loss of the whole batch, the tree of the parameters.
    """

    image: jax.Array
    labels: jax.Array
    logits: jax.Array
    representation: jax.Array
    gradient: Any


# (state before the update, batch, operation tables, probe_data) -> pytree of arrays, whole on every
# device: gather what is split over the devices. It watches and cannot change the run.
Probe = Callable[[TrainState, Batch, operations.OperationSet, Any], Any]


class Trainer(NamedTuple):
    """A run in two pure functions.

    Attributes:
      init: ``(key, channels) -> TrainState``.
      advance: ``(state, bank, n, total, probe_data=()) -> (TrainState, StepLog)``: a chunk of
        steps of a run of ``total``, the schedule's length; none beyond its end. ``bank`` is of
        :func:`place_bank`, of n images; ``probe_data`` is for the probe. Donates the state. The
        program that trains depends on neither ``n`` nor ``total``: they are put on the devices
        once, so further calls move nothing there.
      programs: ``(n, channels, probe_data=()) -> {name: devices.Program}``, what a run over n
        images consists of, on devices that may be absent.
      chunk: steps a call of ``advance`` does.
      mesh: devices the batch is split over.
    """

    init: Callable[..., TrainState]
    advance: Callable[..., tuple[TrainState, StepLog]]
    programs: Callable[..., dict[str, devices.Program]]
    chunk: int
    mesh: Mesh


def place_bank(mesh: Mesh, images: np.ndarray) -> jax.Array:
    """Puts images uint8 [n, h, w, c] on all devices of a mesh, as the rows uint8 [n, h * w * c].

    Rows are stored as they are; a TPU would store images of three channels in four times the space.
    """
    return devices.place(mesh, images.reshape(len(images), -1))


def learning_rate(config: TrainConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The learning rate as a function of the step (0, 1, ...) and the run's number of steps.

    One-cycle is ``optax.cosine_onecycle_schedule``, whose length would be a constant of a program.

    Raises:
      ValueError: for an unknown schedule.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return lambda step, total: jnp.float32(peak)
    if config.schedule != "onecycle":
        raise ValueError(f"schedule must be 'constant' or 'onecycle', got {config.schedule!r}")

    rates = np.cumprod(np.float32([peak / 25, 25, 1 / (25 * 1e4)]))

    def onecycle(step: jax.Array, total: jax.Array) -> jax.Array:
        top = total // 10 * 3 + total % 10 * 3 // 10  # 30 %, without leaving int32
        ends = jnp.stack([jnp.zeros_like(total), top, total])
        # By its reciprocal, as XLA divides by a constant: to the same bits as optax.
        share = (step - ends[:-1]) * (1 / jnp.maximum(ends[1:] - ends[:-1], 1))
        of_parts = rates[1:] + (rates[:-1] - rates[1:]) / 2 * (jnp.cos(jnp.pi * share) + 1)
        is_in = (ends[:-1] <= step) & (step < ends[1:])
        return is_in.dot(of_parts) + (ends[-1] <= step) * rates[-1]

    return onecycle


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizers of the paper, with L2 coupled (not AdamW).

    ``update(gradient, state, params, step=..., total=...)`` takes the step and the run's number of
    steps, which the learning rate depends on.

    Raises:
      ValueError: for an unknown optimizer or schedule.
    """
    rate = learning_rate(config)
    if config.optimizer == "sgd":
        rule = optax.trace(0.9)
    elif config.optimizer == "adam":
        rule = optax.scale_by_adam(eps=1e-7)
    else:
        raise ValueError(f"optimizer must be 'sgd' or 'adam', got {config.optimizer!r}")

    def scale(updates, state, params=None, *, step, total):
        return jax.tree.map(lambda u: -rate(step, total) * u, updates), state

    by_rate = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    # Flat: one array of all parameters is less to compile and to start than dozens of small ones.
    return optax.flatten(optax.chain(optax.add_decayed_weights(config.weight_decay), rule, by_rate))


def next_views(
    order_key: jax.Array, cursor: jax.Array, batch: int, n: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next ``batch`` (image, operation) pairs of a random order, new in every epoch.

    Every epoch visits each of the n * k pairs once. The order is a keyed bijection computed on the
    fly: a Feistel network over Z_n x Z_k (image and operation in turn are shifted by a hash of the
    other), so it needs no memory and n * k may exceed 2**31.

    Returns:
      int32 [batch] image indices, int32 [batch] pseudo labels, the cursor behind them.
    """
    epoch, image, operation = cursor
    operation = operation + jnp.arange(batch + 1)
    image = image + operation // k
    epoch, image, operation = epoch + image // n, image % n, operation % k
    keys = _hash(order_key ^ _hash(epoch.astype(jnp.uint32))[:, None])
    cursor = jnp.stack([epoch[-1], image[-1], operation[-1]])
    image, operation, n = (
        image[:-1].astype(jnp.uint32),
        operation[:-1].astype(jnp.uint32),
        jnp.uint32(n),
    )
    for i in range(0, _ROUNDS, 2):
        operation = (operation + _hash(image ^ keys[:-1, i]) % k) % k
        image = (image + _hash(operation ^ keys[:-1, i + 1]) % n) % n
    return image.astype(jnp.int32), operation.astype(jnp.int32), cursor


def _hash(x: jax.Array) -> jax.Array:
    """uint32 -> uint32, every bit of the input reaching every bit of the output (lowbias32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


class _Drawn(NamedTuple):
    """Batches of views, with a leading axis of steps where they are a chunk's.

    ``images`` uint8 [b, h * w * c] and ``labels`` int32 [b] are a device's part of the batch,
    ``index`` int32 [whole b] and ``cursor``, the place behind the batch, are whole.
    """

    images: jax.Array
    index: jax.Array
    labels: jax.Array
    cursor: jax.Array


def make_trainer(
    config: TrainConfig,
    operation_set: operations.OperationSet,
    mesh: Mesh | None = None,
    chunk: int = 50,
    probe: Probe | None = None,
    probe_every: int = 50,
) -> Trainer:
    """Builds the functions of a run; compile time is paid at the first ``advance``.

    Args:
      config: what to train and how; not its ``steps`` and ``epochs``, which ``advance`` is told.
      operation_set: the K operations, for the images' side.
      mesh: devices to split each batch over (default: all), as many of them as ``batch_size``
        divides over. It may span the processes of a job, which then make the same calls in the same
        order; what comes out of them is whole in each.
      chunk: steps a call of ``advance``.
      probe: watches the run, e.g. :func:`e3jax.priority.make_probe`; its results are in the log.
      probe_every: it is asked in steps 0, ``probe_every``, 2 ``probe_every`` ...

    Raises:
      ValueError: if the config is unknown, or the batch does not divide over a job's devices.
    """
    mesh = devices.part_for_batch(mesh or devices.device_mesh(), config.batch_size)
    k, side = len(operation_set), operation_set.side
    network = networks.build(config.network, k, devices.dtype(config.precision), devices.AXIS)
    optimizer = make_optimizer(config)

    def init(key: jax.Array, channels: int) -> TrainState:
        # A network of one's own may have no running statistics.
        variables = {"batch_stats": {}} | network.init(
            jax.random.fold_in(key, 0), jnp.zeros((1, side, side, channels)), train=False
        )
        return TrainState(
            variables=variables,
            opt_state=optimizer.init(variables["params"]),
            step=jnp.int32(0),
            cursor=jnp.zeros(3, jnp.int32),
            order_key=jax.random.bits(jax.random.fold_in(key, 1), (_ROUNDS,)),
        )

    def draw(order_key: jax.Array, cursor: jax.Array, bank: jax.Array, n: jax.Array) -> _Drawn:
        def next_batch(cursor, _):
            index, labels, cursor = next_views(order_key, cursor, config.batch_size, n, k)
            # Every device draws the same batch and takes its own part of it.
            mine = (bank[devices.part_of_device(index)], index, devices.part_of_device(labels))
            return cursor, _Drawn(*mine, cursor)

        return jax.lax.scan(next_batch, cursor, length=chunk)[1]

    def loss_fn(params, batch_stats, views, labels):
        (logits, representation), updates = network.apply(
            {"params": params, "batch_stats": batch_stats},
            views,
            train=True,
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (updates.get("batch_stats", {}), logits, representation)

    def watch(state: TrainState, batch: Batch, *data) -> Any:
        if probe is None:
            return ()
        return jax.lax.cond(
            state.step % probe_every == 0,
            lambda: probe(state, batch, *data),
            lambda: _nothing(jax.eval_shape(probe, state, batch, *data)),
        )

    def step(state: TrainState, drawn: _Drawn, total, tables, probe_data):
        labels = drawn.labels
        images = drawn.images.reshape(len(labels), side, side, -1)
        views = operations.views_of(tables, to_unit(images), labels)
        params = state.variables["params"]
        (loss, (batch_stats, logits, representation)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(params, state.variables["batch_stats"], views, labels)
        accuracy = jnp.mean(logits.argmax(-1) == labels)
        gradient, loss, accuracy = devices.mean_over_devices((gradient, loss, accuracy))
        batch = Batch(drawn.index, labels, logits, representation, gradient)
        seen = watch(state, batch, tables, probe_data)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, params, step=state.step, total=total
        )
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
        state = TrainState(variables, opt_state, state.step + 1, drawn.cursor, state.order_key)
        return state, StepLog(loss, accuracy, seen)

    split = _Drawn(_SPLIT_BATCHES, devices.EVERYWHERE, _SPLIT_BATCHES, devices.EVERYWHERE)
    on_devices = chunk_of_steps(step, mesh, config.precision, split)
    draw = devices.on_mesh(draw, mesh, config.precision, out_specs=split)
    init = devices.run_once(init, mesh)
    # Placed at the first step: the mesh's devices may be absent.
    place_tables = functools.cache(lambda: devices.place(mesh, operation_set))
    place_number = functools.lru_cache(64)(lambda number: devices.place(mesh, np.int32(number)))

    def advance(state: TrainState, bank: jax.Array, n: int, total: int, probe_data: Any = ()):
        drawn = draw(state.order_key, state.cursor, bank, place_number(n))
        return on_devices(state, drawn, place_number(total), (place_tables(), probe_data))

    def programs(n: int, channels: int, probe_data: Any = ()) -> dict[str, devices.Program]:
        shapes = functools.partial(devices.shapes, mesh)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = shapes(init.trace(key, channels).out_info)
        bank, number = jax.ShapeDtypeStruct((n, side**2 * channels), np.uint8), np.int32(n)
        to_draw = shapes((state.order_key, state.cursor, bank, number))
        drawn = _Drawn(*map(shapes, draw.trace(*to_draw).out_info, split))
        data = shapes((operation_set, probe_data))
        return {
            "init": devices.Program(init, (key, channels)),
            "draw": devices.Program(draw, to_draw),
            "train": devices.Program(on_devices, (state, drawn, shapes(number), data)),
        }

    return Trainer(init=init, advance=advance, programs=programs, chunk=chunk, mesh=mesh)


def chunk_of_steps(
    step: Callable[..., tuple[Any, Any]], mesh: Mesh, precision: str, batch_specs: Any
) -> Callable[..., tuple[Any, Any]]:
    """Many steps as one program on a mesh, ``(state, batches, total, data) -> (state, log)``.

    Args:
      step: ``(state, batch, total, *data) -> (state, log)`` of one device.
      mesh: devices that run ``step`` together.
      precision: of products, see :class:`TrainConfig`.
      batch_specs: how ``batches``, a pytree of arrays [steps, ...], is split; all else is whole on
        every device.

    Steps from ``state.step == total`` on are not done. The log's arrays get a leading axis of
    steps. Donates the state.
    """

    def advance(state: Any, batches: Any, total: jax.Array, data: tuple) -> tuple[Any, Any]:
        def step_if_left(state, batch):
            _, log = jax.eval_shape(step, state, batch, total, *data)
            return jax.lax.cond(
                state.step < total,
                lambda s: step(s, batch, total, *data),
                lambda s: (s, _nothing(log)),
                state,
            )

        return jax.lax.scan(step_if_left, state, batches)

    in_specs = (devices.EVERYWHERE, batch_specs, devices.EVERYWHERE, devices.EVERYWHERE)
    return devices.on_mesh(advance, mesh, precision, in_specs, donate_argnums=0)


def _nothing(shapes: Any) -> Any:
    """A log of a step that was not done: NaN, and -1 for integers."""

    def fill(a: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else -1, a.dtype)

    return jax.tree.map(fill, shapes)


def train(
    trainer: Trainer,
    state: TrainState,
    bank: jax.Array,
    n: int,
    total: int,
    on_chunk: Callable[[TrainState, StepLog], None] = lambda state, log: None,
    probe_data: Any = (),
) -> TrainState:
    """Advances a state to step ``total``, the run's last, calling ``on_chunk`` after every chunk.

    ``bank`` is of :func:`place_bank`, on the trainer's mesh. The state passed in is donated.
    ``on_chunk`` may save the state: a run continued from it is the same run, bit for bit on CPU.
    """
    # Counted here: asking the device after every chunk would wait for it.
    under_way = collections.deque()
    for _ in range(int(jax.device_get(state.step)), total, trainer.chunk):
        state, log = trainer.advance(state, bank, n, total, probe_data)
        on_chunk(state, log)
        under_way.append(log.loss)
        if len(under_way) > _MOST_UNDER_WAY:
            jax.block_until_ready(under_way.popleft())
    return state

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
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from e3jax import networks, operations

# The mesh has this one axis: images of a batch are split over it, everything else is replicated.
AXIS = "batch"
_ROUNDS = 8
_EVERYWHERE = PartitionSpec()
# Chunks that a run is ahead of its devices. With more than 32 programs under way, XLA's CPU client
# waits for good if they span several of its devices.
_MOST_UNDER_WAY = 8


class TrainConfig(NamedTuple):
    """What a run depends on besides key and images; hashable.

    Attributes:
      network: name or function for :func:`e3jax.networks.build`.
      optimizer: "sgd" (momentum 0.9, not Nesterov) or "adam" (0.9, 0.999, eps 1e-7).
      learning_rate: constant, or the peak of ``schedule="onecycle"``.
      schedule: "constant" or "onecycle" (cosine up over 30 %, cosine down; needs ``steps``).
      weight_decay: L2 added to the gradient of every parameter, before the optimizer sees it.
      batch_size: views a step.
      steps: length of the run; None means ``epochs`` over all n * k views.
      epochs: used where ``steps`` is None, may be broken; None means the paper's ceil(250 / k).
      dtype: compute dtype of the convolutions, "float32" or "bfloat16".
    """

    network: str | Callable = "wrn-10-4"
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 5e-4
    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    dtype: str = "float32"

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


# (state before the update, batch, operation tables, bank, probe_data) -> pytree of arrays, whole on
# every device: gather over AXIS what is split. It watches and cannot change the run.
Probe = Callable[[TrainState, Batch, operations.OperationSet, jax.Array, Any], Any]


class Trainer(NamedTuple):
    """A run in two pure functions.

    Attributes:
      init: ``(key, channels) -> TrainState``.
      advance: ``(state, images uint8 [capacity, h, w, c], n, total, probe_data=()) -> (TrainState,
        StepLog)``: a chunk of steps, none beyond step ``total``; ``n`` of the bank's rows are
        images; ``probe_data`` is for the probe. Donates the state. Neither ``n`` nor ``total``
        (ints) is a shape, so all classes and seeds share one trace; they are put on the devices
        once, so further calls move nothing there.
      chunk: steps a call of ``advance`` does.
      mesh: devices the batch is split over.
    """

    init: Callable[..., TrainState]
    advance: Callable[..., tuple[TrainState, StepLog]]
    chunk: int
    mesh: jax.sharding.Mesh


def device_mesh(devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh of one axis over the given devices (default: all, of all processes of the job)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def place(mesh: jax.sharding.Mesh, tree: Any, spec: PartitionSpec = _EVERYWHERE) -> Any:
    """Puts a pytree of host arrays on a mesh, by default a copy on every device.

    The mesh may span processes: each holds the whole arrays and hands over its own devices' part.
    """
    sharding = NamedSharding(mesh, spec)

    def put(a: Any) -> jax.Array:
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(put, tree)


def place_bank(
    mesh: jax.sharding.Mesh, images: np.ndarray, capacity: int | None = None
) -> jax.Array:
    """Puts a bank on the devices, filled up to ``capacity`` rows so that banks share one shape."""
    missing = (capacity or len(images)) - len(images)
    if missing:  # else a bank of millions would be copied for nothing
        images = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
    return place(mesh, images)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) * (2 / 255) - 1


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate of every step, 0, 1, ...

    Raises:
      ValueError: for an unknown schedule, or one-cycle without ``steps``.
    """
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    if config.schedule == "onecycle" and config.steps:
        return optax.cosine_onecycle_schedule(config.steps, config.learning_rate)
    raise ValueError(
        "schedule must be 'constant', or 'onecycle' with steps, "
        f"got {config.schedule!r} with steps={config.steps}"
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizers of the paper, with L2 coupled (not AdamW).

    Raises:
      ValueError: for an unknown optimizer or schedule, or one-cycle without ``steps``.
    """
    rate = learning_rate(config)
    if config.optimizer == "sgd":
        rule = optax.sgd(rate, momentum=0.9)
    elif config.optimizer == "adam":
        rule = optax.adam(rate, eps=1e-7)
    else:
        raise ValueError(f"optimizer must be 'sgd' or 'adam', got {config.optimizer!r}")
    # Flat: one array of all parameters is less to compile and to start than dozens of small ones.
    return optax.flatten(optax.chain(optax.add_decayed_weights(config.weight_decay), rule))


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


def make_trainer(
    config: TrainConfig,
    operation_set: operations.OperationSet,
    mesh: jax.sharding.Mesh | None = None,
    chunk: int = 50,
    probe: Probe | None = None,
    probe_every: int = 50,
) -> Trainer:
    """Builds the functions of a run; compile time is paid at the first ``advance``.

    Args:
      config: what to train and how.
      operation_set: the K operations, for the images' side.
      mesh: devices to split each batch over (default: all); ``batch_size`` must be a multiple.
        It may span the processes of a job, which then make the same calls in the same order; what
        comes out of them is whole in each.
      chunk: steps a call of ``advance``.
      probe: watches the run, e.g. :func:`e3jax.priority.make_probe`; its results are in the log.
      probe_every: it is asked in steps 0, ``probe_every``, 2 ``probe_every`` ...

    Raises:
      ValueError: if the batch does not divide over the devices, or the config is unknown.
    """
    mesh = mesh or device_mesh()
    devices, k = mesh.size, len(operation_set)
    if config.batch_size % devices:
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of the {devices} devices"
        )
    network = networks.build(config.network, k, jnp.dtype(config.dtype), AXIS)
    optimizer = make_optimizer(config)
    side = operation_set.side

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

    def step(state: TrainState, tables, images, n, probe_data) -> tuple[TrainState, StepLog]:
        index, labels, cursor = next_views(state.order_key, state.cursor, config.batch_size, n, k)
        # Every device draws the same batch and takes its own part of it.
        image, labels = part_of_device(index), part_of_device(labels)
        views = operations.views_of(tables, to_unit(images[image]), labels)
        params = state.variables["params"]
        (loss, (batch_stats, logits, representation)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(params, state.variables["batch_stats"], views, labels)
        accuracy = jnp.mean(logits.argmax(-1) == labels)
        gradient, loss, accuracy = mean_over_devices((gradient, loss, accuracy))
        batch = Batch(index, labels, logits, representation, gradient)
        seen = watch(state, batch, tables, images, probe_data)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
        state = TrainState(variables, opt_state, state.step + 1, cursor, state.order_key)
        return state, StepLog(loss, accuracy, seen)

    on_devices = chunk_of_steps(step, chunk, mesh)
    tables = place(mesh, operation_set)
    place_number = functools.lru_cache(maxsize=64)(lambda number: place(mesh, np.int32(number)))
    return Trainer(
        init=jax.jit(
            init,
            static_argnums=1,
            out_shardings=NamedSharding(mesh, _EVERYWHERE),
            compiler_options=compiler_options(mesh, level=0),
        ),
        advance=lambda state, images, n, total, probe_data=(): on_devices(
            state, place_number(total), tables, images, place_number(n), probe_data
        ),
        chunk=chunk,
        mesh=mesh,
    )


def chunk_of_steps(
    step: Callable[..., tuple[Any, Any]], chunk: int, mesh: jax.sharding.Mesh
) -> Callable[..., tuple[Any, Any]]:
    """Many steps as one program on a mesh, ``(state, total, *data) -> (state, log)``.

    Args:
      step: ``(state, *data) -> (state, log)`` of one device; all it gets is whole on every device.
      chunk: steps a call; those from ``state.step == total`` on are not done.
      mesh: devices that run ``step`` together.

    The log's arrays get a leading axis of steps. Donates the state.
    """

    def advance(state: Any, total: jax.Array, *data) -> tuple[Any, Any]:
        _, log = jax.eval_shape(step, state, *data)

        def step_if_left(state, _):
            return jax.lax.cond(
                state.step < total,
                lambda s: step(s, *data),
                lambda s: (s, _nothing(log)),
                state,
            )

        return jax.lax.scan(step_if_left, state, length=chunk)

    return jax.jit(
        jax.shard_map(
            advance, mesh=mesh, in_specs=_EVERYWHERE, out_specs=_EVERYWHERE, check_vma=False
        ),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, level=1),
    )


def mean_over_devices(tree: Any) -> Any:
    """Inside a program on the mesh: means over the devices of float32 arrays, in one collective.

    On a CPU each collective waits in a thread of XLA's pool for the other devices, which need
    threads to arrive. So all collectives of a program stand in one chain, none beside another.
    """
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    return unflatten(jax.lax.pmean(flat, AXIS))


def gather_over_devices(tree: Any) -> Any:
    """Inside a program on the mesh: float32 arrays [n, ...] of each device joined to wholes.

    In one collective, see :func:`mean_over_devices`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    n = len(leaves[0])
    rows = [leaf.reshape(n, -1) for leaf in leaves]
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    whole = jax.lax.all_gather(jnp.concatenate(rows, axis=1), AXIS, tiled=True)
    parts = jnp.split(whole, ends, axis=1)
    return treedef.unflatten(
        part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)
    )


def part_of_device(whole: jax.Array) -> jax.Array:
    """Inside a program on the mesh: a device's part of an array that every device has."""
    part = len(whole) // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(AXIS) * part, part)


def _nothing(shapes: Any) -> Any:
    """A log of a step that was not done: NaN, and -1 for integers."""

    def fill(a: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else -1, a.dtype)

    return jax.tree.map(fill, shapes)


def compiler_options(mesh: jax.sharding.Mesh, level: int) -> dict[str, int] | None:
    """How hard XLA's CPU compiler tries.

    Level 0 suits what runs once: initial weights take 2 instead of 12 seconds, nearly all of it in
    threefry. Level 1 compiles a step in two thirds of the default level's time, to equal speed.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": level} if on_cpu else None


def train(
    trainer: Trainer,
    state: TrainState,
    images: jax.Array,
    n: int,
    total: int,
    on_chunk: Callable[[TrainState, StepLog], None] = lambda state, log: None,
    probe_data: Any = (),
) -> TrainState:
    """Advances a state to step ``total``, calling ``on_chunk`` after every chunk.

    The state passed in is donated. ``on_chunk`` may save the state: a run continued from it is the
    same run, bit for bit on CPU.
    """
    # Counted here: asking the device after every chunk would wait for it.
    under_way = collections.deque()
    for _ in range(int(jax.device_get(state.step)), total, trainer.chunk):
        state, log = trainer.advance(state, images, n, total, probe_data)
        on_chunk(state, log)
        under_way.append(log.loss)
        if len(under_way) > _MOST_UNDER_WAY:
            jax.block_until_ready(under_way.popleft())
    return state

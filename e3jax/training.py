"""Training: one trainer for every method, and a whole run as a function of key and images.

Views are generated inside the train step from uint8 images and (image, operation) pairs; no array
of views exists. Legend: ``n`` images, ``k`` operations, ``b`` views per batch.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from e3jax import devices, networks, operations, sampling
from e3jax.images import to_unit
from e3jax.losses import Batch, Loss

# Batches of several steps are split over the devices, steps are not.
_SPLIT_BATCHES = PartitionSpec(None, devices.AXIS)


class TrainConfig(NamedTuple):
    """What a run depends on besides its method, key and images; hashable.

    Attributes:
      network: name or function for :func:`e3jax.networks.build`.
      operations: families for :func:`e3jax.operation_set`, or a tuple of operations; "" trains on
        the images themselves (k = 1).
      optimizer: "sgd" (momentum 0.9, not Nesterov) or "adam" (0.9, 0.999, eps 1e-7).
      learning_rate: constant, or the peak of ``schedule="onecycle"``.
      schedule: "constant" or "onecycle" (cosine up over 30 % of the run, cosine down).
      weight_decay: L2 added to the gradient of every parameter, before the optimizer sees it.
      batch_size: views per step.
      steps: length of the run; None means ``epochs`` over all n * k views.
      epochs: used where ``steps`` is None, may be fractional; None means the paper's ceil(250 / k).
      precision: "float32", on every device; "tensorfloat32": factors of products rounded to it on
        accelerators (three passes of bfloat16 on a TPU); "bfloat16": convolutions of bfloat16.
    """

    network: str | Callable = "wrn-10-4"
    operations: str | tuple = "RA+IA+PR"
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 5e-4
    batch_size: int = 128
    steps: int | None = None
    epochs: float | None = None
    precision: str = "float32"

    @property
    def k(self) -> int:
        """Number of operations, 1 where the images themselves are trained on."""
        named = isinstance(self.operations, str) and self.operations
        return len(operations.paper_operations(self.operations) if named else self.operations) or 1

    def batch(self, n: int) -> int:
        """Views per step of a run over n images: a batch larger than an epoch would repeat views.

        It is a power of two then, so that collections of similar size share a program.
        """
        return min(self.batch_size, 1 << (n * self.k - 1).bit_length())

    def num_steps(self, n: int) -> int:
        """Steps of a run over n images; the last batch is filled up from a further epoch."""
        epochs = self.epochs or math.ceil(250 / self.k)
        return self.steps or math.ceil(epochs * n * self.k / self.batch(n))


def paper_config(grey: bool) -> TrainConfig:
    """The paper's training (Sec. 4.1): ceil(250 / k) epochs, so 3 for the 111 operations.

    Grey images (MNIST, Fashion-MNIST) are trained with SGD, colour ones (CIFAR-10, CIFAR-100,
    SVHN) with Adam.
    """
    return TrainConfig(optimizer="sgd" if grey else "adam")


def quick_config(edition: int = 2) -> TrainConfig:
    """The same method sized for a CPU and a few hundred images: a narrow network and few steps.

    Its constants were chosen by results on MNIST alone. The first edition has another network,
    half as many views per step and half the learning rate.
    """
    return TrainConfig(
        network={1: "wrn-10-1", 2: "pwrn-10-2"}[edition],
        optimizer="adam",
        learning_rate={1: 0.005, 2: 0.01}[edition],
        schedule="onecycle",
        batch_size={1: 64, 2: 128}[edition],
        steps=433,
    )


class TrainState(NamedTuple):
    """What the next step needs.

    Attributes:
      variables: ``{"params": ..., "batch_stats": ...}`` of the network.
      opt_state: state of the optax optimizer.
      step: int32, steps done.
      epoch_position: int32 [3], where the next batch begins, see :func:`e3jax.sampling.draw_batch`.
      shuffle_key: uint32 [8], random; the epochs' orders follow from it.
      extra: pytree that the loss carries from step to step.
    """

    variables: Any
    opt_state: Any
    step: jax.Array
    epoch_position: jax.Array
    shuffle_key: jax.Array
    extra: Any = ()


class StepLog(NamedTuple):
    """What there is to see of a call's steps: arrays with a leading axis of steps.

    Attributes:
      loss: float32 [steps], mean loss of the batch; NaN where no step was left to do.
      metrics: float32 [steps] by name, what the trainer's ``metrics`` returned.
      probe: what the trainer's probe returned; NaN or -1 in steps without; () without a probe.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]
    probe: Any = ()


# (state before the update, operation tables, probe_data) -> pytree
# of arrays, whole on every device: gather what is split. It observes and cannot change the run.
Probe = Callable[[TrainState, operations.OperationSet | tuple, Any], Any]


class Trainer(NamedTuple):
    """A run in two pure functions.

    Attributes:
      init: ``(key, channels, extra=()) -> TrainState``.
      feed: ``(state, bank, n, counts) -> iterator`` of what each call of ``run_steps`` trains on.
        ``bank`` is :func:`place_bank`'s, of n images, ``counts`` has the steps that each call is to
        do. Of a bank on the host only the images of a call reach the devices, fetched in a thread
        while the call before trains.
      run_steps: ``(state, fed, num_steps, until=None, probe_data=()) -> (TrainState, StepLog)``:
        ``steps_per_call`` steps of a run of ``num_steps``, the schedule's length; none beyond step
        ``until`` (default: ``num_steps``). ``fed`` comes from ``feed``; ``probe_data`` is for the
        probe. Donates the state. The program depends on none of these numbers: they are put on
        the devices once.
      programs: ``(n, channels, extra=(), probe_data=()) -> {name: devices.Program}``, what a run
        over n images consists of, on devices that may be absent.
      steps_per_call: steps that a call of ``run_steps`` takes.
      mesh: devices that the batch is split over.
    """

    init: Callable[..., TrainState]
    feed: Callable[..., Iterator[Any]]
    run_steps: Callable[..., tuple[TrainState, StepLog]]
    programs: Callable[..., dict[str, devices.Program]]
    steps_per_call: int
    mesh: Mesh


def place_bank(mesh: Mesh, images: np.ndarray, on_host: bool | None = None) -> Any:
    """Puts images uint8 [n, h, w, c] where a training on a mesh draws them from.

    Args:
      mesh: the devices that train.
      images: an array, or what is indexed like one, see :class:`e3jax.bank.Joined`.
      on_host: leaves the images where they are. Default: on a CPU, whose memory holds them already,
        and images that are no array.

    Returns:
      The images; or rows uint8 [n and more, h * w * c] that are split over the devices. Rows are
      stored as they are; a TPU would store images of three channels in four times the space.
    """
    if on_host is None:
        on_host = devices.is_cpu(mesh) or not isinstance(images, np.ndarray)
    if on_host:
        return images
    return devices.place_split(mesh, images.reshape(len(images), -1))


def learning_rate(config: TrainConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The learning rate as a function of the step (0, 1, ...) and the run's number of steps.

    One-cycle is ``optax.cosine_onecycle_schedule``, whose length would be a constant of a program.

    Raises:
      ValueError: for an unknown schedule.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return lambda step, num_steps: jnp.float32(peak)
    if config.schedule != "onecycle":
        raise ValueError(f"schedule must be 'constant' or 'onecycle', got {config.schedule!r}")

    rates = np.cumprod(np.float32([peak / 25, 25, 1 / (25 * 1e4)]))

    def onecycle(step: jax.Array, num_steps: jax.Array) -> jax.Array:
        top = num_steps // 10 * 3 + num_steps % 10 * 3 // 10  # 30 %, without leaving int32
        ends = jnp.stack([jnp.zeros_like(num_steps), top, num_steps])
        # By its reciprocal, as XLA divides by a constant: to the same bits as optax.
        share = (step - ends[:-1]) * (1 / jnp.maximum(ends[1:] - ends[:-1], 1))
        of_parts = rates[1:] + (rates[:-1] - rates[1:]) / 2 * (jnp.cos(jnp.pi * share) + 1)
        is_in = (ends[:-1] <= step) & (step < ends[1:])
        return is_in.dot(of_parts) + (ends[-1] <= step) * rates[-1]

    return onecycle


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizers of the paper, with L2 coupled (not AdamW).

    ``update(gradient, state, params, step=..., num_steps=...)`` takes the step and the run's number
    of steps, which the learning rate depends on.

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

    def scale(updates, state, params=None, *, step, num_steps):
        return jax.tree.map(lambda u: -rate(step, num_steps) * u, updates), state

    by_rate = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scale)
    # Flat: one array of all parameters is less to compile and to start than dozens of small ones.
    return optax.flatten(optax.chain(optax.add_decayed_weights(config.weight_decay), rule, by_rate))


class _Fed(NamedTuple):
    """The batches of a call's steps, with a leading axis of steps.

    ``images`` uint8 [b, h * w * c], ``image_index`` and ``operation_index`` int32 [b] are a
    device's part of the batch; ``all_image_index`` int32 [whole b] and ``epoch_position``, the
    place after the batch, are whole.
    """

    images: jax.Array
    image_index: jax.Array
    operation_index: jax.Array
    all_image_index: jax.Array
    epoch_position: jax.Array


def make_trainer(
    network: str | Callable,
    loss: Loss,
    optimizer: optax.GradientTransformationExtraArgs,
    side: int,
    operation_set: operations.OperationSet | None = None,
    *,
    batch_size: int,
    precision: str = "float32",
    mesh: Mesh | None = None,
    steps_per_call: int = 50,
    metrics: Callable[[tuple, Batch], dict[str, jax.Array]] = lambda outputs, batch: {},
    inputs: Callable[..., jax.Array] = lambda views, image_index, extra: views,
    probe: Probe | None = None,
    probe_every: int = 50,
) -> Trainer:
    """Builds the functions of a run; compile time is paid at the first ``run_steps``.

    Args:
      network: name or function for :func:`e3jax.networks.build`; its outputs are a tuple of arrays
        [b, ...].
      loss: what training minimises, see :mod:`e3jax.losses`.
      optimizer: from :func:`make_optimizer`.
      side: of the square images, in pixels.
      operation_set: the K operations, compiled for ``side``; None trains on the images themselves.
      batch_size: views per step.
      precision: of products, see :class:`TrainConfig`.
      mesh: devices to split each batch over (default: all), as many of them as ``batch_size``
        divides over. It may span the processes of a job, which then make the same calls in the same
        order; what comes out of them is whole in each.
      steps_per_call: steps per call of ``run_steps``.
      metrics: float32 scalars of one device's part of a batch, for the log.
      inputs: ``(views, image_index, extra) -> views``: what the network is applied to.
      probe: observes the run, e.g. :func:`e3jax.priority.make_probe`; its results are in the log.
      probe_every: it is called in steps 0, ``probe_every``, 2 ``probe_every`` ...

    Raises:
      ValueError: if network or precision are unknown, or if the batch does not divide over a job's
        devices.
    """
    mesh = devices.part_for_batch(mesh or devices.device_mesh(), batch_size)
    tables = operation_set or ()
    k = len(tables) or 1
    network = networks.build(network, k, devices.dtype(precision), devices.AXIS)

    def init(key: jax.Array, channels: int) -> TrainState:
        # A network without running statistics has no such collection.
        variables = {"batch_stats": {}} | network.init(
            jax.random.fold_in(key, 0), jnp.zeros((1, side, side, channels)), train=False
        )
        return TrainState(
            variables=variables,
            opt_state=optimizer.init(variables["params"]),
            step=jnp.int32(0),
            epoch_position=jnp.zeros(3, jnp.int32),
            shuffle_key=jax.random.bits(jax.random.fold_in(key, 1), (sampling.ROUNDS,)),
        )

    def draw(shuffle_key: jax.Array, position: jax.Array, n: jax.Array) -> tuple:
        def next_batch(position, _):
            *pairs, position = sampling.draw_batch(shuffle_key, position, batch_size, n, k)
            return position, (*pairs, position)

        return jax.lax.scan(next_batch, position, length=steps_per_call)[1]

    def draw_rows(shuffle_key, position, n, count, bank) -> tuple[_Fed, jax.Array]:
        """From a bank that is split over devices; also the place after ``count`` steps."""
        image, operation, position = draw(shuffle_key, position, n)

        def rows(_, pairs):
            # Every device draws the same batch and takes its own part of it.
            mine = map(devices.part_of_device, pairs)
            return (), (devices.rows_of_split(bank, pairs[0]), *mine)

        _, parts = jax.lax.scan(rows, (), (image, operation))
        return _Fed(*parts, image, position), position[count - 1]

    def batch_of(drawn: _Fed, tables: Any, extra: Any) -> Batch:
        images = to_unit(drawn.images.reshape(len(drawn.images), side, side, -1))
        views = operations.views_of(tables, images, drawn.operation_index) if k > 1 else images
        views = inputs(views, drawn.image_index, extra)
        index = (drawn.image_index, drawn.operation_index, drawn.all_image_index)
        return Batch(views, *index, tables.factors if k > 1 else jnp.zeros((0, 1), jnp.int32))

    def step(state: TrainState, drawn: _Fed, num_steps, tables, probe_data):
        batch, params = batch_of(drawn, tables, state.extra), state.variables["params"]
        dropout = jax.random.fold_in(devices.key(state.shuffle_key[0]), state.step)
        dropout = jax.random.fold_in(dropout, jax.lax.axis_index(devices.AXIS))

        def mean_loss(params):
            outputs, updates = network.apply(
                state.variables | {"params": params},
                batch.views,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            losses, extra = loss(outputs, batch, state.extra)
            return losses.mean(), (updates.get("batch_stats", {}), extra, outputs)

        (value, (batch_stats, extra, outputs)), gradient = jax.value_and_grad(
            mean_loss, has_aux=True
        )(params)
        gradient, value, seen = devices.mean_over_devices(
            (gradient, value, metrics(outputs, batch))
        )
        probed = ()
        if probe:
            # Its collectives come after those above, see devices.mean_over_devices.
            _, seen_state = jax.lax.optimization_barrier((gradient, state))
            probed = _call_probe(probe, probe_every, seen_state, tables, probe_data)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, params, step=state.step, num_steps=num_steps
        )
        state = state._replace(
            variables={"params": optax.apply_updates(params, updates), "batch_stats": batch_stats},
            opt_state=opt_state,
            step=state.step + 1,
            epoch_position=drawn.epoch_position,
            extra=extra,
        )
        return state, StepLog(value, seen, probed)

    whole, one = devices.EVERYWHERE, devices.SPLIT
    split = _Fed(_SPLIT_BATCHES, _SPLIT_BATCHES, _SPLIT_BATCHES, whole, whole)
    in_specs = (whole, split, whole, whole, whole)
    on_devices = devices.on_mesh(_scan(step), mesh, precision, in_specs, donate_argnums=0)
    draw_pairs = devices.on_mesh(draw, mesh, precision)
    in_specs = (whole, whole, whole, whole, one)
    draw_rows = devices.on_mesh(draw_rows, mesh, precision, in_specs, (split, whole))
    init = devices.run_once(init, mesh)
    # Placed at the first step: the mesh's devices may be absent.
    place_tables = functools.cache(lambda: devices.place(mesh, tables))
    place_number = functools.lru_cache(64)(lambda number: devices.place(mesh, np.int32(number)))

    def init_with(key: jax.Array, channels: int, extra: Any = ()) -> TrainState:
        state = init(devices.as_key(key), channels)
        return state._replace(extra=devices.place(mesh, extra))

    def feed(state: TrainState, bank: Any, n: int, counts: Iterable[int]) -> Iterator[_Fed]:
        # Copies, for the state's own are donated.
        key, position = devices.copied((state.shuffle_key, state.epoch_position))
        if isinstance(bank, jax.Array):
            return from_devices(key, position, bank, n, counts)
        return _ahead(from_host(key, position, bank, n, counts))

    def from_devices(key, position, bank, n, counts):
        for count in counts:
            numbers = (place_number(n), place_number(count))
            fed, position = draw_rows(key, position, *numbers, bank)
            yield fed

    def from_host(key, position, bank, n, counts):
        for count in counts:
            drawn = draw_pairs(key, position, place_number(n))
            image, operation, positions = devices.fetched(drawn)
            images = bank[image.ravel()].reshape(*image.shape, -1)
            fed = _Fed(images, image, operation, image, positions)
            yield _Fed(*map(functools.partial(devices.place, mesh), fed, split))
            position = devices.place(mesh, positions[count - 1])

    def run_steps(state, fed, num_steps, until=None, probe_data=()):
        numbers = (place_number(num_steps), place_number(num_steps if until is None else until))
        return on_devices(state, fed, numbers, place_tables(), probe_data)

    def programs(n: int, channels: int, extra: Any = (), probe_data: Any = ()):
        shapes = functools.partial(devices.shapes, mesh)
        key = jax.eval_shape(lambda: devices.key(0))
        state = shapes(init.trace(key, channels).out_info._replace(extra=extra))
        bank = jax.ShapeDtypeStruct((-(-n // mesh.size) * mesh.size, side**2 * channels), np.uint8)
        number = np.int32(n)
        to_draw = shapes((state.shuffle_key, state.epoch_position, number, number))
        to_draw = (*to_draw, shapes(bank, one))
        drawn, _ = draw_rows.trace(*to_draw).out_info
        arguments = (state, _Fed(*map(shapes, drawn, split)))
        arguments = (*arguments, *shapes(((number, number), tables, probe_data)))
        return {
            "init": devices.Program(init, (key, channels)),
            "draw": devices.Program(draw_rows, to_draw),
            "train": devices.Program(on_devices, arguments),
        }

    return Trainer(init_with, feed, run_steps, programs, steps_per_call, mesh)


def _ahead(items: Iterator) -> Iterator:
    """The items of an iterator, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, items, None)
            yield item


def _scan(step: Callable[..., tuple[TrainState, StepLog]]) -> Callable:
    """Scans a step over batches; from step ``until`` on nothing is done."""

    def scan(state: TrainState, batches: Any, numbers: Sequence[jax.Array], *data):
        num_steps, until = numbers

        def step_if_left(state, batch):
            _, log = jax.eval_shape(step, state, batch, num_steps, *data)
            return jax.lax.cond(
                state.step < until,
                lambda state: step(state, batch, num_steps, *data),
                lambda state: (state, _nothing(log)),
                state,
            )

        return jax.lax.scan(step_if_left, state, batches)

    return scan


def _call_probe(probe: Probe, every: int, state: TrainState, *data) -> Any:
    return jax.lax.cond(
        state.step % every == 0,
        lambda: probe(state, *data),
        lambda: _nothing(jax.eval_shape(probe, state, *data)),
    )


def _nothing(shapes: Any) -> Any:
    """The log of a step that was not done: NaN, and -1 for integers."""

    def fill(a: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else -1, a.dtype)

    return jax.tree.map(fill, shapes)

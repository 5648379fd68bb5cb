"""One training loop for the methods that learn to reconstruct images.

Legend: ``n`` images, ``k`` operations (1 where images are taken as they are), ``b`` batch.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from e3jax import devices, operations, training

# (steps done, steps of the run, what a person wants to see). It may raise to end the run.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, note: str) -> None:
    """Shows no progress."""


class Config(NamedTuple):
    """What a run depends on besides key and images; hashable.

    Attributes:
      epochs: over all images.
      steps: length of the run instead, if not None.
      batch_size: images a step.
      learning_rate: of Adam (0.9, 0.999, eps 1e-7).
      weight_decay: L2 added to the gradient of every parameter, before Adam sees it.
      latent: size of the code.
      operations: families from "RA" on, e.g. "RA+IA+PR": trains and scores on all k views of the
        images, for ceil(epochs / k) epochs over all views; "": on the images themselves.
    """

    epochs: int = 250
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 5e-4
    latent: int = 256
    operations: str = ""

    def num_steps(self, n: int) -> int:
        """Steps of a run over n images; the last batch is filled up from a further epoch."""
        k = len(operations.paper_operations(self.operations)) if self.operations else 1
        return self.steps or math.ceil(math.ceil(self.epochs / k) * n * k / self.batch(n))

    def batch(self, n: int) -> int:
        """Images a step of a run over n images: a batch larger than the set would repeat some."""
        return min(self.batch_size, 1 << (n - 1).bit_length())


class Info(NamedTuple):
    """What a person wants to see of a run: its steps, its last losses' mean, and what is wrong."""

    steps: int
    loss: float
    warning: str


class State(NamedTuple):
    """What the next step needs: the network's variables, the optimizer's state, steps done."""

    variables: Any
    opt_state: Any
    step: jax.Array


class Model(NamedTuple):
    """A network and its training in pure functions, built once for all runs on a mesh.

    Attributes:
      init: ``(key, image shape) -> State``.
      advance: ``(state, images [chunk, b, h, w, c], labels int32 [chunk, b], until, key) ->
        (State, losses)``: steps up to ``until``, at most ``chunk``, each on the views of its images
        by the operations of its labels. Donates the state.
      evaluate: ``(variables, inputs, on_block=...) -> pytree`` of NumPy arrays [n, ...]: what
        ``summary`` says of all images, in evaluation mode.
      programs: ``image shape -> {name: devices.Program}``, what a run consists of, on devices that
        may be absent.
      k: number of operations.
      chunk, batch: steps a call of ``advance``, views a step.
      mesh: devices the batch is split over.
    """

    init: Callable[..., State]
    advance: Callable[..., tuple[State, jax.Array]]
    evaluate: Callable[..., Any]
    programs: Callable[[tuple[int, ...]], dict[str, devices.Program]]
    k: int
    chunk: int
    batch: int
    mesh: Mesh


def make_model(
    config: Config,
    network: Any,
    loss: Callable[..., jax.Array],
    summary: Callable[..., Any],
    shape: tuple[int, int, int, int],
    mesh: Mesh | None,
) -> Model:
    """Builds a model; the same for all sets of like size, which so share its compiled programs.

    Args:
      config: how to train.
      network: applied to views [b, h, w, c], returns a tuple of arrays [b, ...].
      loss: ``(x, *outputs) -> scalar`` of one device's part of the batch; its mean over devices is
        minimised. :func:`e3jax.devices.gather_over_devices` gives it the
        others' parts.
      summary: ``(x [b, k, ...], *outputs [b, k, ...]) -> pytree`` of arrays [b, ...].
      shape: of the images to come, [n, h, w, c].
      mesh: devices to split each batch over (default: all), as many as it divides over.
    """
    batch = config.batch(shape[0])
    mesh = devices.part_for_batch(mesh or devices.device_mesh(), batch)
    return _make_model(config, network, loss, summary, shape[1], batch, mesh)


@functools.lru_cache(maxsize=16)
def _make_model(config, network, loss, summary, side, batch, mesh) -> Model:
    tables = operations.operation_set(config.operations, side) if config.operations else ()
    k = len(tables) or 1
    if k > 1 and tables.names[0] != "identity":  # codes are those of the first view
        raise ValueError(f"operations must begin with RA, got {config.operations!r}")
    optimizer = training.make_optimizer(
        training.TrainConfig(
            optimizer="adam",
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
    )

    def init(key: jax.Array, shape: tuple[int, ...]) -> State:
        variables = network.init(key, jnp.zeros((1, *shape)), train=False)
        return State(variables, optimizer.init(variables["params"]), jnp.int32(0))

    def step(state: State, batch, total, tables, key) -> tuple[State, jax.Array]:
        images, labels = batch
        x = _unit(images)
        x = operations.views_of(tables, x, labels) if k > 1 else x
        key = jax.random.fold_in(key, state.step)
        dropout = jax.random.fold_in(key, jax.lax.axis_index(devices.AXIS))

        def loss_fn(params):
            outputs, updates = network.apply(
                state.variables | {"params": params},
                x,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            return loss(x, *outputs), updates

        params = state.variables["params"]
        (value, updates), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        value, gradient = devices.mean_over_devices((value, gradient))
        change, opt_state = optimizer.update(
            gradient, state.opt_state, params, step=state.step, total=total
        )
        variables = {"params": optax.apply_updates(params, change), **updates}
        return State(variables, opt_state, state.step + 1), value

    def summarise(shared, images):
        tables, variables = shared
        x = _unit(images)
        x = operations.all_views(tables, x) if k > 1 else x[:, None]
        outputs = network.apply(variables, x.reshape(-1, *x.shape[2:]), train=False)
        return summary(x, *(a.reshape(*x.shape[:2], *a.shape[1:]) for a in outputs))

    # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
    chunk = 10 if devices.is_cpu(mesh) else 200
    split = PartitionSpec(None, devices.AXIS)
    on_devices = training.chunk_of_steps(step, mesh, "float32", (split, split))
    together = math.ceil(batch / mesh.size / k)
    evaluate = devices.BatchMap(summarise, mesh, mesh.size * together, together, "float32")
    init = devices.run_once(init, mesh)
    place_tables = functools.cache(lambda: devices.place(mesh, tables))

    def advance(state: State, images, labels, until, key) -> tuple[State, jax.Array]:
        batches = devices.place(mesh, (images, labels), split)
        return on_devices(state, batches, np.int32(until), (place_tables(), key))

    def programs(shape: tuple[int, ...]) -> dict[str, devices.Program]:
        shapes = functools.partial(devices.shapes, mesh)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = shapes(init.trace(key, shape).out_info)
        images = jax.ShapeDtypeStruct((chunk, batch, *shape), np.uint8)
        labels = jax.ShapeDtypeStruct((chunk, batch), np.int32)
        arguments = (state, shapes((images, labels), split), shapes(np.int32(0)))
        image = jax.ShapeDtypeStruct(shape, np.uint8)
        return {
            "init": devices.Program(init, (key, shape)),
            "train": devices.Program(on_devices, (*arguments, shapes((tables, key)))),
            "evaluate": evaluate.program((tables, state.variables), image),
        }

    return Model(
        init=init,
        advance=advance,
        evaluate=lambda variables, *inputs: evaluate((place_tables(), variables), *inputs),
        programs=programs,
        k=k,
        chunk=chunk,
        batch=batch,
        mesh=mesh,
    )


def fit(
    model: Model,
    key: jax.Array,
    inputs: np.ndarray,
    total: int,
    on_progress: Progress,
    rounds: int = 1,
    renew: Callable[[Any, np.ndarray], np.ndarray] = lambda variables, inputs: inputs,
) -> tuple[Any, np.ndarray, float]:
    """A whole run.

    Args:
      model: what to train.
      key: of the initial weights, the order of views and dropout.
      inputs: uint8 [n, h, w, c], or float in [-1, 1].
      total: steps.
      on_progress: called after every chunk of steps.
      rounds: parts of the run, of equal length.
      renew: ``(variables, inputs) -> inputs`` of the next round, called after every one.

    Returns:
      the network's variables, the last inputs, the last chunk's mean loss.
    """
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("init", "order", "dropout"))}
    state = model.init(keys["init"], inputs.shape[1:])
    order = _order(keys["order"], len(inputs) * model.k, model.batch)
    ends = [math.ceil(total * (i + 1) / rounds) for i in range(rounds)]
    for begin, end in zip([0, *ends], ends, strict=False):
        for start in range(begin, end, model.chunk):
            until = min(start + model.chunk, end)
            views = np.zeros((model.chunk, model.batch), np.int64)
            views[: until - start] = list(itertools.islice(order, until - start))
            image, label = np.divmod(views, model.k)
            state, losses = model.advance(
                state, inputs[image], label.astype(np.int32), until, keys["dropout"]
            )
            loss = float(losses[: until - start].mean())
            on_progress(until, total, f"loss {loss:.4g}")
        inputs = renew(state.variables, inputs)
    return state.variables, inputs, loss


def _order(key: jax.Array, views: int, batch: int) -> Iterator[np.ndarray]:
    """Batches of numbers of views without end; every epoch visits each once, in a new order."""
    random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    drawn = np.zeros(0, int)
    while True:
        while len(drawn) < batch:
            drawn = np.concatenate([drawn, random.permutation(views)])
        yield drawn[:batch]
        drawn = drawn[batch:]


def _unit(images: jax.Array) -> jax.Array:
    return training.to_unit(images) if images.dtype == jnp.uint8 else images


def squared_error(x: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Every image's, summed over its pixels: [..., h, w, c] -> [...]."""
    return jnp.square(x - reconstruction).sum((-3, -2, -1))

"""One training step: views of drawn images, the loss, its gradient, an update, and a look at it.

A step is ``(state, batch) -> (state, log)`` and runs on every device with its part of the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from e3jax import devices, operations
from e3jax.images import to_unit
from e3jax.training.batch import Batch, Loss
from e3jax.training.batches import DrawnBatches


class Objective(NamedTuple):
    """What a training minimises.

    Attributes:
      loss: see :mod:`e3jax.training.losses`.
      metrics: ``(outputs, batch) -> {name: float32}``, of one device's part of a batch, for the
        log.
      inputs: ``(views, image_index, extra) -> views``: what the network is applied to.
    """

    loss: Loss
    metrics: Callable[[tuple, Batch], dict[str, jax.Array]] = lambda outputs, batch: {}
    inputs: Callable[..., jax.Array] = lambda views, image_index, extra: views


class TrainState(NamedTuple):
    """What the next step needs: arrays, or their shapes.

    Attributes:
      variables: ``{"params": ..., "batch_stats": ...}`` of the network.
      opt_state: state of the optax optimizer.
      step: int32, steps done.
      epoch_position: int32 [3], where the next batch begins, see
        :func:`e3jax.training.sampling.draw_batch`.
      shuffle_key: uint32 [8], random; the epochs' orders follow from it.
      extra: pytree that the loss carries from step to step.
    """

    variables: Any
    opt_state: Any
    step: Any
    epoch_position: Any
    shuffle_key: Any
    extra: Any = ()


class StepLog(NamedTuple):
    """What there is to see of a call's steps: arrays with a leading axis of steps.

    Attributes:
      loss: float32 [steps], mean loss of the batch; NaN where no step was taken.
      metrics: float32 [steps] by name, what the objective's ``metrics`` returned.
      probe: what the trainer's probe returned; NaN or -1 in steps without; () without a probe.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]
    probe: Any = ()


# (state before the update, operation tables, probe_data) -> pytree
# of arrays, whole on every device: gather what is split. It observes and cannot change the run.
Probe = Callable[[TrainState, operations.OperationSet | None, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)  # JAX knows a function by its identity
class Step:
    """The step of a training, a function to be called inside a program.

    Attributes:
      network: a Linen module, see :func:`e3jax.networks.build`; its outputs are a tuple of arrays
        [b, ...].
      objective: what is minimised.
      optimizer: from :func:`e3jax.training.make_optimizer`.
      side: of the square images, in pixels.
      probe: observes every step, see :func:`probe_every`.
    """

    network: Any
    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    side: int
    probe: Probe | None = None

    def __call__(
        self,
        state: TrainState,
        drawn: DrawnBatches,
        num_steps: jax.Array,
        tables: operations.OperationSet | None,
        probe_data: Any = (),
    ) -> tuple[TrainState, StepLog]:
        """Takes one step.

        Args:
          state: before the step.
          drawn: the step's batch, without the axis of steps.
          num_steps: int32, length of the run.
          tables: the operations; None trains on the images themselves.
          probe_data: for the probe.
        """
        batch = make_batch(drawn, tables, self.side, state.extra, self.objective.inputs)
        (loss, (batch_stats, extra, outputs)), gradient = self.loss_and_gradient(state, batch)
        metrics = self.objective.metrics(outputs, batch)
        gradient, loss, metrics = devices.mean_over_devices((gradient, loss, metrics))
        seen = ()
        if self.probe:
            # Its collectives come after those above, see devices.mean_over_devices.
            _, state_to_see = jax.lax.optimization_barrier((gradient, state))
            seen = self.probe(state_to_see, tables, probe_data)
        params = state.variables["params"]
        updates, opt_state = self.optimizer.update(
            gradient, state.opt_state, params, step=state.step, num_steps=num_steps
        )
        state = state._replace(
            variables={"params": optax.apply_updates(params, updates), "batch_stats": batch_stats},
            opt_state=opt_state,
            step=state.step + 1,
            epoch_position=drawn.epoch_position,
            extra=extra,
        )
        return state, StepLog(loss, metrics, seen)

    def loss_and_gradient(self, state: TrainState, batch: Batch) -> tuple[tuple, Any]:
        """Of one device's part of a batch.

        Returns:
          ``((mean loss, (batch_stats, extra, outputs)), gradient by the parameters)``.
        """
        dropout = jax.random.fold_in(devices.key(state.shuffle_key[0]), state.step)
        dropout = jax.random.fold_in(dropout, jax.lax.axis_index(devices.AXIS))

        def mean_loss(params):
            outputs, updates = self.network.apply(
                state.variables | {"params": params},
                batch.views,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            losses, extra = self.objective.loss(outputs, batch, state.extra)
            return losses.mean(), (updates.get("batch_stats", {}), extra, outputs)

        return jax.value_and_grad(mean_loss, has_aux=True)(state.variables["params"])


def make_batch(
    drawn: DrawnBatches,
    tables: operations.OperationSet | None,
    side: int,
    extra: Any,
    inputs: Callable[..., jax.Array],
) -> Batch:
    """Makes the views of a step's drawn images [b, side * side * c] on one device."""
    images = to_unit(drawn.images.reshape(len(drawn.images), side, side, -1))
    views, factors = images, jnp.zeros((0, 1), jnp.int32)
    if tables is not None:
        views = operations.views_of(tables, images, drawn.operation_index)
        factors = tables.factors
    views = inputs(views, drawn.image_index, extra)
    index = (drawn.image_index, drawn.operation_index, drawn.all_image_index)
    return Batch(views, *index, factors)


def repeat_step(step: Callable[..., tuple[TrainState, StepLog]]) -> Callable:
    """Takes a step with each of some batches, which have an axis of steps.

    Returns:
      ``(state, batches, (num_steps, count), *data) -> (state, log)``; the first ``count`` batches
      are used, or all where it is None.
    """

    def repeat(state: TrainState, batches: Any, numbers: Sequence[jax.Array | None], *data):
        num_steps, count = numbers

        def take(state: TrainState, batch: Any) -> tuple[TrainState, StepLog]:
            return step(state, batch, num_steps, *data)

        if count is None:
            return jax.lax.scan(take, state, batches)

        def take_next(i: jax.Array, carried: tuple) -> tuple:
            of_step = functools.partial(jax.lax.dynamic_index_in_dim, index=i, keepdims=False)
            with_step = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
            state, log = take(carried[0], jax.tree.map(of_step, batches))
            return state, jax.tree.map(with_step, carried[1], log)

        _, shapes = jax.eval_shape(functools.partial(jax.lax.scan, take), state, batches)
        return jax.lax.fori_loop(0, count, take_next, (state, _blank(shapes)))

    return repeat


def probe_every(steps: int, probe: Probe) -> Probe:
    """The probe in steps 0, ``steps``, 2 ``steps`` ...; in others NaN, and -1 for integers."""

    def in_its_turn(state: TrainState, *data) -> Any:
        return jax.lax.cond(
            state.step % steps == 0,
            lambda: probe(state, *data),
            lambda: _blank(jax.eval_shape(probe, state, *data)),
        )

    return in_its_turn


def _blank(shapes: Any) -> Any:
    """The log of what was not done: NaN, and -1 for integers."""

    def fill(a: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(a.shape, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else -1, a.dtype)

    return jax.tree.map(fill, shapes)

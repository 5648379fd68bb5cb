"""The trainer: a run's programs on a mesh, put together from batches and a step."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from e3jax import devices, networks, operations
from e3jax.training import sampling
from e3jax.training.batches import SPECS, BatchLoader, DrawnBatches, place_number
from e3jax.training.step import Objective, Probe, Step, StepLog, TrainState, repeat_step


def make_trainer(
    network: str | Callable,
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    side: int,
    operation_set: operations.OperationSet | None = None,
    *,
    batch_size: int,
    precision: str = "float32",
    mesh: Mesh | None = None,
    steps_per_call: int = 50,
    probe: Probe | None = None,
) -> "Trainer":
    """Builds the functions of a run; compile time is paid at the first ``run_steps``.

    Args:
      network: name or function for :func:`e3jax.networks.build`; its outputs are a tuple of arrays
        [b, ...].
      objective: what training minimises.
      optimizer: from :func:`e3jax.training.make_optimizer`.
      side: of the square images, in pixels.
      operation_set: the K operations, compiled for ``side``; None trains on the images themselves.
      batch_size: views per step.
      precision: of products, see :class:`e3jax.TrainConfig`.
      mesh: devices to split each batch over (default: all), as many of them as ``batch_size``
        divides over. It may span the processes of a job, which then make the same calls in the same
        order; what comes out of them is whole in each.
      steps_per_call: steps per call of ``run_steps``, at most.
      probe: observes the run, e.g. :func:`e3jax.priority.make_probe`; its results are in the log.
        It is called in every step, see :func:`e3jax.training.probe_every`.

    Raises:
      ValueError: if network or precision are unknown, or if the batch does not divide over a job's
        devices.
    """
    mesh = devices.part_for_batch(mesh or devices.device_mesh(), batch_size)
    k = len(operation_set) if operation_set else 1
    network = networks.build(network, k, devices.dtype(precision), devices.AXIS)
    step = Step(network, objective, optimizer, side, probe)
    loader = BatchLoader(mesh, batch_size, k, steps_per_call, fixed=_must_loops_be_fixed(mesh))
    return Trainer(loader, step, operation_set, precision)


def _must_loops_be_fixed(mesh: Mesh) -> bool:
    """Whether the number of turns of a loop should be a program's constant.

    On GPUs the host runs loops: it would wait for each turn to know whether there is another.
    """
    return mesh.devices.flat[0].platform not in ("cpu", "tpu")


class Trainer:
    """A run in pure functions of its state.

    Args:
      loader: where batches come from.
      step: what is done with each batch.
      tables: the operations; None trains on the images themselves.
      precision: of products.

    Attributes:
      mesh: devices that the batch is split over.
      steps_per_call: most steps that a call of ``run_steps`` takes.
      step: what is done with each batch.
    """

    def __init__(
        self,
        loader: BatchLoader,
        step: Step,
        tables: operations.OperationSet | None,
        precision: str,
    ):
        self.mesh, self.steps_per_call = loader.mesh, loader.steps
        self.step, self._loader, self._tables = step, loader, tables
        self._init = devices.run_once(functools.partial(_initial_state, step), self.mesh)
        whole = devices.EVERYWHERE
        in_specs = (whole, SPECS, whole, whole, whole)
        self._train = devices.on_mesh(
            repeat_step(step), self.mesh, precision, in_specs, donate_argnums=0
        )

    def init(self, key: Any, channels: int, extra: Any = ()) -> TrainState:
        """The state before the first step, for images of so many channels."""
        state = self._init(devices.as_key(key), channels)
        return state._replace(extra=devices.place(self.mesh, extra))

    def next_count(self, left: int) -> int:
        """How many steps the next call takes of those that are left.

        So few numbers occur on GPUs that each has a program of its own.
        """
        return self._loader.next_count(left)

    def batches(
        self, state: TrainState, bank: Any, n: int, counts: Iterable[int]
    ) -> Iterator[DrawnBatches]:
        """Yields what each call of ``run_steps`` trains on.

        Of a bank on the host only the images of a call reach the devices, fetched in a thread while
        the call before trains.

        Args:
          state: that the first call begins with.
          bank: :func:`e3jax.training.place_bank`'s, of n images.
          n: images.
          counts: the steps that each call is to do, see :meth:`next_count`.
        """
        return self._loader.batches(state.shuffle_key, state.epoch_position, bank, n, counts)

    def run_steps(
        self,
        state: TrainState,
        batches: DrawnBatches,
        num_steps: int,
        count: int | None = None,
        probe_data: Any = (),
    ) -> tuple[TrainState, StepLog]:
        """Takes some steps; on CPUs and TPUs the program depends on none of these numbers.

        Args:
          state: is donated.
          batches: the next ones that :meth:`batches` yields.
          num_steps: length of the run, and so of its schedule.
          count: steps to take, that :meth:`batches` was asked for (default: ``steps_per_call``).
          probe_data: for the probe.
        """
        count = self.steps_per_call if count is None else count
        taken = None if self._loader.is_fixed else place_number(self.mesh, count)
        numbers = (place_number(self.mesh, num_steps), taken)
        return self._train(state, batches, numbers, self._placed_tables, probe_data)

    @functools.cached_property
    def _placed_tables(self) -> Any:
        # At the first step: the mesh's devices may be absent.
        return devices.place(self.mesh, self._tables)

    def programs(
        self, n: int, channels: int, extra: Any = (), probe_data: Any = ()
    ) -> dict[str, devices.Program]:
        """What a run over n images consists of, "init", "draw" and "train".

        The devices may be absent; ``extra`` and ``probe_data`` may be shapes.
        """
        shapes = functools.partial(devices.shapes, self.mesh)
        key = jax.eval_shape(lambda: devices.key(0))
        state = shapes(self._init.trace(key, channels).out_info._replace(extra=extra))
        place = (state.shuffle_key, state.epoch_position)
        draw = self._loader.program(*place, n, self.step.side**2 * channels)
        batches, _ = draw.function.trace(*draw.arguments).out_info
        batches = jax.tree.map(shapes, batches, SPECS)
        numbers = (np.int32(n), None if self._loader.is_fixed else np.int32(n))
        others = shapes((numbers, self._tables, probe_data))
        return {
            "init": devices.Program(self._init, (key, channels)),
            "draw": draw,
            "train": devices.Program(self._train, (state, batches, *others)),
        }


def _initial_state(step: Step, key: jax.Array, channels: int) -> TrainState:
    images = jnp.zeros((1, step.side, step.side, channels))
    # A network without running statistics has no such collection.
    initialised = step.network.init(jax.random.fold_in(key, 0), images, train=False)
    variables = {"batch_stats": {}} | dict(initialised)  # which Flax may freeze
    return TrainState(
        variables=variables,
        opt_state=step.optimizer.init(variables["params"]),
        step=jnp.int32(0),
        epoch_position=jnp.zeros(3, jnp.int32),
        shuffle_key=jax.random.bits(jax.random.fold_in(key, 1), (sampling.ROUNDS,)),
    )

"""The one pipeline: ``fit`` trains a method on a collection, ``score`` evaluates images with it."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, operations, training
from e3jax.collection.lazy import AnyArray
from e3jax.errors import InputError
from e3jax.training import evaluator, rules
from e3jax.training.checkpoint import TrainCheckpoint
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.training.method import Method
from e3jax.work.progress import Progress, no_progress

OnLog = Callable[[int, training.StepLog], None]


class TrainingError(InputError):
    """A training that failed: what happened at which step, and what to change."""


class Observer(NamedTuple):
    """Observes the steps of a training, and changes nothing.

    Attributes:
      on_log: called with the steps done and the :class:`e3jax.training.StepLog` of those since the
        last call; it may raise.
      probe: see :func:`e3jax.priority.make_probe`; its results are in the log.
      every: steps between calls of the probe.
      data: for the probe.
    """

    on_log: OnLog | None = None
    probe: training.Probe | None = None
    every: int = 50
    data: Any = ()


class Fitted(NamedTuple):
    """A trained method.

    Attributes:
      method, config: what was trained, and how.
      side: of the images, in pixels.
      state: of the training, on its devices.
      num_steps: of the whole training; ``state.step`` of them are done.
      seconds: the training took, with earlier starts of it.
    """

    method: Method
    config: training.TrainConfig
    side: int
    state: training.TrainState
    num_steps: int
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.state.step)


@devices.cached_program
def operation_set(names: str | tuple, side: int) -> operations.OperationSet | None:
    """The operations of a config, compiled for images of a side; None for ""."""
    return operations.compile_operations(names, side) if names else None


def _trainer(method, config, side, n, mesh, probe=None, probe_every=50) -> training.Trainer:
    """A trainer for runs of any length over about n images."""
    batch_size = config.batch(n)
    config = config._replace(steps=None, epochs=None, batch_size=batch_size)
    return _make_trainer(method, config, side, mesh or devices.device_mesh(), probe, probe_every)


@devices.cached_program
def _make_trainer(method, config, side, mesh, probe, probe_every) -> training.Trainer:
    return training.make_trainer(
        config.network,
        training.Objective(method.loss, method.metrics, method.inputs),
        training.make_optimizer(config),
        side,
        operation_set(config.operations, side),
        batch_size=config.batch_size,
        precision=config.precision,
        mesh=mesh,
        # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
        steps_per_call=10 if devices.is_cpu(mesh) else 200,
        probe=probe and training.probe_every(probe_every, probe),
    )


def _evaluator(method, config, side, mesh, operation_indices=None) -> evaluator.Evaluator:
    mesh = mesh or devices.device_mesh()
    config = (config.network, config.operations, config.precision)
    # A rule that is registered later is part of another program.
    known = tuple(rules.RULES.items())
    return _make_evaluator(method, *config, side, mesh, operation_indices, known)


@devices.cached_program
def _make_evaluator(
    method, network, names, precision, side, mesh, operation_indices, known
) -> evaluator.Evaluator:
    return evaluator.make_evaluator(
        network,
        method.evaluate,
        side,
        operation_set(names, side),
        mesh=mesh,
        precision=precision,
        inputs=method.inputs,
        operation_indices=operation_indices,
    )


def fit(
    key: Any,
    images: AnyArray,
    method: Method = E3OUTLIER,
    config: training.TrainConfig | None = None,
    *,
    mesh: Mesh | None = None,
    start: Fitted | None = None,
    until: int | None = None,
    checkpoint: TrainCheckpoint | None = None,
    on_progress: Progress = no_progress,
    observer: Observer = Observer(),  # noqa: B008 - immutable
) -> Fitted:
    """Trains a method on a collection of images.

    Args:
      key: of all randomness: same key, same images, same devices, same numbers; on GPUs, which add
        in another order each time, only after :func:`e3jax.devices.make_deterministic`.
      images: uint8 [n, h, w, c], h = w, n >= 2; an array, or what is indexed like one, see
        :class:`e3jax.collection.lazy.LazyArray`.
      method: what to train.
      config: how; ``method.quick_config()`` if None.
      mesh: devices to split each batch over (default: all).
      start: continues from here, from an earlier call with the same key, images and config.
      until: stops after this step (default: the last); the schedule keeps its full length.
      checkpoint: the state is restored from it, unless ``start`` is given, and saved to it.
      on_progress: called as ("training", steps done, steps of the run).
      observer: of the steps.

    Returns:
      The trained method. Continued from ``start`` or ``checkpoint`` it is the same as in one go,
      bit for bit on a CPU.

    Raises:
      ValueError: for an unknown network, operation family, optimizer, schedule or precision.
      TrainingError: if a step's loss is not finite or exactly 0, or if the network or what the loss
        carries ends as numbers that are not finite.
    """
    n, side = images.shape[:2]
    config = config or method.quick_config()
    trainer = _trainer(method, config, side, n, mesh, observer.probe, observer.every)
    num_steps = config.num_steps(n)
    state, seconds = _start(trainer, key, images, method, start, checkpoint)
    bank = training.place_bank(trainer.mesh, images)
    probe_data = devices.place(trainer.mesh, observer.data)
    began, last_save, step = time.monotonic() - seconds, time.monotonic(), int(state.step)
    logs = _Logs(num_steps, on_progress, observer.on_log)

    def save_if_due(since: float) -> None:
        nonlocal last_save
        if checkpoint is None or time.monotonic() - since < checkpoint.save_seconds:
            return
        logs.report()
        _check_state(state, step)
        checkpoint.save(state, {"seconds": np.float32(time.monotonic() - began)})
        last_save = time.monotonic()

    until = num_steps if until is None else min(until, num_steps)
    rounds = [math.ceil(num_steps * (i + 1) / method.rounds) for i in range(method.rounds)]
    ends = _ends(step, until, trainer.next_count, rounds)
    batches = trainer.batches(state, bank, n, np.diff([step, *ends]).tolist())
    for end in ends:
        state, log = trainer.run_steps(state, next(batches), num_steps, end - step, probe_data)
        logs.add(end, end - step, log)
        step = end
        if step in rounds and method.renew:
            evaluation = _evaluator(method, config, side, mesh).run(
                state.variables, state.extra, images
            )
            state = state._replace(extra=devices.place(trainer.mesh, method.renew(evaluation)))
        save_if_due(last_save)
    logs.report()
    _check_state(state, step)
    save_if_due(began)
    return Fitted(method, config, side, state, num_steps, time.monotonic() - began)


def _start(
    trainer: training.Trainer,
    key: Any,
    images: AnyArray,
    method: Method,
    start: Fitted | None,
    checkpoint: TrainCheckpoint | None,
) -> tuple[training.TrainState, float]:
    """The state that a training goes on from, and the seconds that it took so far."""
    if start:
        # Training donates its state, and the caller's should stay usable.
        return devices.copied(start.state), start.seconds
    state = trainer.init(key, images.shape[-1], method.extra(images))
    restored = checkpoint and checkpoint.restore(state, {"seconds": np.float32(0)})
    return (restored[0], float(restored[1]["seconds"])) if restored else (state, 0.0)


class _Logs:
    """Logs of steps, reported while later steps are under way."""

    def __init__(self, num_steps: int, on_progress: Progress, on_log: OnLog | None):
        self._num_steps, self._on_progress, self._on_log = num_steps, on_progress, on_log
        self._waiting = []

    def add(self, done: int, count: int, log: training.StepLog) -> None:
        """Adds the log of a call, of ``count`` steps, and reports those before it."""
        self._waiting.append((done, count, log))
        self.report(most_waiting=1)

    def report(self, most_waiting: int = 0) -> None:
        """Waits for the logs of all calls but the last few."""
        while len(self._waiting) > most_waiting:
            done, count, log = self._waiting.pop(0)
            log = jax.tree.map(lambda a, n=count: a[:n], devices.fetched(log))
            if self._on_log:
                self._on_log(done, log)
            _check_losses(log.loss, done - count, self._num_steps)
            self._on_progress("training", done, self._num_steps)


_ADVICE = "lower the learning rate, or take another network or more images"


def _check_losses(losses: np.ndarray, before: int, num_steps: int) -> None:
    """Raises a TrainingError for the first of these steps, ``before`` done earlier, that failed."""
    for step, loss in enumerate(losses, before + 1):
        of = f"the loss of step {step} of {num_steps} is"
        if not np.isfinite(loss):
            raise TrainingError(f"training diverged: {of} not finite, {_ADVICE}")
        if loss == 0:
            advice = "take fewer steps, more images or more operations"
            raise TrainingError(f"training has nothing left to learn: {of} exactly 0, {advice}")


def _check_state(state: training.TrainState, step: int) -> None:
    """Raises a TrainingError if the network or what the loss carries is not finite."""
    carried = {"the network's variables": state.variables, "what the loss carries": state.extra}
    for name, arrays in carried.items():
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(devices.fetched(arrays))):
            text = f"{name} after step {step} include numbers that are not finite"
            raise TrainingError(f"training diverged: {text}, {_ADVICE}")


def _ends(step: int, until: int, next_count: Callable[[int], int], rounds: list[int]) -> list[int]:
    """The steps at which the calls of a training end that goes on from a step."""
    ends = [step]
    while ends[-1] < until:
        at = ends[-1]
        ends.append(at + next_count(min(next(r for r in rounds if r > at), until) - at))
    return ends[1:]


def restored(method: Method, config: training.TrainConfig, side: int, variables: Any) -> Fitted:
    """What :func:`score` takes, from a network that was trained before."""
    steps = config.steps or 0
    state = training.TrainState(variables, None, np.int32(steps), None, None)
    return Fitted(method, config, side, state, steps)


def score(
    fitted: Fitted,
    images: AnyArray,
    *,
    mesh: Mesh | None = None,
    on_progress: Progress = no_progress,
    operation_indices: tuple[int, ...] | None = None,
) -> Any:
    """Evaluates images under a trained method.

    Args:
      fitted: by :func:`fit`.
      images: uint8 [n, h, w, c], of the side and channels that it was trained on. A method that
        carries something per image (RDAE) takes those it was trained on, in the same order.
      mesh: devices to split the images over (default: all).
      on_progress: called as ("scoring", images done, n).
      operation_indices: positions of the operations whose views are evaluated; by default all.

    Returns:
      The method's evaluation: :class:`e3jax.training.rules.ViewScores` for E3Outlier. With it,
      ``method.scores[name](key, evaluation)`` are the scores by name.
    """
    n, state = len(images), fitted.state
    evaluator = _evaluator(fitted.method, fitted.config, fitted.side, mesh, operation_indices)
    return evaluator.run(
        state.variables, state.extra, images, lambda done: on_progress("scoring", done, n)
    )


def programs(
    method: Method,
    config: training.TrainConfig,
    shape: tuple[int, int, int, int],
    mesh: Mesh,
    probe: training.Probe | None = None,
    probe_data: Any = (),
) -> dict[str, devices.Program]:
    """What fit and score run for images of a shape [n, h, w, c], on devices that may be absent.

    Returns:
      "init", "draw", "train" and "score"; ``probe_data`` may be shapes.
    """
    n, side, _, channels = shape
    trainer = _trainer(method, config, side, n, mesh, probe)
    evaluator = _evaluator(method, config, side, mesh)
    extra = jax.eval_shape(lambda: method.extra(np.empty(shape, np.uint8)))
    of_training = trainer.programs(n, channels, extra, probe_data)
    state = of_training["train"].arguments[0]
    return of_training | {"score": evaluator.program(state.variables, channels, extra)}

"""How one run is done: what can be trained, which methods each training serves, and their costs.

A run is one training (or a baseline without one) on one contaminated set. A new method is a new
entry of TRAININGS, or another name that one of them serves.
"""

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import live
import numpy as np
import progress
import protocols
import sweep

from e3jax import (
    baselines,
    checkpoint,
    contamination,
    datasets,
    devices,
    networks,
    operations,
    priority,
    scoring,
    training,
)
from e3jax.baselines import autoencoder, isolation_forest, pixels

# A training view costs about three scored ones (forward and backward).
_TRAIN_COST = 3
# An autoencoder's trained image costs about as much as so many scored views of wrn-10-1.
_AUTOENCODER_COST = 5


class Task(NamedTuple):
    """A run, its images and what it is done with. Labels stay where results are written.

    Attributes:
      run: what to do.
      images: uint8 [n, h, w, c].
      mesh: devices to do it on.
      bar: is told how far the run is.
      state: where an unfinished training is kept, see :class:`e3jax.checkpoint.TrainCheckpoint`;
        None keeps nothing.
      save_seconds: between saves there.
      events: ``(config, k, devices) -> EventFiles``, or None.
    """

    run: sweep.Run
    images: np.ndarray
    mesh: jax.sharding.Mesh
    bar: progress.Bar
    state: Path | str | None = None
    save_seconds: float = 0
    events: Callable[[training.TrainConfig, int, int], live.EventFiles] | None = None


class Outcome(NamedTuple):
    """Scores [n] by method, smaller = more outlying, and columns that were measured on the way.

    A measured column is a value, or a dictionary of values by method.
    """

    scores: dict[str, np.ndarray]
    measured: dict[str, Any]


class Training(NamedTuple):
    """Something that is done once on a set and gives the scores of one or more methods.

    Attributes:
      serves: the methods' names in tables. The first is the training's own: its key in TRAININGS,
        ``method`` of its runs, and the score that is drawn.
      describe: ``(protocol, operations) -> dict``: the fields of :class:`sweep.Run` that say how
        it is done, ``config`` with all constants its result depends on.
      do: ``task -> (scores by name, measured columns)``.
      cost: ``(run, n) -> int``: work on n images, in views scored by wrn-10-1.
      on_devices: it computes on the task's mesh. If not, it takes no accelerator on a cluster, and
        one process of a job does it for all.
    """

    serves: tuple[str, ...]
    describe: Callable[[protocols.Protocol, str], dict[str, Any]]
    do: Callable[[Task], tuple[dict[str, np.ndarray], dict[str, Any]]]
    cost: Callable[[sweep.Run, int], int]
    on_devices: bool


def do(task: Task) -> Outcome:
    """Does a run, from its images to scores."""
    scores, measured = TRAININGS[task.run.method].do(task)
    unknown = dict.fromkeys(("steps", "pretext_accuracy", "train_seconds", "warning"), "")
    where = f"{task.mesh.size} x {task.mesh.devices.flat[0].device_kind}"
    known = {
        "precision": task.run.config.get("precision", "float32"),
        "device": where,
        "versions": sweep.versions(),
    }
    return Outcome(scores, unknown | known | measured)


def draw(dataset: datasets.Dataset, run: sweep.Run) -> contamination.Contaminated:
    """The contaminated set of a run."""
    what = (run.inlier_class, run.ratio, run.seed)
    return contamination.contaminate(
        dataset.images, dataset.labels, *what, max_images=run.max_images
    )


def size(dataset: datasets.Dataset, run: sweep.Run) -> int:
    """Images in a run's set, or a few more: known before it is drawn."""
    inliers = int(np.sum(dataset.labels == run.inlier_class))
    return min(int(inliers / (1 - run.ratio)) + 1, run.max_images or 12_000)


def cost(dataset: datasets.Dataset, run: sweep.Run) -> int:
    """Work of a run, in views scored by wrn-10-1."""
    return TRAININGS[run.method].cost(run, size(dataset, run))


# --- E3Outlier -------------------------------------------------------------------------------


def _describe_e3outlier(protocol: protocols.Protocol, operation_names: str) -> dict[str, Any]:
    return {
        "network": protocol.config.network,
        "operations": operation_names,
        "protocol": protocol.name,
        "config": protocol.config._asdict(),
    }


def _cost_e3outlier(run: sweep.Run, n: int) -> int:
    config, k = training.TrainConfig(**run.config), len(operations.paper_operations(run.operations))
    views = _TRAIN_COST * config.num_steps(n, k) * config.batch_size + n * k
    return views * _view_cost(config.network)


@functools.cache
def _view_cost(network: str) -> int:
    """What scoring a view costs, in those of wrn-10-1, by the FLOPs of both."""
    flops, unit = (
        networks.forward_flops(networks.build(name, 111), (32, 32, 1))
        for name in (network, "wrn-10-1")
    )
    return max(round(flops / unit), 1)


class _Programs(NamedTuple):
    trainer: training.Trainer
    score: scoring.Scorer
    k: int


_building = threading.Lock()


@functools.cache
def _build(
    config: training.TrainConfig, operation_names: str, mesh: jax.sharding.Mesh, watched: bool
) -> _Programs:
    """What runs of one kind on the same devices share, so that it is compiled once."""
    operation_set = operations.operation_set(operation_names)
    # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
    chunk = 10 if devices.is_cpu(mesh) else 200
    probe = None
    if watched:
        probe = priority.make_probe(config.network, operation_set, config.precision)
    return _Programs(
        training.make_trainer(config, operation_set, mesh, chunk, probe),
        scoring.Scorer(config.network, operation_set, mesh, config.precision),
        len(operation_set),
    )


def _e3outlier(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        course = _Course(task, stack)
        course.advance(course.steps())
    scores, score_seconds = course.score()
    names = {"e3outlier": scores.ne, "e3outlier-pl": scores.pl, "e3outlier-mp": scores.mp}
    forest_key = jax.random.fold_in(jax.random.key(task.run.seed), task.run.inlier_class)
    names["ssd-if"] = isolation_forest.score(forest_key, scores.representation)
    return names, {
        "steps": course.steps(),
        "pretext_accuracy": float(scores.accuracy.mean()),
        "train_seconds": course.seconds,
        "score_seconds": score_seconds,
        "warning": scoring.health(scores, course.programs.k),
    }


class _Course:
    """A training under way: it is kept on disk, continued from there, and told to the task's bar.

    Args:
      task: what to train on, and how.
      stack: closes what is open in the end.
      notes: arrays of 4-byte numbers that are kept with the state; the caller fills them.
    """

    def __init__(
        self, task: Task, stack: contextlib.ExitStack, notes: dict[str, np.ndarray] | None = None
    ):
        self.task, self.config = task, training.TrainConfig(**task.run.config)
        with _building:  # two threads on the same devices would both build
            self.programs = _build(
                self.config, task.run.operations, task.mesh, task.events is not None
            )
        self.mesh = self.programs.trainer.mesh
        self.bank = training.place_bank(self.mesh, task.images)
        key = jax.random.fold_in(jax.random.key(task.run.seed), task.run.inlier_class)
        self.state = self.programs.trainer.init(key, task.images.shape[-1])
        self.notes, self.saved, self.events = notes or {}, None, None
        self.seconds = 0.0  # of training, with those of an earlier start
        if task.events:
            events = task.events(self.config, self.programs.k, self.mesh.size)
            self.events = stack.enter_context(contextlib.closing(events))
        if task.state:
            self.saved = checkpoint.TrainCheckpoint(task.state)
            stack.enter_context(contextlib.closing(self.saved))
            if restored := self.saved.restore(self.state, self._kept()):
                self.state, self.notes = restored
                self.seconds = float(self.notes.pop("seconds"))
                task.bar.skip(int(self.state.step) * self._step_cost())
        self.last_save = time.monotonic()

    def steps(self, epochs: float | None = None) -> int:
        """Of the whole training, or of so many epochs."""
        config = self.config._replace(epochs=epochs) if epochs else self.config
        return config.num_steps(len(self.task.images), self.programs.k)

    def advance(self, until: int) -> None:
        """Trains to this step."""
        task, began, before = self.task, time.monotonic(), self.seconds
        probe_data = devices.place(self.mesh, self.events.probe_set) if self.events else ()

        def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
            log = jax.device_get(log)
            if self.events:
                self.events.write(int(state.step), log)
            task.bar.advance(
                int(np.isfinite(log.accuracy).sum()) * self._step_cost(),
                f"loss {np.nanmean(log.loss):.3f}, pretext accuracy {np.nanmean(log.accuracy):.0%}",
            )
            self.state, self.seconds = state, before + time.monotonic() - began
            if self.saved and time.monotonic() - self.last_save >= task.save_seconds:
                self._save()

        self.state = training.train(
            self.programs.trainer,
            self.state,
            self.bank,
            len(task.images),
            until,
            on_chunk,
            probe_data,
        )
        if self.saved and self.seconds >= task.save_seconds:
            self._save()

    def _step_cost(self) -> int:
        return self.config.batch_size * _TRAIN_COST * _view_cost(self.config.network)

    def _save(self) -> None:
        self.saved.save(self.state, self._kept())
        self.last_save = time.monotonic()

    def _kept(self) -> dict[str, np.ndarray]:
        return self.notes | {"seconds": np.float32(self.seconds)}

    def score(self) -> tuple[scoring.Scores, float]:
        """Scores of the present state, and the seconds they took."""
        began, done = time.monotonic(), 0
        cost = self.programs.k * _view_cost(self.config.network)

        def on_block(images_done: int) -> None:
            nonlocal done
            self.task.bar.advance((images_done - done) * cost, "scoring")
            done = images_done

        scores = self.programs.score(self.state.variables, self.task.images, on_block)
        return scores, time.monotonic() - began


# Fig. 6 d: one training, scored after every epoch.
_EPOCHS = 10
_EPOCH_METHODS = {f"e3outlier-epoch{e:02d}": e for e in range(_EPOCHS, 0, -1)}


def _describe_epochs(protocol: protocols.Protocol, operation_names: str) -> dict[str, Any]:
    """The protocol for ten epochs; at a constant rate, or the first nine would be unfinished."""
    config = protocol.config._replace(steps=None, epochs=_EPOCHS)
    if config.schedule != "constant":
        config = config._replace(schedule="constant", learning_rate=1e-3)
    changed = protocol._replace(name=f"{protocol.name}-{_EPOCHS}epochs", config=config)
    return _describe_e3outlier(changed, operation_names)


def _cost_epochs(run: sweep.Run, n: int) -> int:
    k = len(operations.paper_operations(run.operations))
    return _cost_e3outlier(run, n) + (_EPOCHS - 1) * n * k * _view_cost(run.network)


def _epochs(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    shape, began = (_EPOCHS, len(task.images)), time.monotonic()
    notes = {name: np.full(shape, np.nan, np.float32) for name in ("ne", "accuracy")}
    with contextlib.ExitStack() as stack:
        course = _Course(task, stack, notes)
        for e in range(_EPOCHS):
            end = course.steps(e + 1)
            course.advance(end)
            if course.state.step == end:  # else an earlier start was further
                scores, _ = course.score()
                course.notes["ne"][e], course.notes["accuracy"][e] = scores.ne, scores.accuracy
    ne, accuracy = course.notes["ne"], course.notes["accuracy"].mean(1)
    scores, measured = {}, {"steps": {}, "pretext_accuracy": {}, "warning": {}}
    for method, epoch in _EPOCH_METHODS.items():
        scores[method], learnt = ne[epoch - 1], float(accuracy[epoch - 1])
        measured["steps"][method] = course.steps(epoch)
        measured["pretext_accuracy"][method] = learnt
        measured["warning"][method] = scoring.values_health(
            scores[method]
        ) or scoring.pretext_health(learnt, course.programs.k)
    seconds = {"train_seconds": course.seconds}
    return scores, measured | seconds | {"score_seconds": time.monotonic() - began - course.seconds}


# --- The methods that the paper compares with ------------------------------------------------


def _describe_compared(name: str) -> Callable[[protocols.Protocol, str], dict[str, Any]]:
    method = baselines.METHODS[name]

    def describe(protocol: protocols.Protocol, operation_names: str) -> dict[str, Any]:
        quick = protocol.name.startswith("quick")
        config = method.quick_config() if quick else method.paper_config()
        if changed := re.search(r"-(\d+)steps", protocol.name):
            config = config._replace(steps=int(changed[1]))
        what = {"network": "", "operations": "", "protocol": protocol.name}
        return what | {"config": config._asdict()}

    return describe


def _cost_compared(run: sweep.Run, n: int) -> int:
    config = autoencoder.Config(**run.config)
    return _AUTOENCODER_COST * config.num_steps(n) * config.batch_size


def _compared(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    run, start, done = task.run, time.monotonic(), 0
    config = autoencoder.Config(**run.config)

    def on_progress(steps: int, total: int, note: str) -> None:
        nonlocal done
        task.bar.advance(_AUTOENCODER_COST * (steps - done) * config.batch_size, note)
        done = steps

    key = jax.random.fold_in(jax.random.key(run.seed), run.inlier_class)
    score = baselines.METHODS[run.method].score
    scores, info = score(key, task.images, config, task.mesh, on_progress)
    seconds = {"train_seconds": time.monotonic() - start, "score_seconds": ""}  # one number
    return scores, seconds | {"steps": info.steps, "warning": info.warning}


# --- Pixels ----------------------------------------------------------------------------------


def _describe_pixels(protocol: protocols.Protocol, operation_names: str) -> dict[str, Any]:
    return {"network": "", "operations": "", "protocol": "", "config": {}}


def _pixels(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    start = time.monotonic()
    scores = pixels.score(jax.random.key(task.run.seed), task.images, task.run.method)
    return scores, {"score_seconds": time.monotonic() - start}


# --- The one place where methods are added ---------------------------------------------------

TRAININGS = {
    kind.serves[0]: kind
    for kind in (
        Training(
            serves=("e3outlier", "e3outlier-pl", "e3outlier-mp", "ssd-if"),
            describe=_describe_e3outlier,
            do=_e3outlier,
            cost=_cost_e3outlier,
            on_devices=True,
        ),
        Training(tuple(_EPOCH_METHODS), _describe_epochs, _epochs, _cost_epochs, on_devices=True),
        *(
            Training(
                serves, _describe_compared(serves[0]), _compared, _cost_compared, on_devices=True
            )
            for serves in (
                ("cae", "cae-if"),
                ("drae",),
                ("rdae",),
                ("rdae-as-published",),
                ("dagmm",),
                ("cae-views",),
                ("cae-64",),
            )
        ),
        *(
            Training((name,), _describe_pixels, _pixels, lambda run, n: 0, on_devices=False)
            for name in pixels.METHODS
        ),
    )
}
# By the name of a method: the training that serves it.
METHODS = {name: key for key, kind in TRAININGS.items() for name in kind.serves}
DEFAULT_METHODS = ("e3outlier", *pixels.METHODS)
# What "all" means: Table 1, RDAE as published and pixels, without the paper's controls.
_CONTROLS = (*_EPOCH_METHODS, "cae-views", "cae-64")
TABLE_METHODS = tuple(name for name in METHODS if name not in _CONTROLS)

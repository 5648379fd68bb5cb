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

from e3jax import baselines, checkpoint, datasets, operations, priority, scoring, training
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
      capacity: images of the sweep's largest set: filled up to it, all sets share one shape.
      bar: is told how far the run is.
      state: where an unfinished training is kept, see :class:`e3jax.checkpoint.TrainCheckpoint`;
        None keeps nothing.
      save_seconds: between saves there.
      events: ``(config, k) -> EventFiles``, or None.
    """

    run: sweep.Run
    images: np.ndarray
    mesh: jax.sharding.Mesh
    capacity: int
    bar: progress.Bar
    state: Path | str | None = None
    save_seconds: float = 0
    events: Callable[[training.TrainConfig, int], live.EventFiles] | None = None


class Outcome(NamedTuple):
    """Scores [n] by method, smaller = more outlying, and columns that were measured on the way."""

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
      cost: ``(run, n) -> int``: work on n images, in scored views of the protocol's network.
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
    return Outcome(scores, unknown | {"device": where, "versions": sweep.versions()} | measured)


def draw(dataset: datasets.Dataset, run: sweep.Run) -> datasets.Contaminated:
    """The contaminated set of a run."""
    what = (run.inlier_class, run.ratio, run.seed)
    return datasets.contaminate(dataset.images, dataset.labels, *what, max_images=run.max_images)


def size(dataset: datasets.Dataset, run: sweep.Run) -> int:
    """Images in a run's set, or a few more: known before it is drawn."""
    inliers = int(np.sum(dataset.labels == run.inlier_class))
    return min(int(inliers / (1 - run.ratio)) + 1, run.max_images or 12_000)


def cost(dataset: datasets.Dataset, run: sweep.Run) -> int:
    """Work of a run, in scored views."""
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
    return _TRAIN_COST * config.num_steps(n, k) * config.batch_size + n * k


class _Programs(NamedTuple):
    trainer: training.Trainer
    score: Callable[..., scoring.Scores]
    k: int


_building = threading.Lock()


@functools.cache
def _build(
    config: training.TrainConfig, operation_names: str, mesh: jax.sharding.Mesh, watched: bool
) -> _Programs:
    """What runs of one kind on the same devices share, so that it is compiled once."""
    operation_set = operations.operation_set(operation_names)
    # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
    chunk = 10 if mesh.devices.flat[0].platform == "cpu" else 200
    probe = None
    if watched:
        probe = priority.make_probe(config.network, operation_set, config.dtype)
    return _Programs(
        training.make_trainer(config, operation_set, mesh, chunk, probe),
        scoring.make_scorer(config.network, operation_set, mesh, config.dtype),
        len(operation_set),
    )


def _e3outlier(task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    config = training.TrainConfig(**task.run.config)
    with _building:  # two threads on the same devices would both build
        programs = _build(config, task.run.operations, task.mesh, task.events is not None)
    k = programs.k
    state, train_seconds = _train(task, config, programs)
    start, done = time.monotonic(), 0

    def on_block(images_done: int) -> None:
        nonlocal done
        task.bar.advance((images_done - done) * k, "scoring")
        done = images_done

    scores = programs.score(state.variables, task.images, on_block)
    names = {"e3outlier": scores.ne, "e3outlier-pl": scores.pl, "e3outlier-mp": scores.mp}
    forest_key = jax.random.fold_in(jax.random.key(task.run.seed), task.run.inlier_class)
    names["ssd-if"] = isolation_forest.score(forest_key, scores.representation)
    return names, {
        "steps": config.num_steps(len(task.images), k),
        "pretext_accuracy": float(scores.accuracy.mean()),
        "train_seconds": train_seconds,
        "score_seconds": time.monotonic() - start,
        "warning": scoring.health(scores, k),
    }


def _train(
    task: Task, config: training.TrainConfig, programs: _Programs
) -> tuple[training.TrainState, float]:
    """The trained state and the seconds it took, with those of an earlier start."""
    run, trainer, bar, n = task.run, programs.trainer, task.bar, len(task.images)
    bank = training.place_bank(task.mesh, task.images, task.capacity)
    key = jax.random.fold_in(jax.random.key(run.seed), run.inlier_class)
    state, before, saved, events = trainer.init(key, task.images.shape[-1]), 0.0, None, None
    with contextlib.ExitStack() as stack:
        if task.events:
            events = stack.enter_context(contextlib.closing(task.events(config, programs.k)))
        if task.state:
            saved = checkpoint.TrainCheckpoint(task.state)
            stack.enter_context(contextlib.closing(saved))
            if restored := saved.restore(state):
                state, before = restored
                bar.skip(int(state.step) * config.batch_size * _TRAIN_COST)
        start = last_save = time.monotonic()
        probe_data = training.place(task.mesh, events.probe_set) if events else ()

        def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
            nonlocal last_save
            log = jax.device_get(log)
            if events:
                events.write(int(state.step), log)
            bar.advance(
                int(np.isfinite(log.accuracy).sum()) * config.batch_size * _TRAIN_COST,
                f"loss {np.nanmean(log.loss):.3f}, pretext accuracy {np.nanmean(log.accuracy):.0%}",
            )
            if saved and time.monotonic() - last_save >= task.save_seconds:
                saved.save(state, before + time.monotonic() - start)
                last_save = time.monotonic()

        total = config.num_steps(n, programs.k)
        state = training.train(trainer, state, bank, n, total, on_chunk, probe_data)
        train_seconds = before + time.monotonic() - start
        if saved and train_seconds >= task.save_seconds:
            saved.save(state, train_seconds)
    return state, train_seconds


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
            )
        ),
        *(
            Training((name,), _describe_pixels, _pixels, lambda run, n: 0, on_devices=False)
            for name in pixels.METHODS
        ),
    )
}
# Which training serves a method.
METHODS = {name: key for key, kind in TRAININGS.items() for name in kind.serves}
DEFAULT_METHODS = ("e3outlier", *pixels.METHODS)

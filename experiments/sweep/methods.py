"""What can be run: each entry is done once on a set and gives the scores of one or more methods.

A method of the library is an entry by being in :data:`e3jax.baselines.METHODS`; anything else is
added to ``ENTRIES``.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import baselines, checkpoint, devices, files, fitting, priority, scoring
from e3jax.baselines import pixels
from e3jax.methods import E3OUTLIER, Method
from e3jax.training import StepLog, TrainConfig
from sweep.curves import TensorBoardWriter
from sweep.plan import Protocol, Run
from sweep.provenance import versions

# By method its "scores" [n], smaller = more outlying, and columns that were measured on the way.
Outcome = dict[str, dict[str, Any]]


class Watch(NamedTuple):
    """What a run reports and keeps while it is under way; by default nothing.

    Attributes:
      on_progress, on_log, save_seconds: see :func:`e3jax.fitting.fit`.
      state: the folder of an unfinished training.
      writer: ``(config, devices) -> TensorBoardWriter``.
    """

    on_progress: fitting.Progress = fitting.silent
    on_log: fitting.OnLog = lambda steps, log: None
    save_seconds: float = 180
    state: Path | None = None
    writer: Callable[[TrainConfig, int], TensorBoardWriter] | None = None


class Entry(NamedTuple):
    """Something that can be run.

    Attributes:
      scores: the methods' names in tables. The first is the entry's own: ``method`` of its runs,
        and the score that is drawn.
      describe: ``(protocol, grey) -> dict``, the fields of :class:`sweep.plan.Run` that say how.
      do: ``(run, images, watch, mesh) -> Outcome``.
      on_devices: it computes on the mesh. If not, it takes no accelerator on a cluster, and one
        process of a job does it for all.
    """

    scores: Sequence[str]
    describe: Callable[[Protocol, bool], dict[str, Any]]
    do: Callable[[Run, np.ndarray, Watch, Mesh], Outcome]
    on_devices: bool = True

    @property
    def name(self) -> str:
        return self.scores[0]


def perform(
    do: Callable, run: Run, bank: np.ndarray, ids: np.ndarray, watch: Watch, *, mesh: Mesh
) -> Outcome:
    """Does a run, on the images ``bank[ids]``. Labels stay where results are written."""
    outcome = do(run, bank[ids], watch, mesh)
    common = dict.fromkeys(("steps", "pretext_accuracy", "train_seconds"), "")
    common |= {"precision": run.config.get("precision", "float32")}
    common |= {"device": devices.describe(mesh), "versions": versions()}
    return {method: common | columns for method, columns in outcome.items()}


# --- Trained methods -------------------------------------------------------------------------


def train(run: Run, images: np.ndarray, watch: Watch, mesh: Mesh, epochs=(None,)) -> Outcome:
    """Trains a method of the library and gives all of its scores.

    With ``epochs``, numbers from 1, it gives the NE scores after each of them instead. Those of
    finished epochs are kept with the state of the training, so that nothing is done twice.
    """
    config, outcome, fitted, seconds = TrainConfig(**run.config), {}, None, 0.0
    with contextlib.ExitStack() as stack:
        how = _options(run, config, watch, mesh, stack)
        for epoch in epochs:
            end = (config._replace(epochs=epoch) if epoch else config).num_steps(len(images))
            fitted = fitting.fit(run.key, images, start=fitted, until=end, **how)
            began = time.monotonic()
            # A state that was restored may be beyond an epoch, whose scores were kept before.
            found = _score(fitted, run, images, watch, mesh, epoch, fitted.steps > end)
            seconds += time.monotonic() - began
            of_all = {"steps": end, "pretext_accuracy": found.pop("pretext_accuracy", "")}
            outcome |= {name: of_all | {"scores": scores} for name, scores in found.items()}
    measured = {"train_seconds": fitted.seconds, "score_seconds": seconds}
    return {name: columns | measured for name, columns in outcome.items()}


def _options(run: Run, config: TrainConfig, watch: Watch, mesh: Mesh, stack) -> dict[str, Any]:
    """Of the library's ``fit``: all that a run adds to it; ``stack`` closes what is open."""
    how = {"method": _method(run), "config": config, "mesh": mesh, "on_log": watch.on_log}
    how |= {"on_progress": watch.on_progress, "save_seconds": watch.save_seconds}
    if watch.state:
        saved = checkpoint.TrainCheckpoint(watch.state)
        how["checkpoint"] = stack.enter_context(contextlib.closing(saved))
    if watch.writer:
        writer = stack.enter_context(contextlib.closing(watch.writer(config, mesh.size)))
        if how["method"] is E3OUTLIER:
            how["probe"] = priority.make_probe(config.network, config.k, config.precision)
            how["probe_data"] = writer.probe_set

        def on_log(steps: int, log: StepLog) -> None:
            watch.on_log(steps, log)
            writer.write(steps, log)

        how["on_log"] = on_log
    return how


def _score(fitted, run: Run, images, watch: Watch, mesh: Mesh, epoch, beyond) -> dict[str, Any]:
    """Scores by name, and the pretext accuracy; those kept if the training is beyond the epoch."""
    # The other processes of a job keep none, and nobody asks for theirs.
    keeps = epoch and watch.state and jax.process_index() == 0
    kept = watch.state / f"epoch{epoch:02d}.npz" if keeps else None
    if beyond:
        return {name: array[()] for name, array in np.load(kept).items()} if keeps else {}
    evaluation = fitting.score(fitted, images, mesh=mesh, on_progress=watch.on_progress)
    rules = fitted.method.scores
    if epoch:
        rules = {f"e3outlier-epoch{epoch:02d}": rules["e3outlier"]}
    found = {name: np.asarray(rule(run.key, evaluation)) for name, rule in rules.items()}
    if isinstance(evaluation, scoring.ViewScores):
        found["pretext_accuracy"] = float(evaluation.accuracy.mean())
    if keeps:
        files.write_atomically(kept, lambda file: np.savez(file, **found))
    return found


def _method(run: Run) -> Method:
    return baselines.METHODS.get(run.method, E3OUTLIER)


def _describe(method: Method, protocol: Protocol, grey: bool) -> dict[str, Any]:
    config = protocol.config(method, grey)
    own = method is E3OUTLIER
    return {
        "protocol": protocol.name,
        "network": config.network if own else "",
        "operations": config.operations if own else "",
        "config": config._asdict(),
        # A score that a method gains is missing in what was run before.
        "constants": {"scores": list(method.scores), **method.constants},
    }


# Fig. 6 d: one training, scored after every epoch.
EPOCHS = 10


def _describe_epochs(protocol: Protocol, grey: bool) -> dict[str, Any]:
    """The protocol for ten epochs; at a constant rate, or the first nine would be unfinished."""
    described = _describe(E3OUTLIER, protocol, grey)
    changed = {"steps": None, "epochs": EPOCHS}
    if described["config"]["schedule"] != "constant":
        changed |= {"schedule": "constant", "learning_rate": 1e-3}
    name = f"{protocol.name}-{EPOCHS}epochs"
    return described | {"protocol": name, "config": described["config"] | changed, "constants": {}}


def _trained(method: Method) -> Entry:
    return Entry(tuple(method.scores), functools.partial(_describe, method), train)


# --- Pixels ----------------------------------------------------------------------------------


def _pixels(name: str) -> Entry:
    how = {"protocol": "", "network": "", "operations": "", "config": {}}
    how["constants"] = pixels.METHODS[name]
    return Entry((name,), lambda protocol, grey: how, score_pixels, on_devices=False)


def score_pixels(run: Run, images: np.ndarray, watch: Watch, mesh: Mesh) -> Outcome:
    began = time.monotonic()
    [scores] = pixels.score(jax.random.key(run.train_seed), images, run.method).values()
    return {run.method: {"scores": scores, "score_seconds": time.monotonic() - began}}


# --- The one place where entries are added ---------------------------------------------------

_EPOCH_SCORES = [f"e3outlier-epoch{e:02d}" for e in range(EPOCHS, 0, -1)]
_train_epochs = functools.partial(train, epochs=range(1, EPOCHS + 1))
ENTRIES = [
    _trained(E3OUTLIER),
    Entry(_EPOCH_SCORES, _describe_epochs, _train_epochs),
    *map(_trained, baselines.METHODS.values()),
    *map(_pixels, pixels.METHODS),
]
# By the name of each method that they score.
METHODS = {name: entry for entry in ENTRIES for name in entry.scores}
DEFAULT_METHODS = ("e3outlier", *pixels.METHODS)
# What "all" means: Table 1, RDAE as published and pixels, without the paper's controls.
_CONTROLS = (*_EPOCH_SCORES, "cae-views", "cae-64")
TABLE_METHODS = tuple(name for name in METHODS if name not in _CONTROLS)

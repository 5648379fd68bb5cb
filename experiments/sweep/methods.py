"""What can be run: each entry is done once on a set and gives the scores of one or more methods.

A method is an entry by being in :data:`e3jax.methods.METHODS`. Besides there is one training of
E3Outlier that is scored after every epoch.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, methods
from e3jax.training import TrainConfig, fitting
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.training.method import Evaluated, Method
from e3jax.training.rules import ViewScores
from e3jax.work import files, progress
from sweep.plan import OURS, Protocol, Run
from sweep.provenance import versions

# By method its "scores" [n], smaller = more outlying, and columns that were measured on the way.
Outcome = dict[str, dict[str, Any]]


class Entry(NamedTuple):
    """Something that can be run.

    Attributes:
      scores: the methods' names in tables. The first is the entry's own: ``method`` of its runs,
        and the score that is drawn.
      describe: ``(protocol, grey) -> dict``, the fields of :class:`sweep.plan.Run` that say how.
      do: ``(run, images, mesh, options) -> Outcome``, with options of
      :func:`e3jax.training.fitting.fit`.
        Without a training it takes no accelerator on a cluster, and one process of a job does it
        for all.
    """

    scores: Sequence[str]
    describe: Callable[[Protocol, bool], dict[str, Any]]
    do: Callable[[Run, np.ndarray, Mesh, dict[str, Any]], Outcome]

    @property
    def name(self) -> str:
        return self.scores[0]


def perform(
    do: Callable, run: Run, bank: np.ndarray, ids: np.ndarray, options: dict, *, mesh=None
) -> Outcome:
    """Does a run on the images ``bank[ids]``, by default on all devices of this process.

    Labels stay where results are written.
    """
    mesh = mesh or devices.device_mesh()
    outcome = do(run, bank[ids], mesh, options)
    common = dict.fromkeys(("steps", "pretext_accuracy", "train_seconds"), "")
    common |= {"precision": run.config.get("precision", "float32")}
    common |= {"device": devices.describe(mesh), "versions": versions()}
    return {method: common | columns for method, columns in outcome.items()}


def train(run: Run, images: np.ndarray, mesh: Mesh, options: dict, epochs=(None,)) -> Outcome:
    """Trains a method of the library and gives all of its scores.

    With ``epochs``, numbers from 1, it gives the NE scores after each of them instead. Those of
    finished epochs are kept with the state of the training, so that nothing is done twice.
    """
    method, config = methods.METHODS.get(run.method, E3OUTLIER), TrainConfig(**run.config)
    fitted, outcome, seconds, scores, kept = None, {}, 0.0, method.scores, None
    for epoch in epochs:
        end = config.num_steps(len(images))
        if epoch:
            end = config._replace(epochs=epoch).num_steps(len(images))
            scores = {f"e3outlier-epoch{epoch:02d}": method.scores["e3outlier"]}
            # The other processes of a job keep none, and nobody asks for theirs.
            if "checkpoint" in options and jax.process_index() == 0:
                kept = options["checkpoint"].folder / f"epoch{epoch:02d}.npz"
        options = {"mesh": mesh} | options | {"start": fitted, "until": end}
        fitted = fitting.fit(run.key, images, method, config, **options)
        began = time.monotonic()
        if fitted.steps > end:  # it was restored from beyond this epoch
            results = {name: a[()] for name, a in np.load(kept).items()} if kept else {}
        else:
            results = _evaluate(fitted, run, images, mesh, scores, options)
            if kept:
                files.write_atomically(kept, partial(np.savez, **results))
        seconds += time.monotonic() - began
        columns = {"steps": end, "pretext_accuracy": results.pop("pretext_accuracy", "")}
        outcome |= {name: columns | {"scores": values} for name, values in results.items()}
    measured = {"train_seconds": fitted.seconds, "score_seconds": seconds}
    return {name: columns | measured for name, columns in outcome.items()}


def _evaluate(fitted, run: Run, images, mesh: Mesh, scores, options: dict) -> dict[str, Any]:
    """Scores by name, and the pretext accuracy where there are pseudo labels."""
    on_progress = options.get("on_progress", progress.no_progress)
    evaluation = fitting.score(fitted, images, mesh=mesh, on_progress=on_progress)
    evaluated = Evaluated(run.key, images, evaluation, mesh)
    results = {name: np.asarray(score(evaluated)) for name, score in scores.items()}
    if isinstance(evaluation, ViewScores):
        results["pretext_accuracy"] = float(evaluation.accuracy.mean())
    return results


def score_untrained(run: Run, images: np.ndarray, mesh: Mesh, options: dict) -> Outcome:
    """Scores by a method without training."""
    began, method = time.monotonic(), methods.METHODS[run.method]
    # Pixels' scores draw the same for all classes of a seed.
    key = jax.random.key(run.train_seed) if run.method.startswith("pixel") else run.key
    scores = method.scores[run.method](Evaluated(key, images, mesh=mesh))
    return {run.method: {"scores": scores, "score_seconds": time.monotonic() - began}}


def _describe(method: Method, protocol: Protocol, grey: bool) -> dict[str, Any]:
    if method.loss is None:
        nothing = dict.fromkeys(("protocol", "network", "operations"), "")
        return nothing | {"config": {}, "constants": method.constants()}
    config, is_ours = protocol.config(method, grey), method.name in OURS
    return {
        "protocol": protocol.name,
        "network": config.network if is_ours else "",
        "operations": config.operations if is_ours else "",
        "config": config._asdict(),
        # A score that a method gains is missing in what was run before.
        "constants": {"scores": list(method.scores), **method.constants()},
    }


# Fig. 6 d: one training, scored after every epoch.
EPOCHS = 10


def _describe_epochs(protocol: Protocol, grey: bool) -> dict[str, Any]:
    """The protocol for ten epochs; at a constant rate, or the first nine would be unfinished."""
    described = _describe(E3OUTLIER, protocol, grey) | {"constants": {}}
    described["protocol"] += f"-{EPOCHS}epochs"
    described["config"] |= {"steps": None, "epochs": EPOCHS}
    if described["config"]["schedule"] != "constant":
        described["config"] |= {"schedule": "constant", "learning_rate": 1e-3}
    return described


_EPOCH_SCORES = [f"e3outlier-epoch{e:02d}" for e in range(EPOCHS, 0, -1)]
_UNTRAINED = [name for name, method in methods.METHODS.items() if method.loss is None]
# By the name of each method that they score.
METHODS: dict[str, Entry] = {}


def register(method: Method) -> None:
    """Adds a method of the library, or replaces the one of its name, in this process."""
    methods.METHODS[method.name] = method
    do = train if method.loss else score_untrained
    entry = Entry(tuple(method.scores), partial(_describe, method), do)
    METHODS.update(dict.fromkeys(entry.scores, entry))


for _method in list(methods.METHODS.values()):
    register(_method)
_of_epochs = partial(train, epochs=range(1, EPOCHS + 1))
METHODS |= dict.fromkeys(_EPOCH_SCORES, Entry(_EPOCH_SCORES, _describe_epochs, _of_epochs))
DEFAULT_METHODS = ("e3outlier+", "e3outlier", *_UNTRAINED)
# What "all" means: Table 1, RDAE as published and all without training, but no controls.
_CONTROLS = {*_EPOCH_SCORES, "cae-views", "cae-64"}
TABLE_METHODS = tuple(name for name in METHODS if name not in _CONTROLS)

"""What can be run: each entry is done once on a set and gives the scores of one or more methods.

A method of the library is an entry by being in :data:`e3jax.methods.METHODS`; anything else is
added to ``ENTRIES``.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, methods
from e3jax.evidence import descriptors, fusion
from e3jax.methods import pixels
from e3jax.training import TrainConfig, fitting
from e3jax.training.e3outlier import E3OUTLIER, FACTORED
from e3jax.training.method import Method
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


def perform(do, run: Run, bank: np.ndarray, ids, options: dict, *, mesh: Mesh) -> Outcome:
    """Does a run, on the images ``bank[ids]``. Labels stay where results are written."""
    outcome = do(run, bank[ids], mesh, options)
    common = dict.fromkeys(("steps", "pretext_accuracy", "train_seconds"), "")
    common |= {"precision": run.config.get("precision", "float32")}
    common |= {"device": devices.describe(mesh), "versions": versions()}
    return {method: common | columns for method, columns in outcome.items()}


# --- Trained methods -------------------------------------------------------------------------


FUSED = "e3outlier+"
# What a run trains, by its method; E3Outlier if it is not here.
_TRAINED = methods.METHODS | {FUSED: FACTORED}


def train(run: Run, images: np.ndarray, mesh: Mesh, options: dict, epochs=(None,)) -> Outcome:
    """Trains a method of the library and gives all of its scores.

    With ``epochs``, numbers from 1, it gives the NE scores after each of them instead. Those of
    finished epochs are kept with the state of the training, so that nothing is done twice.
    """
    method, config = _TRAINED.get(run.method, E3OUTLIER), TrainConfig(**run.config)
    fitted, outcome, seconds, scores, kept = None, {}, 0.0, method.scores, None
    for epoch in epochs:
        end = config.num_steps(len(images))
        if epoch:
            end = config._replace(epochs=epoch).num_steps(len(images))
            scores = {f"e3outlier-epoch{epoch:02d}": method.scores["e3outlier"]}
            # The other processes of a job keep none, and nobody asks for theirs.
            if "checkpoint" in options and jax.process_index() == 0:
                kept = options["checkpoint"].folder / f"epoch{epoch:02d}.npz"
        how = {"mesh": mesh, "start": fitted, "until": end} | options
        fitted = fitting.fit(run.key, images, method, config, **how)
        began = time.monotonic()
        if fitted.steps > end:  # it was restored from beyond this epoch
            found = {name: array[()] for name, array in np.load(kept).items()} if kept else {}
        else:
            found = _evaluate(fitted, run, images, mesh, scores, options)
            if kept:
                files.write_atomically(kept, partial(np.savez, **found))
        seconds += time.monotonic() - began
        columns = {"steps": end, "pretext_accuracy": found.pop("pretext_accuracy", "")}
        outcome |= {name: columns | {"scores": values} for name, values in found.items()}
    measured = {"train_seconds": fitted.seconds, "score_seconds": seconds}
    return {name: columns | measured for name, columns in outcome.items()}


def _evaluate(fitted, run: Run, images, mesh: Mesh, scores, options: dict) -> dict[str, Any]:
    """Scores by name, and the pretext accuracy where there are pseudo labels."""
    on_progress = options.get("on_progress", progress.no_progress)
    evaluation = fitting.score(fitted, images, mesh=mesh, on_progress=on_progress)
    found = {name: np.asarray(rule(run.key, evaluation)) for name, rule in scores.items()}
    if isinstance(evaluation, ViewScores):
        found["pretext_accuracy"] = float(evaluation.accuracy.mean())
    return found


def _describe(method: Method, protocol: Protocol, grey: bool) -> dict[str, Any]:
    config = protocol.config(method, grey)
    own = method in OURS
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
    described = _describe(E3OUTLIER, protocol, grey) | {"constants": {}}
    described["protocol"] += f"-{EPOCHS}epochs"
    described["config"] |= {"steps": None, "epochs": EPOCHS}
    if described["config"]["schedule"] != "constant":
        described["config"] |= {"schedule": "constant", "learning_rate": 1e-3}
    return described


# --- With descriptors ------------------------------------------------------------------------


def _describe_fused(protocol: Protocol, grey: bool) -> dict[str, Any]:
    constants = UNTRAINED["descriptors"] | FACTORED.constants
    return _describe(FACTORED, protocol, grey) | {"constants": constants}


def _constants(names: Iterable[str]) -> dict[str, Any]:
    return {"descriptors": {name: descriptors.DESCRIPTORS[name].whitened for name in names}}


def train_and_fuse(run: Run, images: np.ndarray, mesh: Mesh, options: dict) -> Outcome:
    """Trains a network and fuses its scores with those of the descriptors."""
    outcome = train(run, images, mesh, options)
    began, own = time.monotonic(), next(iter(outcome.values()))
    scores = _fuse(run, images, mesh, network=-own["scores"])
    seconds = own["score_seconds"] + time.monotonic() - began
    return {run.method: own | {"scores": scores, "score_seconds": seconds}} | outcome


def _fuse(run: Run, images: np.ndarray, mesh: Mesh, names=(), **evidence) -> np.ndarray:
    """Scores, smaller = more outlying, by descriptors and other evidence."""
    references = descriptors.fit(run.key, images, names, mesh=mesh)
    return -fusion.fuse_collection(evidence | descriptors.distances(references, images, mesh=mesh))


# --- Without training ------------------------------------------------------------------------

UNTRAINED = {
    **pixels.METHODS,
    "descriptors": _constants(descriptors.DESCRIPTORS),
    "hog-knn": _constants(["shape"]),
}


def _describe_untrained(name: str, protocol: Protocol, grey: bool) -> dict[str, Any]:
    how = dict.fromkeys(("protocol", "network", "operations"), "")
    return how | {"config": {}, "constants": UNTRAINED[name]}


def score_untrained(run: Run, images: np.ndarray, mesh: Mesh, options: dict) -> Outcome:
    began, name = time.monotonic(), run.method
    if name in pixels.METHODS:
        scores = pixels.score(jax.random.key(run.train_seed), images, name)
    else:
        scores = _fuse(run, images, mesh, UNTRAINED[name]["descriptors"])
    return {name: {"scores": scores, "score_seconds": time.monotonic() - began}}


# --- The one place where entries are added ---------------------------------------------------

_EPOCH_SCORES = [f"e3outlier-epoch{e:02d}" for e in range(EPOCHS, 0, -1)]
_train_epochs = partial(train, epochs=range(1, EPOCHS + 1))
_library = (E3OUTLIER, *methods.METHODS.values())
ENTRIES = [
    *(Entry(tuple(m.scores), partial(_describe, m), train) for m in _library),
    Entry((FUSED, FACTORED.name), _describe_fused, train_and_fuse),
    Entry(_EPOCH_SCORES, _describe_epochs, _train_epochs),
    *(Entry((n,), partial(_describe_untrained, n), score_untrained) for n in UNTRAINED),
]
# By the name of each method that they score.
METHODS = {name: entry for entry in ENTRIES for name in entry.scores}
DEFAULT_METHODS = (FUSED, E3OUTLIER.name, *UNTRAINED)
# What "all" means: Table 1, RDAE as published and all without training, but no controls.
_CONTROLS = {*_EPOCH_SCORES, "cae-views", "cae-64"}
TABLE_METHODS = tuple(name for name in METHODS if name not in _CONTROLS)

"""Refinements of the paper's sequel (Wang et al., TPAMI 2023), each at the cost of the plain thing.

Images weighted or trimmed by their scores so far, an ensemble, and both. None of them is part of
e3outlier+: `docs/results.md`, "Refinements", has what they bring.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax import devices, fitting, losses, scoring
from e3jax.methods import FACTORED, Method
from e3jax.training import TrainConfig
from sweep.plan import Run

# Of an ensemble; the share that is trimmed; how far a score moves towards that of a new view.
CONSTANTS = {"members": 2, "trimmed": 0.1, "rate": 0.1}


def _weighted(weigh: Callable[[jax.Array], jax.Array]) -> Method:
    """The network of e3outlier+, whose images weigh by ranks in (0, 1), the lowest score first.

    ``TrainState.extra`` holds scores float32 [n], moving averages of the NE of an image's views.
    """

    def loss(outputs: tuple, batch: losses.Batch, scores: jax.Array) -> tuple[jax.Array, Any]:
        log_p = jax.nn.log_softmax(outputs[0])
        ne = devices.gather_over_devices(scoring.negative_entropy(log_p, batch.operation_index))
        index = batch.all_image_index
        moved = scores.at[index].add(CONSTANTS["rate"] * (ne - scores[index]))
        ranks = (scores.argsort().argsort() + 0.5) / len(scores)
        of_batch = losses.weighted(losses.factored_supervision)
        return of_batch(outputs, batch, weigh(ranks))[0], moved

    return dataclasses.replace(
        FACTORED, loss=loss, extra=lambda images: np.zeros(len(images), np.float32)
    )


def _probabilities(x: jax.Array, outputs: tuple, labels: jax.Array) -> jax.Array:
    """An ``evaluate``: the softmax of all views, float32 [n, k, k]."""
    return jax.nn.softmax(outputs[0][:, 1:])


def _trim(ranks: jax.Array) -> jax.Array:
    return (ranks > CONSTANTS["trimmed"]) / (1 - CONSTANTS["trimmed"])


_REWEIGHTED, _TRIMMED = _weighted(lambda ranks: 2 * ranks), _weighted(_trim)
# Methods by the name of the score that fuses theirs with the descriptors.
METHODS = {
    f"e3outlier+{name}": dataclasses.replace(
        method, scores={f"factored-{name}": FACTORED.scores["factored"]}
    )
    for name, method in (
        ("reweighted", _REWEIGHTED),
        ("trimmed", _TRIMMED),
        ("ensemble", dataclasses.replace(FACTORED, evaluate=_probabilities)),
        ("both", dataclasses.replace(_REWEIGHTED, evaluate=_probabilities)),
    )
}
ENSEMBLES = ("e3outlier+ensemble", "e3outlier+both")


def train_members(run: Run, images: np.ndarray, mesh: Mesh, options: dict) -> dict[str, dict]:
    """Trains members of an ensemble, each for its part of the steps, and averages their softmax."""
    method, config, members = METHODS[run.method], TrainConfig(**run.config), CONSTANTS["members"]
    config = config._replace(steps=config.num_steps(len(images)) // members)
    progress, p = options.get("on_progress", fitting.silent), np.float32(0)
    train_seconds = score_seconds = 0.0
    for member in range(members):

        def on_progress(stage, done, total, before=member * config.steps):
            progress(stage, done + before, total * members)

        key, how = jax.random.fold_in(run.key, member), {"mesh": mesh}
        fitted = fitting.fit(key, images, method, config, on_progress=on_progress, **how)
        began = time.monotonic()
        p = p + fitting.score(fitted, images, **how) / np.float32(members)
        train_seconds += fitted.seconds
        score_seconds += time.monotonic() - began
    operation = np.arange(p.shape[1])
    ne = scoring.negative_entropy(np.log(np.maximum(p, np.finfo(p.dtype).tiny)), operation)
    accuracy = np.float32(p.argmax(-1) == operation)
    evaluation = scoring.ViewScores({"ne": np.asarray(ne)}, accuracy, representation=())
    columns = {"steps": config.steps * members, "pretext_accuracy": float(accuracy.mean())}
    columns |= {"train_seconds": train_seconds, "score_seconds": score_seconds}
    return {method.name: columns | {"scores": method.scores[method.name](run.key, evaluation)}}

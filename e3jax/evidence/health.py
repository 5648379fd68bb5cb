"""Whether the scores of a fit mean anything."""

from typing import NamedTuple

import numpy as np

from e3jax.collection import collection
from e3jax.training.rules import ViewScores


def check_fit(scores: ViewScores, k: int | None = None) -> str:
    """Says in one sentence why these scores mean nothing; "" if they look sound.

    Sound scores are finite and differ between images, and the network has learnt to recognise k
    operations (default: those of the scores): its pretext accuracy is at least a tenth of the way
    from chance 1/k to 1.
    """
    values = np.stack([scores.mean(rule) for rule in scores.rules])
    accuracy = float(np.mean(scores.accuracy))
    return check_scores(values) or check_accuracy(accuracy, k or scores.accuracy.shape[1])


def check_scores(values: np.ndarray) -> str:
    """The part of :func:`check_fit` that applies to any method's scores [..., n]."""
    if not np.isfinite(values).all():
        return "scores are not finite: training diverged, lower the learning rate"
    if np.ptp(values, axis=-1).min() == 0:
        return "all scores are the same: the images are identical or training failed"
    return ""


def check_accuracy(accuracy: float, k: int) -> str:
    """The part of :func:`check_fit` that needs only the pretext accuracy."""
    chance = 1 / k
    if accuracy < chance + 0.1 * (1 - chance):
        return (
            f"pretext accuracy {accuracy:.1%} is near chance ({chance:.1%}), so the scores mean "
            "little and may be inverted: train for more steps"
        )
    return ""


# From this agreement on, in nats.
_VERDICTS = (
    (1.3, "agree", "100 % (84 to 100)"),
    (0.8, "agree in part", "93 % (77 to 100)"),
    (-np.inf, "hardly agree", "79 % (52 to 100)"),
)


def verdict_of(agreement: float) -> tuple[str, str]:
    """In words how far kinds of evidence agree, and the AUROC that came with it."""
    return next((words, auroc) for least, words, auroc in _VERDICTS if agreement >= least)


class HealthWarning(UserWarning):
    """A detector's scores are likely to mean little."""


class Health(NamedTuple):
    """What to know about a fit before believing its scores.

    Attributes:
      pretext_accuracy: share of views whose operation was recognised, in [0, 1].
      chance: what guessing would reach, 1 / k.
      spread: standard deviation of the scores, in nats.
      steps: length of the training.
      unreadable: files that were left out, :class:`e3jax.collection.collection.Unreadable`.
      warning: what is wrong and what to do, in one sentence; "" if nothing is.
      agreement: of network and other evidence, :func:`e3jax.evidence.weights.agreement`.
      outliers: between how many and how many images are likely not to belong, see
        :func:`e3jax.evidence.thresholds.outliers_between`.
    """

    pretext_accuracy: float
    chance: float
    spread: float
    steps: int
    unreadable: list[collection.Unreadable]
    warning: str
    agreement: float | None = None
    outliers: tuple[int, int] = (0, 0)

    @property
    def verdict(self) -> str:
        """How far the order can be believed, in one sentence; "" if nothing tells.

        The figures are the median AUROC and the range in folders where they agreed as far, see
        docs/results.md.
        """
        if self.agreement is None:
            return ""
        words, auroc = verdict_of(self.agreement)
        return (
            f"Network and other evidence {words} on what is unusual ({self.agreement:.1f} of 2.3 "
            f"nats): in tests, AUROC was then {auroc}"
        )

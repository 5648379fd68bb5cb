"""What an entry of :data:`e3jax.evidence.EVIDENCE` is."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e3jax.collection.lazy import AnyArray
from e3jax.training import TrainConfig
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.training.method import Method
from e3jax.work.progress import Progress, no_progress
from e3jax.work.store import Store


class Measured(NamedTuple):
    """What one kind of evidence says about n images.

    Attributes:
      values: float64 [n], larger = more outlying, in units of its own.
      view_entropies: float32 [n, k] in nats, of each view; [0, 0] of all kinds but the network.
    """

    values: np.ndarray
    view_entropies: np.ndarray = np.empty((0, 0))


class Fit(NamedTuple):
    """A kind of evidence that was fitted to a collection.

    Attributes:
      model: what measuring needs: a NamedTuple of arrays, numbers, texts and dictionaries of them.
      measured: of all images of the collection, where fitting has measured them already.
    """

    model: Any
    measured: Measured | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """How evidence is fitted and measured.

    Attributes:
      method, config: of the network's training.
      rule: by which the network scores views, of :data:`e3jax.training.rules.RULES`.
      score_operations: how many of the operations score an image; None: all.
      equalised: whether operations have weights that equalise their influence, see
        :func:`e3jax.training.rules.view_weights`; the paper's have not.
      mesh: devices to split images over; None: all.
      store: keeps results, so that a stopped fit goes on from them.
      checkpoint: ``folder -> TrainCheckpoint``, which keeps the training's state; None: nothing.
      on_progress: called as ``(stage, done, total)``.
    """

    method: Method = E3OUTLIER
    config: TrainConfig = TrainConfig()
    rule: str = "ne"
    score_operations: int | None = None
    equalised: bool = False
    mesh: Mesh | None = None
    store: Store = dataclasses.field(default_factory=Store)
    checkpoint: Callable[[Path], Any] | None = None
    on_progress: Progress = no_progress


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """A kind of evidence that an image does not belong.

    Attributes:
      input: what it is measured from, of :attr:`e3jax.collection.Collection.inputs`: "images",
        uint8 [n, h, w, c]; "facts" of files or the user's "features", float32 [n, d]. Where a
        collection has none it takes no part.
      fit: ``(key, input, Context) -> Fit``.
      measure: ``(model, input, Context) -> Measured``; an image's values do not depend on the other
        images.
      model: the type of ``Fit.model``, by which a saved detector is read.
      weight: of its surprise in the score, where the network has 1.
      separated: whether that grows with :func:`e3jax.evidence.weights.separation`.
      phrase: what it says of an image that it finds unusual.
      reasons: ``(model, input) -> list of str``, what is unusual about each image, if it can tell.
    """

    input: str = "images"
    fit: Callable[[jax.Array, AnyArray, Context], Fit]
    measure: Callable[[Any, AnyArray, Context], Measured]
    model: type
    weight: float = 1.0
    separated: bool = False
    phrase: str
    reasons: Callable[[Any, Any], list[str]] | None = None

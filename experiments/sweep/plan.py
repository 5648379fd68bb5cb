"""What is planned: protocols and runs as plain values, from which all names are derived."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from e3jax import datasets
from e3jax.datasets import contamination
from e3jax.errors import InputError
from e3jax.methods.fused import E3OUTLIER_PLUS
from e3jax.training import TrainConfig, quick_config
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.training.method import Method
from sweep.provenance import libraries

QUICK_IMAGES = 500
OPERATIONS = "RA+IA+PR"
# Raised when the files of a run come to hold something else.
FORMAT = 3
# Always part of a run's key. An option that TrainConfig gains later is part of it where it differs
# from its default, so it renames no finished run; whoever changes such a default adds it here.
KEYED = """network operations optimizer learning_rate schedule weight_decay batch_size steps epochs
precision""".split()
BASES = ("paper", "quick", "narrow", "quick1")
# Those with the paper's number of epochs over all images.
IN_EPOCHS = ("paper", "narrow")
# Methods with a network and operations of one's choice, and two editions of the quick protocol.
OURS = (E3OUTLIER.name, E3OUTLIER_PLUS.name)


class Protocol(NamedTuple):
    """How runs are done, whatever their method.

    Attributes:
      base: one of ``BASES``, each method's constants; "narrow" trains the quick network for the
        paper's epochs, "quick1" is E3Outlier's first edition of "quick".
      max_images: sets are cut to so many images; None keeps all.
      steps: length of a training; None is the base's.
      precision: see :class:`e3jax.TrainConfig`.
      network: E3Outlier's; "" is the base's.
      operations: E3Outlier's.
      other_length: with fewer operations a training in epochs takes as many steps as with all of
        them, and one in steps takes the paper's number of epochs (Fig. 6 a).
    """

    base: str
    max_images: int | None
    steps: int | None = None
    precision: str = "float32"
    network: str = ""
    operations: str = OPERATIONS
    other_length: bool = False

    @property
    def name(self) -> str:
        """The protocol in tables; network and operations have columns of their own."""
        in_epochs = self.base in IN_EPOCHS and not self.steps
        length = "equal-steps" if in_epochs else "by-epochs"
        steps = f"{self.steps}steps" if self.steps else ""
        precision = self.precision if self.precision != "float32" else ""
        parts = (self.base, steps, precision, length if self.other_length else "")
        return "-".join(filter(None, parts))

    def config(self, method: Method, grey: bool) -> TrainConfig:
        """A method's training by this protocol; ``grey``: the images have one channel."""
        config = method.paper_config(grey) if self.base == "paper" else method.quick_config()
        if self.base == "quick1" and method.name in OURS:
            config = quick_config(edition=1)
        if self.base == "narrow" and method.name in OURS:
            config = config._replace(steps=None)
        config = config._replace(steps=self.steps or config.steps, precision=self.precision)
        if method.name not in OURS:
            return config
        network = self.network or config.network
        config = config._replace(network=network, operations=self.operations)
        if not self.other_length:
            return config
        # The paper trains for ceil(250 / k) epochs over n * k views: 288 n, 264 n and 333 n views
        # for RA, RA+IA and all.
        k, all_k = count(self.operations), count(OPERATIONS)
        share = math.ceil(250 / k) * k / (math.ceil(250 / all_k) * all_k)
        if config.steps:
            return config._replace(steps=round(config.steps * share))
        return config._replace(epochs=math.ceil(250 / k) / share)


@functools.cache
def count(operation_names: str) -> int:
    """The number of operations; 1 for "", the images themselves."""
    return TrainConfig(operations=operation_names).k


class Variant(NamedTuple):
    """A part of a plan: what is compared there, and by which protocol."""

    protocol: Protocol
    methods: Sequence[str]
    ratios: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training (or baseline) on one contaminated set: everything that its result depends on.

    Attributes:
      method: an entry of :mod:`sweep.methods`.
      data_seed: draws the set. In tables it is the column ``seed``.
      train_seed: draws all that the method draws.
      max_images: the set is cut to so many images; None keeps all.
      protocol, network, operations: columns of the tables; "" where a method has none.
      config: the fields of its :class:`e3jax.TrainConfig`; empty for a method without training.
      constants: other numbers in the code that its result depends on.
    """

    dataset: str
    source: str
    method: str
    inlier_class: int
    ratio: float
    data_seed: int
    train_seed: int
    max_images: int | None
    protocol: str
    network: str
    operations: str
    config: dict[str, Any]
    constants: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        """The name of the run's files; it ends in a hash of the key and of what computes.

        Raises:
          InputError: what the run depends on has no content to be named by, as a function has none.
        """
        defaults = TrainConfig()._asdict()
        config = {k: v for k, v in self.config.items() if k in KEYED or v != defaults[k]}
        key = dataclasses.asdict(self) | {"config": config}
        text = json.dumps([FORMAT, libraries(), key], sort_keys=True, default=_refuse)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        where = f"{self.dataset}-{self.method}-class{self.inlier_class}-ratio{self.ratio:g}"
        return f"{where}-seed{self._seeds}-{digest}"

    @property
    def title(self) -> str:
        """For people who watch."""
        where = f"{self.dataset} class {self.inlier_class} ratio {self.ratio:g}"
        return f"{where} seed {self._seeds} {self.method}"

    @property
    def _seeds(self) -> str:
        seeds = (self.data_seed, self.train_seed)
        return "-".join(map(str, dict.fromkeys(seeds)))

    @property
    def series(self) -> tuple:
        """What runs of all classes share over which a mean is taken."""
        sets = (self.dataset, self.source, self.ratio, self._seeds, self.max_images)
        return (*sets, self.method, self.protocol, self.network, self.operations)

    @property
    def key(self) -> jax.Array:
        """The key of all that its training draws."""
        return jax.random.fold_in(jax.random.key(self.train_seed), self.inlier_class)

    @property
    def columns(self) -> dict[str, Any]:
        """The run's part of a row."""
        columns = dataclasses.asdict(self)
        return {"seed": columns.pop("data_seed")} | columns

    def draw(self, dataset: datasets.Dataset) -> contamination.Contaminated:
        """Its contaminated set."""
        what = (dataset.images, dataset.labels, self.inlier_class, self.ratio, self.data_seed)
        return contamination.contaminate(*what, max_images=self.max_images)

    def size(self, dataset: datasets.Dataset) -> int:
        """Images in its set, or a few more: known before it is drawn."""
        inliers = int(np.sum(dataset.labels == self.inlier_class))
        # A ratio of 1 is told when the set is drawn.
        return min(int(inliers / (1 - self.ratio or 1)) + 1, self.max_images or 12_000)

    def steps(self, n: int) -> int:
        """Steps of its training on n images; 0 without one."""
        return _training(TrainConfig(**self.config), n)[0] if self.config else 0

    def describe(self, n: int) -> str:
        """Its training on n images, for people."""
        return f"{self.protocol} ({_training(TrainConfig(**self.config), n)[1]})"


@functools.cache  # a plan has thousands of runs, and few trainings
def _training(config: TrainConfig, n: int) -> tuple[int, str]:
    steps, k = config.num_steps(n), f"{config.k} operations, " if config.operations else ""
    length = f"{steps} steps of {config.batch(n)} views, {config.precision}"
    return steps, f"{config.network}, {k}{config.optimizer}, {length}"


def _refuse(value: object) -> None:
    raise InputError(
        f"a run cannot be named by {value!r}, which another start would not recognise: register "
        "it, and give its name"
    )


def grid(
    dataset: datasets.Dataset,
    variants: Sequence[Variant],
    entries: dict[str, Any],
    seeds: int,
    classes: Sequence[int] | None = None,
) -> list[Run]:
    """All runs of a plan, each once, method by method.

    Args:
      dataset: the benchmark.
      variants: the parts of the plan; methods that one run scores together are one run.
      entries: what can be run, by the name of each method that it scores.
      seeds: how many; each draws sets and trains.
      classes: inlier classes (default: each in turn).
    """
    grey, runs = dataset.images.shape[-1] == 1, {}
    classes = classes or range(len(dataset.class_names))
    for seed, (protocol, methods, ratios) in itertools.product(range(seeds), variants):
        described = {entries[m].name: entries[m].describe(protocol, grey) for m in methods}
        # The headline's classes first, so that its mean is known before all else is done.
        names = sorted(described, key=lambda name: name != E3OUTLIER_PLUS.name)
        for ratio, name, inlier_class in itertools.product(ratios, names, classes):
            sets = (dataset.name, dataset.source, name, inlier_class, ratio, seed, seed)
            run = Run(*sets, protocol.max_images, **described[name])
            runs[run.name] = run
    return list(runs.values())


def shard(plan: Sequence[Run], i: int, n: int) -> list[Run]:
    """The i-th of n parts (from 1): every n-th run, so each part has its share of the slow ones.

    Runs are counted method by method, and stay in the order of the plan.
    """
    mine = {run.name for run in sorted(plan, key=lambda run: run.method)[i - 1 :: n]}
    return [run for run in plan if run.name in mine]

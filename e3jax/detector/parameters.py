"""Parameters of :class:`e3jax.E3Outlier`: which are allowed, and what "auto" means here."""

import math
import numbers
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_random_state

from e3jax import choices, devices, networks, operations, training
from e3jax.collection import Reader
from e3jax.collection.features import check_source
from e3jax.collection.lazy import AnyArray
from e3jax.devices import runtime
from e3jax.evidence import EVIDENCE, NETWORK, Context, thresholds
from e3jax.training import fitting
from e3jax.training.e3outlier import E3OUTLIER, FACTORED
from e3jax.training.method import Method
from e3jax.training.rules import RULES
from e3jax.work.progress import Progress
from e3jax.work.store import Arrays, Store

# For time budgets: the shortest useful training, the cost of a trained view in scored views, and an
# allowance for compiling.
_LEAST_STEPS, _TRAIN_COST, _COMPILE_SECONDS = 100, 3, 10
_SCORED = 24  # operations that score an image of a large collection
# Limits for collections of any size, set by the time they take; what more steps find is unmeasured.
_MOST_STEPS_CPU, _MOST_STEPS = 3_000, 100_000


def check(parameters: Mapping[str, Any]) -> None:
    """Raises a ValueError, in one sentence, for parameters that ``fit`` would not take."""
    thresholds.check_contamination(parameters["contamination"])
    for name in ("steps", "score_operations", "batch_size", "image_size"):
        value, is_optional = parameters[name], name in ("steps", "score_operations")
        if (_is_integer(value) and value > 0) or (is_optional and value == "auto"):
            continue
        raise ValueError(f"{name} is {value!r}, expected a positive integer")
    budget, side = parameters["time_budget"], parameters["image_size"]
    if budget is not None and not (thresholds.is_number(budget) and budget > 0):
        raise ValueError(f"time_budget is {budget!r}, expected seconds above 0")
    if side % 2 or side < 4:
        raise ValueError(f"image_size is {side}, expected an even number from 4")
    if parameters["evidence"] not in choices.EVIDENCE:
        known = " or ".join(map(repr, choices.EVIDENCE))
        raise ValueError(f"evidence is {parameters['evidence']!r}, expected {known}")
    check_source(parameters["features"])
    if parameters["rule"] not in RULES:
        raise ValueError(f"rule is {parameters['rule']!r}, expected one of {', '.join(RULES)}")
    if parameters["network"] != "auto":
        networks.check_classifier(parameters["network"])
    if parameters["resize"] not in choices.FITS:
        raise ValueError(
            f"resize is {parameters['resize']!r}, expected one of {', '.join(choices.FITS)}"
        )
    check_value_range(parameters["value_range"])
    check_precision(parameters["precision"])
    if not isinstance(parameters["operations"], (str, Iterable)):
        raise ValueError(
            f"operations is {parameters['operations']!r}, expected names or operations"
        )
    try:
        check_random_state(parameters["random_state"])
    except ValueError as error:
        raise ValueError(
            f"random_state is {parameters['random_state']!r}, expected an integer from 0 to "
            "2**32 - 1"
        ) from error
    operations.compile_operations(operation_names(parameters), side)


def check_value_range(value_range: Any) -> None:
    """Raises a ValueError unless it is None or two numbers, the smaller first."""
    if value_range is None:
        return
    try:
        lowest, highest = map(float, value_range)
    except (TypeError, ValueError):
        lowest = highest = math.nan
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise ValueError(f"value_range is {value_range!r}, expected two numbers, the smaller first")


def check_precision(precision: Any) -> None:
    """Raises a ValueError unless it is one of ``choices.PRECISIONS``."""
    if precision not in choices.PRECISIONS:
        known = ", ".join(choices.PRECISIONS)
        raise ValueError(f"precision is {precision!r}, expected one of {known}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def operation_names(parameters: Mapping[str, Any]) -> str | tuple:
    """Families, or operations one by one; hashable, because programs are kept by them."""
    names = parameters["operations"]
    return names if isinstance(names, str) else tuple(names)


def reader(parameters: Mapping[str, Any]) -> Reader:
    """How the collection is read."""
    return Reader(
        side=parameters["image_size"],
        resize=parameters["resize"],
        value_range=parameters["value_range"],
    )


def kinds(parameters: Mapping[str, Any], inputs: Container[str]) -> list[str]:
    """The kinds of evidence that scores are made of, where these inputs are there."""
    if parameters["evidence"] == "network":
        return [NETWORK]
    return [name for name, kind in EVIDENCE.items() if kind.input in inputs]


def context(
    parameters: Mapping[str, Any],
    images: AnyArray,
    store: Store,
    deadline: float | None,
    checkpoint: Callable[[Path], Any] | None,
    on_progress: Progress,
) -> Context:
    """How evidence is fitted to images, with what "auto" means for them on this machine.

    It is kept in the store, for another machine that goes on would choose otherwise.
    """
    n, is_fused = len(images), parameters["evidence"] == "all"
    method = FACTORED if is_fused else E3OUTLIER
    config = _config(parameters, n)
    score_operations = parameters["score_operations"]
    if score_operations == "auto":
        score_operations = config.k if n <= choices.LARGE else _SCORED

    def resolve() -> Arrays:
        steps = np.int64(config.num_steps(n))
        if deadline is not None:
            views = n * min(score_operations, config.k)
            steps = _affordable(method, config, images, views, deadline)
        named = {"network": config.network, "precision": config.precision}
        return {name: np.array(value) for name, value in named.items()} | {"steps": steps}

    kept = store.get_or_compute("config", resolve)
    config = config._replace(
        network=kept["network"].item(), precision=kept["precision"].item(), steps=int(kept["steps"])
    )
    return Context(
        method=method,
        config=config,
        rule=parameters["rule"],
        score_operations=score_operations,
        equalised=is_fused,
        store=store,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )


def default_network(platform: str) -> str:
    """What network="auto" is on a platform: the paper's, but on a CPU a narrow one."""
    return str(training.quick_config().network) if platform == "cpu" else "wrn-10-4"


def _config(parameters: Mapping[str, Any], n: int) -> training.TrainConfig:
    platform = runtime.devices()[0].platform
    on_cpu = platform == "cpu"
    batch_size, network, steps = (parameters[p] for p in ("batch_size", "network", "steps"))
    config = training.quick_config()._replace(
        operations=operation_names(parameters),
        batch_size=batch_size,
        precision=devices.resolved(parameters["precision"], platform),
    )
    if network == "auto":
        network = default_network(platform)
    if steps == "auto":
        epochs = 0.5 if on_cpu else 1.0
        least = min(config.num_steps(n), config._replace(steps=None).num_steps(n))
        most = _MOST_STEPS_CPU if on_cpu else _MOST_STEPS
        steps = max(least, min(math.ceil(epochs * n * config.k / batch_size), most))
    return config._replace(network=network, steps=int(steps))


def _affordable(
    method: Method,
    config: training.TrainConfig,
    images: AnyArray,
    views: int,
    deadline: float,
) -> np.ndarray:
    """As many steps as end before a deadline, going by the time that scoring takes."""
    untrained = fitting.fit(devices.key(0), images, method, config, until=0)
    # Of the variables only, so that it is the program of later scores.
    untrained = fitting.restored(E3OUTLIER, config, images.shape[1], untrained.state.variables)
    sample = np.resize(images[:64], (64, *images.shape[1:]))
    for _ in range(2):  # the first one compiles
        began = time.monotonic()
        fitting.score(untrained, sample)
    seconds_per_view = (time.monotonic() - began) / (64 * config.k)
    left = deadline - time.monotonic() - seconds_per_view * views
    steps = (left - _COMPILE_SECONDS) / (_TRAIN_COST * seconds_per_view * config.batch_size)
    most = config.num_steps(len(images))
    return devices.broadcast_from_first(np.int32(min(most, max(steps, _LEAST_STEPS))))

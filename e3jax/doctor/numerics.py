"""Numbers of this machine against recorded ones: views, logits, a training step, and scores."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e3jax import devices, networks, operations, training
from e3jax.detector import parameters
from e3jax.devices import runtime
from e3jax.doctor.finding import Finding
from e3jax.images import to_unit
from e3jax.training import fitting

NUMBERS = Path(__file__).with_name("numbers.npz")  # by tests/golden/make.py --doctor
# Largest difference from the recorded numbers, a CPU's in float32, by precision: some times what
# rounding to 24, 11 and 8 bits amounts to in a network of ten layers. On TPUs views are products.
LIMITS = {
    "float32": {"views": 1e-5, "logits": 1e-3, "step": 1e-2, "scores": 1e-3},
    "tensorfloat32": {"views": 1e-4, "logits": 2e-2, "step": 5e-2, "scores": 1e-2},
    "bfloat16": {"views": 1e-4, "logits": 1e-1, "step": 3e-1, "scores": 5e-2},
}
_COUNT = 16  # images


def pictures() -> np.ndarray:
    """Images uint8 [16, 32, 32, 1] of grey squares, the same everywhere."""
    drawn = np.frombuffer(np.random.RandomState(0).bytes(_COUNT * 64), np.uint8)
    squares = drawn.reshape(_COUNT, 8, 8, 1)
    return squares.repeat(4, axis=1).repeat(4, axis=2)


def config(network: str, precision: str) -> training.TrainConfig:
    """A training that ends when it has been seen enough of."""
    return training.TrainConfig(network, steps=2**17, precision=precision)


def numbers(network: str, precision: str) -> dict[str, np.ndarray]:
    """What this machine computes, from weights that follow from a key.

    Returns:
      "views" float64 [111], weighted means; "logits" float32 [16, 111]; "step" float64 [arrays, 3],
      the norm of what a step changes in each array of parameters and two projections of it;
      "scores" float64 [16].
    """
    images, of_run = pictures(), config(network, precision)
    fit = functools.partial(fitting.fit, devices.key(0), images, config=of_run)
    start = fit(until=0)
    before = devices.fetched(start.state.variables)
    after = devices.fetched(fit(start=start, until=1).state.variables)
    step = jax.tree.map(np.subtract, after["params"], before["params"])
    module = networks.build(network, of_run.k, devices.dtype(precision))
    with devices.settings(), devices.products(precision):
        x = to_unit(jax.numpy.asarray(images))
        views = operations.all_views(fitting.operation_set(of_run.operations, 32), x[:1])
        logits, _ = jax.jit(functools.partial(module.apply, train=False))(before, x)
    pixels = np.float64(views).reshape(of_run.k, -1)
    return {
        "views": pixels @ np.cos(np.arange(pixels.shape[1])) / pixels.shape[1],
        "logits": np.asarray(logits),
        "step": np.array([*map(_projections, jax.tree.leaves(step))]),
        "scores": fitting.score(start, images).mean(),
    }


def _projections(array: np.ndarray) -> list[Any]:
    flat = np.float64(array).ravel()
    angle = np.arange(flat.size)
    return [np.linalg.norm(flat), flat @ np.cos(angle), flat @ np.sin(angle)]


def recorded(network: str) -> dict[str, np.ndarray]:
    """The recorded numbers of a network."""
    with np.load(NUMBERS) as arrays:
        return {name: arrays[f"{network} {name}"] for name in LIMITS["float32"]}


def difference(quantity: str, here: np.ndarray, there: np.ndarray) -> float:
    """The largest difference; of a step as a share of its norm."""
    unit = np.linalg.norm(there[:, 0]) if quantity == "step" else 1.0
    return float(np.nan_to_num(np.abs(here - there), nan=np.inf).max() / unit)


def findings() -> Iterator[Finding]:
    """Differences by precision; on a CPU there is one."""
    platform = runtime.devices()[0].platform
    network = parameters.default_network(platform)
    for precision in ("float32",) if platform == "cpu" else devices.PRECISIONS:
        yield from compared(network, precision, numbers(network, precision), recorded(network))


def compared(
    network: str,
    precision: str,
    here: Mapping[str, np.ndarray],
    there: Mapping[str, np.ndarray],
) -> Iterator[Finding]:
    """A finding for each quantity of :func:`numbers`, here and as recorded."""
    for quantity, limit in LIMITS[precision].items():
        value, wrong = difference(quantity, here[quantity], there[quantity]), ""
        if value > limit:
            wrong = f"{quantity} of {network} in {precision} differ from the recorded ones by "
            wrong += f"{value:.2g}, more than {limit:g}: try other versions of JAX and the driver"
        yield Finding(f"{quantity}, {network}, {precision}", value, "difference", wrong)

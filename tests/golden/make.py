"""Writes numbers.npz, the numbers that tests/test_golden.py holds every later version to.

Run it only where a number is meant to change, with a line in CHANGELOG.md that says why:

    PYTHONPATH=. python tests/golden/make.py

With --add it leaves the numbers as they are and adds those of this machine, by code that is known
to be right, where rounding takes a training elsewhere. jaxlib 0.10.0 and 0.10.1 sum less exactly on
a CPU than later ones, so their first step differs by 0.02 already: Adam goes by signs.

With --doctor it writes the numbers of ``e3jax doctor``.

Every function takes the images of the tests' ``digits`` fixture, uint8 [60, 32, 32, 1].
"""

import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from e3jax import E3Outlier, networks, operations
from e3jax.detector import parameters
from e3jax.doctor import numerics

NUMBERS = Path(__file__).with_name("numbers.npz")
STEPS = (1, 100)  # of the trained detectors
DEVICES = 2  # simulated, as in tests/conftest.py: batch statistics are summed device by device


def _unit(images: np.ndarray) -> np.ndarray:
    """Exact in float32, so that views which only move pixels have no rounding at all."""
    return np.float32(images) / 128 - 1


def views(images: np.ndarray) -> np.ndarray:
    """float64 [111]: the mean of every view of the first image, weighted pixel by pixel."""
    all_views = operations.all_views(operations.operation_set(), _unit(images[:1]))
    pixels = np.float64(all_views).reshape(111, -1)
    return pixels @ np.cos(np.arange(pixels.shape[1])) / pixels.shape[1]


def logits_and_scores(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of wrn-10-1 as a fixed key starts it: logits [4, 111] of images, NE [8] over their views."""
    network = networks.build("wrn-10-1", 111)
    # Unoptimised: compiling the random numbers takes much longer than computing them.
    unoptimised = {"xla_backend_optimization_level": 0}
    init = jax.jit(lambda key, x: network.init(key, x, train=False), compiler_options=unoptimised)
    variables = init(jax.random.key(0), _unit(images[:1]))

    @jax.jit
    def apply(x):
        logits, _ = network.apply(variables, x.reshape(-1, 32, 32, 1), train=False)
        return jax.nn.log_softmax(logits).reshape(*x.shape[:-3], -1), logits

    log_p, _ = apply(operations.all_views(operations.operation_set(), _unit(images[:8])))
    negative_entropy = (jnp.exp(log_p) * log_p).sum(-1).mean(-1)
    return np.asarray(apply(_unit(images[:4]))[1]), np.asarray(negative_entropy, np.float64)


def detector(images: np.ndarray, steps: int) -> np.ndarray:
    """float64 [60]: decision_scores_ of a detector trained on all images, from end to end.

    By the quick protocol's first edition.
    """
    how = {"evidence": "network", "network": "wrn-10-1", "batch_size": 64}
    return E3Outlier(random_state=0, steps=steps, **how).fit(images).decision_scores_


def machine() -> str:
    """What decides how sums are rounded: the compiler, and the instructions that it may use."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        text = platform.processor()
    found = re.findall(r"AuthenticAMD|GenuineIntel|\b(?:sse4|avx|fma|amx|asimd|sve)\w*", text)
    return " ".join([f"jaxlib {jaxlib.__version__}", platform.machine(), *sorted(set(found))])


def record(images: np.ndarray) -> dict[str, np.ndarray]:
    """All numbers by name, a checksum of the images they are for, and the machine they are from.

    What was trained has a row for each machine.
    """
    logits, scores = logits_and_scores(images)
    return {
        "machine": np.array([machine()]),
        "images": np.float64(images).mean((1, 2, 3)),
        "views": views(images),
        "logits": logits,
        "scores": scores,
    } | {f"detector_{steps}": detector(images, steps)[None] for steps in STEPS}


def with_this_machine(numbers: Mapping[str, np.ndarray], images: np.ndarray) -> dict:
    """The numbers, and those of this machine."""
    rows = {f"detector_{steps}": detector(images, steps) for steps in STEPS}
    rows["machine"] = machine()
    return {**numbers} | {name: np.stack([*numbers[name], row]) for name, row in rows.items()}


def doctors_numbers() -> dict[str, np.ndarray]:
    """What ``e3jax doctor`` compares with, of the networks that are defaults somewhere."""
    names = map(parameters.default_network, ("cpu", "gpu"))
    found = {name: numerics.numbers(name, "float32") for name in names}
    return {f"{name} {what}": a for name, of in found.items() for what, a in of.items()}


def main() -> None:
    from e3jax import datasets
    from e3jax.datasets import contamination

    jax.config.update("jax_num_cpu_devices", DEVICES)
    mnist = datasets.load("mnist", source="embedded", announce=lambda line: None)
    digits = contamination.contaminate(mnist.images, mnist.labels, 4, 0.1, 0, max_images=60).images
    if sys.argv[1:] == ["--doctor"]:
        np.savez_compressed(numerics.NUMBERS, **doctors_numbers())
        return
    is_added = sys.argv[1:] == ["--add"]
    found = with_this_machine(np.load(NUMBERS), digits) if is_added else record(digits)
    np.savez_compressed(NUMBERS, **found)


if __name__ == "__main__":
    main()

"""How fast this machine trains and scores the network that it would take by default."""

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from e3jax import devices
from e3jax.detector import parameters
from e3jax.devices import runtime
from e3jax.doctor import numerics
from e3jax.doctor.finding import Finding
from e3jax.training import fitting
from e3jax.work.progress import Progress

SECONDS = 8  # of each measurement, without compiling


class _Enough(Exception):
    """Ends what is measured."""


def findings() -> Iterator[Finding]:
    """Views per second, at the precision that is "auto" here."""
    platform = runtime.devices()[0].platform
    config = numerics.config(parameters.default_network(platform), devices.resolved("auto"))
    images, key = numerics.pictures(), devices.key(0)
    many = np.resize(images, (2**16, *images.shape[1:]))
    start = fitting.fit(key, images, config=config, until=0)
    name = f"{config.network}, {config.precision}"

    def train(see: Progress) -> None:
        fitting.fit(key, images, config=config, on_progress=see)

    def score(see: Progress) -> None:
        fitting.score(start, many, on_progress=see)

    yield Finding(f"trained views, {name}", config.batch_size * rate(train), "per second")
    yield Finding(f"scored views, {name}", config.k * rate(score), "per second")


def rate(work: Callable[[Progress], None]) -> float:
    """Things per second of long work, from its first report on."""
    reports: list[tuple[float, int]] = []

    def see(stage: str, done: int, total: int) -> None:
        reports.append((time.monotonic(), done))
        if len(reports) > 1 and reports[-1][0] - reports[0][0] > SECONDS:
            raise _Enough

    with contextlib.suppress(_Enough):
        work(see)
    (began, first), (ended, last) = reports[0], reports[-1]
    return (last - first) / (ended - began)

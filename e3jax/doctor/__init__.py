"""Doctor: whether e3jax computes on this machine what it should, and how fast.

Every part is a function of no arguments that yields a :class:`Finding` for each thing it looks at.
"""

from collections.abc import Callable, Iterator

from e3jax.doctor import machine, numerics, patterns, speed
from e3jax.doctor.finding import Finding

PARTS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": machine.versions,
    "packages": machine.packages,
    "devices": machine.devices,
    "cache": machine.cache,
    "patterns": patterns.findings,
    "numerics": numerics.findings,
    "speed": speed.findings,
}


def examine(part: str) -> Iterator[Finding]:
    """Yields what a part finds; an error that ends it is a finding, too."""
    try:
        yield from PARTS[part]()
    except Exception as error:  # of any type: compilers and drivers have their own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        wrong = f"{part} could not be examined ({reason}): check the device and its driver"
        yield Finding("examination", "failed", wrong=wrong)

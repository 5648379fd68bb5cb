"""Evidence that an image does not belong: the registry of its kinds.

To add a kind, register it: ``EVIDENCE["brightness"] = descriptor("brightness", function)``. It then
takes part in the scores of ``E3Outlier`` and ``e3jax rank``, their tables and gallery, saved
detectors and the benchmark method e3outlier+.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from e3jax.errors import InputError
from e3jax.evidence import descriptors, detail, facts
from e3jax.evidence.distances import descriptor, given
from e3jax.evidence.kind import Context, Fit, Kind, Measured
from e3jax.evidence.network import NETWORK, trained_network
from e3jax.images.facts import DETAIL, FILE

FEATURES = "features"
EVIDENCE: dict[str, Kind] = {
    NETWORK: trained_network,
    "shape": descriptor("shape", descriptors.shape),
    "coarse": descriptor("outline", descriptors.coarse),
    "layout": descriptor("layout", descriptors.layout),
    "statistics": descriptor("statistics", descriptors.statistics, whitened=True),
    "detail": given(
        "detail", "facts", columns=DETAIL, whitened=True, weight=1 / 2, reasons=detail.reasons
    ),
    "facts": given("file", "facts", columns=FILE, weight=3 / 4, reasons=facts.reasons),
    FEATURES: given("features", "features", direction=True, weight=2.5, separated=True),
}

__all__ = [
    "EVIDENCE",
    "FEATURES",
    "NETWORK",
    "Context",
    "Fit",
    "Kind",
    "Measured",
    "descriptor",
    "given",
    "fit_and_measure",
    "registered",
]


def registered(name: str) -> Kind:
    """The kind of evidence of that name.

    Raises:
      InputError: it is not registered, as in a program that loads another one's detector.
    """
    if name not in EVIDENCE:
        raise InputError(
            f"the detector needs the evidence {name!r}: register it in e3jax.evidence.EVIDENCE "
            "first"
        )
    return EVIDENCE[name]


def fit_and_measure(
    key: jax.Array, inputs: Mapping[str, Any], names: Iterable[str], context: Context
) -> dict[str, np.ndarray]:
    """The evidence of a collection about itself, by kind, float64 [n], larger = more outlying.

    Args:
      key: of all that fitting draws.
      inputs: see :attr:`e3jax.collection.Collection.inputs`, n >= 2.
      names: of ``EVIDENCE``.
      context: of fitting and measuring.
    """
    values = {}
    for name in names:
        kind = registered(name)
        rows = inputs[kind.input]
        fit = kind.fit(key, rows, context)
        values[name] = (fit.measured or kind.measure(fit.model, rows, context)).values
    return values

"""Evidence that an image does not belong: the registry of its kinds.

To add a kind, register it: ``EVIDENCE["brightness"] = descriptor("brightness", function)``. It then
takes part in the scores of ``E3Outlier`` and ``e3jax rank``, their tables and gallery, saved
detectors and the benchmark method e3outlier+.
"""

from e3jax.errors import InputError
from e3jax.evidence import descriptors
from e3jax.evidence.distances import descriptor
from e3jax.evidence.kind import Context, Fit, Kind, Measured
from e3jax.evidence.network import NETWORK, trained_network

EVIDENCE: dict[str, Kind] = {
    NETWORK: trained_network,
    "shape": descriptor("shape", descriptors.shape),
    "layout": descriptor("layout", descriptors.layout),
    "statistics": descriptor("statistics", descriptors.statistics, whitened=True),
}

__all__ = ["EVIDENCE", "NETWORK", "Context", "Fit", "Kind", "Measured", "descriptor", "registered"]


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

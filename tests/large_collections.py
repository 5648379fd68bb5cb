"""Collections of more than 50 images are large ones, for tests."""

from e3jax import choices
from e3jax.collection.bank import writing
from e3jax.detector import parameters
from e3jax.evidence import model, network

CONSTANTS = (
    (choices, "LARGE", 50),
    (network, "_SAMPLE", 40),
    (model, "_BLOCK", 32),
    (parameters, "_SCORED", 6),
    (writing, "_SHARD", 16),
)


def set_constants(setattr=setattr):
    """With a function that sets attributes, such as that of ``monkeypatch``."""
    for constant in CONSTANTS:
        setattr(*constant)

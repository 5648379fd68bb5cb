"""Inlier priority (paper, Sec. 3.2): gradient magnitudes, de facto updates, and a probe."""

from e3jax.priority.measures import (
    Apply,
    Update,
    de_facto_update,
    gradient_magnitude,
    gradient_of_step,
    group_gradients,
    last_layer_gradients,
    magnitude,
    updates,
)
from e3jax.priority.probe import PriorityLog, ProbeSet, make_probe

__all__ = [
    "Apply",
    "PriorityLog",
    "ProbeSet",
    "Update",
    "de_facto_update",
    "gradient_magnitude",
    "gradient_of_step",
    "group_gradients",
    "last_layer_gradients",
    "magnitude",
    "make_probe",
    "updates",
]

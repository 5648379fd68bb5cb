"""Inlier priority (paper, Sec. 3.2): gradient magnitudes, de facto updates, and a probe."""

from e3jax.priority.measures import (
    Apply as Apply,
    Update as Update,
    de_facto_update as de_facto_update,
    gradient_magnitude as gradient_magnitude,
    gradient_of_step as gradient_of_step,
    group_gradients as group_gradients,
    last_layer_gradients as last_layer_gradients,
    magnitude as magnitude,
    updates as updates,
)
from e3jax.priority.probe import (
    PriorityLog as PriorityLog,
    ProbeSet as ProbeSet,
    make_probe as make_probe,
)

"""Inlier priority (Sec. 3.2 of the paper): whose loss training serves first."""

from e3jax.priority.gradients import (
    Apply as Apply,
    gradient_magnitude as gradient_magnitude,
    group_gradients as group_gradients,
    last_layer_gradients as last_layer_gradients,
    magnitude as magnitude,
)
from e3jax.priority.probe import (
    PriorityLog as PriorityLog,
    ProbeSet as ProbeSet,
    make_probe as make_probe,
)
from e3jax.priority.steps import (
    Update as Update,
    de_facto_update as de_facto_update,
    gradient_of_step as gradient_of_step,
    updates as updates,
)

"""Devices: the mesh that work is split over, and programs compiled for it."""

from e3jax.devices.blocks import BatchMap as BatchMap
from e3jax.devices.collectives import (
    gather_over_devices as gather_over_devices,
    mean_over_devices as mean_over_devices,
    part_of_device as part_of_device,
    rows_of_split as rows_of_split,
    sum_over_devices as sum_over_devices,
)
from e3jax.devices.configuration import (
    as_key as as_key,
    fold_in as fold_in,
    key as key,
    settings as settings,
    with_settings as with_settings,
)
from e3jax.devices.mesh import (
    AXIS as AXIS,
    EVERYWHERE as EVERYWHERE,
    SPLIT as SPLIT,
    broadcast_from_first as broadcast_from_first,
    copied as copied,
    describe as describe,
    device_mesh as device_mesh,
    fetched as fetched,
    fits as fits,
    host_mesh as host_mesh,
    is_cpu as is_cpu,
    part_for_batch as part_for_batch,
    place as place,
    place_split as place_split,
    shapes as shapes,
)
from e3jax.devices.programs import (
    GPU_OPTIONS as GPU_OPTIONS,
    PRECISIONS as PRECISIONS,
    Program as Program,
    cached_program as cached_program,
    compiler_options as compiler_options,
    dtype as dtype,
    in_float32 as in_float32,
    make_deterministic as make_deterministic,
    on_mesh as on_mesh,
    products as products,
    resolved as resolved,
    run_once as run_once,
)

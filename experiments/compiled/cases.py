"""Which programs are compiled for which accelerators."""

import argparse
import collections
import functools
import itertools
import tomllib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies

from e3jax import devices, networks, priority, training
from e3jax.methods import METHODS
from e3jax.training import fitting
from e3jax.training.e3outlier import E3OUTLIER

TARGETS = tomllib.loads(Path(__file__).with_name("accelerators.toml").read_text())
_METHODS = ("cae", "drae", "rdae", "dagmm", "cae-views")
_PARTS = ("init", "draw", "train", "score")  # of a method
# A training recorded as in Figs. 2 and 3, and that of e3outlier+.
_TRAININGS = ("train", "watched", "e3outlier+")
PROGRAMS = ("init", "draw", *_TRAININGS, "score", "magnitude", "update", *_METHODS)
_SIDE = 32
# A program for a target, and what its shapes follow from.
Case = collections.namedtuple(
    "Case", "target devices program network precision channels images batch_size"
)


def plan(args: argparse.Namespace) -> list[Case]:
    """All combinations; what has no precision of its own is there once, as float32."""
    names, cases = [], {}
    for name in args.programs:
        names += [f"{name} {part}" for part in _PARTS] if name in _METHODS else [name]
    options = (args.target, args.devices, args.channels, args.precision, names)
    for target, count, channels, precision, name in itertools.product(*options):
        network = "" if " " in name else args.network
        precision = precision if network and name not in ("init", "draw") else "float32"
        sizes = (channels, args.images, args.batch_size * count)
        cases[Case(target, count, name, network, precision, *sizes)] = None
    return list(cases)


def mesh_of(name: str, count: int) -> jax.sharding.Mesh:
    """So many devices of a kind, none of which need be present."""
    target = TARGETS[name]
    if target["platform"] == "cuda":
        described = topologies.get_topology_desc(
            "", "cuda", topology=f"1x1x{count}", target_config=target["target_config"]
        )
    else:
        large_enough = [size for size in target["topologies"] if int(size) >= count]
        if not large_enough:
            raise ValueError(f"a {name} host does not have {count} chips")
        options = target["topologies"][large_enough[0]]
        described = topologies.get_topology_desc(platform="tpu", **options)
    return devices.device_mesh(described.devices[:count])


def program_of(case: Case, mesh: jax.sharding.Mesh) -> devices.Program:
    """A case's program, as the library would run it."""
    name, _, part = case.program.partition(" ")
    grey, shape = case.channels == 1, (case.images, _SIDE, _SIDE, case.channels)
    if part:
        method = METHODS[name]
        config = method.paper_config(grey)
        config = config._replace(batch_size=config.batch(case.images) * case.devices)
        return fitting.programs(method, config, shape, mesh)[part]
    config = training.paper_config(grey)._replace(
        network=case.network, precision=case.precision, batch_size=case.batch_size
    )
    views, shaped = 4 * case.batch_size, jax.ShapeDtypeStruct
    images, labels = shaped((views, *shape[1:]), np.uint8), shaped((views,), np.int32)
    data = (shaped((16, *shape[1:]), np.uint8), shaped((16,), np.float32))
    probe_set = priority.ProbeSet(images, labels, shaped((4, views), np.float32), *data)
    probe = priority.make_probe(case.network, config.k, case.precision)
    probed = (probe, probe_set) if name == "watched" else ()
    programs = fitting.programs(METHODS.get(name, E3OUTLIER), config, shape, mesh, *probed)
    if program := programs.get("train" if name in _TRAININGS else name):
        return program
    variables = programs["train"].arguments[0].variables
    if name == "magnitude":
        measure, views = priority.gradient_magnitude, shaped(images.shape, np.float32)
        arrays = (variables, views, labels, probe_set.groups)
    else:
        measure, several = priority.de_facto_update, (4, case.batch_size)
        views = shaped((*several, *shape[1:]), np.float32)
        arrays = (variables, views, shaped(several, np.int32))
    network = networks.build(case.network, config.k, devices.dtype(case.precision))
    apply = functools.partial(network.apply, train=False)
    return devices.Program(measure, (apply, *devices.shapes(mesh, arrays)))

"""What a run is trained on and how: the flags that say it, the same in every script."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import runtime

from e3jax import datasets, devices, training

QUICK_IMAGES = 500
OPERATIONS = "RA+IA+PR"


class Protocol(NamedTuple):
    """How a run is done: its name in tables, its training, images a set is cut to (None: all)."""

    name: str
    config: training.TrainConfig
    max_images: int | None


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", required=True, choices=datasets.NAMES, help="benchmark")
    add("--data-dir", help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add(
        "--source",
        default="auto",
        choices=datasets.SOURCES,
        help="tfds: prepared data or a download; embedded: 5,000 MNIST images; auto: the first "
        "that works",
    )


def load(arguments: argparse.Namespace, announce: Callable[[str], None]) -> datasets.Dataset:
    """The data set that the flags name; raises what :func:`e3jax.datasets.load` raises."""
    return datasets.load(
        arguments.dataset,
        data_dir=arguments.data_dir,
        source=arguments.source,
        announce=announce,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--protocol",
        default="auto",
        choices=("auto", "paper", "quick"),
        help="paper: the paper's training; quick: sized for a CPU, on "
        f"{QUICK_IMAGES} images a class; auto: paper on an accelerator, quick on a CPU",
    )
    add("--steps", type=runtime.positive, help="length of a training (default: the protocol's)")
    add_precision(parser)
    add("--max-images", type=int, help="cut each set to so many (0: all; default: the protocol's)")
    parser.set_defaults(network=None)


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="float32",
        choices=devices.PRECISIONS,
        help="of convolutions and products; on a CPU tensorfloat32 is float32",
    )


def add_network_and_operations(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--network",
        help="e.g. wrn-10-4, resnet-20, resnet-50, densenet-40 (default: the protocol's)",
    )
    add("--operations", default=OPERATIONS, help="families of operations, e.g. RA or RA+IA")


def resolve(arguments: argparse.Namespace, grey: bool, platform: str | None = None) -> Protocol:
    """The protocol that the flags name, for grey or colour images.

    Args:
      arguments: see :func:`add_arguments`.
      grey: images of one channel.
      platform: "cpu", "gpu" or "tpu", where runs are done (default: the first device's).
    """
    name = arguments.protocol
    if name == "auto":
        name = "quick" if (platform or jax.devices()[0].platform) == "cpu" else "paper"
    quick = name == "quick"
    config = training.quick_config() if quick else training.paper_config(grey)
    # A changed protocol is another one: its runs must not be averaged with the original's.
    if arguments.steps:
        name += f"-{arguments.steps}steps"
    if arguments.precision != config.precision:
        name += f"-{arguments.precision}"
    config = config._replace(
        network=arguments.network or config.network,
        precision=arguments.precision,
        steps=arguments.steps or config.steps,
    )
    max_images = QUICK_IMAGES if quick else None
    if arguments.max_images is not None:
        max_images = arguments.max_images or None
    return Protocol(name, config, max_images)

"""Flags that scripts share, each with its checks: one sentence for what is wrong."""

import argparse
import re

from command import say

from e3jax import datasets, devices
from e3jax.cli.main import HelpFormatter, path
from e3jax.devices import runtime
from sweep.plan import BASES, OPERATIONS, QUICK_IMAGES, Protocol


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows defaults."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)


def positive(text: str) -> int:
    """For argparse: an integer from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1: give a positive number")
    return number


# --- What is trained on, and how -------------------------------------------------------------


def add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", required=True, choices=datasets.NAMES, help="benchmark")
    add("--data-dir", type=path, help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    text = "tfds: prepared data or a download; embedded: 5,000 MNIST images; auto: what works first"
    add("--source", default="auto", choices=datasets.SOURCES, help=text)


def load(args: argparse.Namespace) -> datasets.Dataset:
    """The data set that the flags name; raises what :func:`e3jax.datasets.load` raises."""
    where = {"data_dir": args.data_dir, "source": args.source}
    return datasets.load(args.dataset, **where, announce=say)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = f"quick: {QUICK_IMAGES} images per class, few steps; auto: quick on a CPU, else paper"
    add("--protocol", default="auto", choices=("auto", *BASES), help=text)
    add("--steps", type=positive, help="length of a training (default: the protocol's)")
    add_precision(parser)
    add("--max-images", type=int, help="cut each set to so many (0: all; default: the protocol's)")


def add_precision(parser: argparse.ArgumentParser) -> None:
    text = "of convolutions and products; on a CPU tensorfloat32 is float32"
    parser.add_argument("--precision", default="float32", choices=devices.PRECISIONS, help=text)


def add_network_and_operations(parser: argparse.ArgumentParser) -> None:
    text = "e.g. wrn-10-4, resnet-20, resnet-50, densenet-40 (default: the protocol's)"
    parser.add_argument("--network", help=text)
    text = "families of operations, e.g. RA or RA+IA"
    parser.add_argument("--operations", default=OPERATIONS, help=text)


def protocol(args: argparse.Namespace, platform: str | None = None) -> Protocol:
    """The protocol that the flags name.

    Args:
      args: with the flags of :func:`add_protocol`, perhaps of :func:`add_network_and_operations`.
      platform: "cpu", "gpu" or "tpu", where runs are done (default: the first device's).
    """
    base = args.protocol
    if base == "auto":
        base = "quick" if (platform or runtime.devices()[0].platform) == "cpu" else "paper"
    max_images = args.max_images
    if max_images is None and base != "paper":
        max_images = QUICK_IMAGES
    network = getattr(args, "network", None) or ""
    operations = getattr(args, "operations", OPERATIONS)
    return Protocol(base, max_images or None, args.steps, args.precision, network, operations)


# --- How a sweep is done ---------------------------------------------------------------------


def sweep_parser(description: str) -> argparse.ArgumentParser:
    """A parser of what is trained on and how, how much of it, where, and where it is kept."""
    sweep = parser(description)
    add_data(sweep)
    add_protocol(sweep)
    add = sweep.add_argument
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--seeds", type=positive, default=1, help="number of seeds: 0, 1, ...")
    add(
        "--results-dir",
        type=path,
        default="runs",
        help="where results go, and where finished ones are found",
    )
    add(
        "--tensorboard",
        type=path,
        metavar="DIR",
        help="event files of all trainings, with inlier priority",
    )
    add("--checkpoint-minutes", type=float, default=3, help="between saves inside a training")
    text = "runs in flight, each on its share of the devices; auto: one per device and training"
    add("--runs-at-once", type=_auto_or_positive, default="auto", help=text)
    add("--shard", type=_shard, metavar="I/N", help="do every N-th run alone, from the I-th on")
    text = "Every run is a task of a Ray cluster. See docs/sweeps.md."
    add = sweep.add_argument_group("a cluster", text).add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where runs are done")
    add("--ray-address", help="of the cluster (default: RAY_ADDRESS, or one on this machine)")
    text = "what a run takes, e.g. CPU=2, GPU=0.5 or TPU=1 (default: a GPU or TPU chip, else a CPU)"
    add("--share", nargs="+", type=_share, metavar="NAME=AMOUNT", help=text)
    text = "Every process runs the same command; the first alone writes."
    add = sweep.add_argument_group("several processes", text).add_argument
    text = "this is one process of a job; Slurm, Open MPI, Kubernetes and TPU pods tell the rest"
    add("--distributed", action="store_true", help=text)
    add("--coordinator", metavar="HOST:PORT", help="where the first process can be reached")
    add("--num-processes", type=positive, help="processes of the job")
    add("--process-id", type=int, help="which of them this is, from 0")
    return sweep


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, with those of :func:`sweep_parser` among them."""
    args = parser.parse_args()
    ray, job, at_once = args.engine == "ray", args.distributed, args.runs_at_once
    many = at_once not in ("auto", 1)
    named = (args.coordinator, args.num_processes, args.process_id) != (None, None, None)
    address = args.coordinator or "HOST:0"
    wrong = {
        "--ray-address and --share need --engine ray": not ray and (args.ray_address or args.share),
        "--engine ray shares out the cluster: leave out --distributed": ray and job,
        "--engine ray shares out the cluster: leave out --runs-at-once": ray and at_once != "auto",
        "--tensorboard needs --engine local": ray and args.tensorboard,
        "--distributed does one run at a time: leave out --runs-at-once": job and many,
        "--coordinator, --num-processes and --process-id need --distributed": named and not job,
        f"--coordinator is HOST:PORT, got {address!r}": not re.fullmatch(r".+:\d+", address),
    }
    for sentence, is_so in wrong.items():
        if is_so:
            parser.error(sentence)
    return args


def _auto_or_positive(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _shard(text: str) -> tuple[int, int]:
    """For argparse: "2/4" as (2, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 1/4, 2/4, 3/4 or 4/4")
    return int(found[1]), int(found[2])


def _share(text: str) -> tuple[str, float]:
    """For argparse: "GPU=0.5" as ("GPU", 0.5)."""
    found = re.fullmatch(r"(CPU|GPU|TPU)=(\d*\.?\d+)", text)
    if not found or not float(found[2]):
        known = "write CPU=2, GPU=1, GPU=0.5 or TPU=1"
        raise argparse.ArgumentTypeError(f"{text!r} is no share: {known}")
    return found[1], float(found[2])

"""Flags that scripts share, each with its checks: one sentence for what is wrong."""

import argparse
import re
from collections.abc import Callable

import jax

from e3jax import datasets, devices
from sweep import engines
from sweep.plan import OPERATIONS, QUICK_IMAGES, Protocol


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows defaults."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


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
    add("--data-dir", help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add(
        "--source",
        default="auto",
        choices=datasets.SOURCES,
        help="tfds: prepared data or a download; embedded: 5,000 MNIST images; auto: the first "
        "that works",
    )


def load(args: argparse.Namespace, announce: Callable[[str], None]) -> datasets.Dataset:
    """The data set that the flags name; raises what :func:`e3jax.datasets.load` raises."""
    where = {"data_dir": args.data_dir, "source": args.source}
    return datasets.load(args.dataset, **where, announce=announce)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--protocol",
        default="auto",
        choices=("auto", "paper", "quick"),
        help="paper: the paper's training; quick: sized for a CPU, on "
        f"{QUICK_IMAGES} images per class; auto: paper on an accelerator, quick on a CPU",
    )
    add("--steps", type=positive, help="length of a training (default: the protocol's)")
    add_precision(parser)
    add("--max-images", type=int, help="cut each set to so many (0: all; default: the protocol's)")


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


def protocol(args: argparse.Namespace, platform: str | None = None) -> Protocol:
    """The protocol that the flags name.

    Args:
      args: with the flags of :func:`add_protocol`, perhaps of :func:`add_network_and_operations`.
      platform: "cpu", "gpu" or "tpu", where runs are done (default: the first device's).
    """
    base = args.protocol
    if base == "auto":
        base = "quick" if (platform or jax.devices()[0].platform) == "cpu" else "paper"
    max_images = QUICK_IMAGES if base == "quick" else None
    if args.max_images is not None:
        max_images = args.max_images or None
    return Protocol(
        base=base,
        max_images=max_images,
        steps=args.steps,
        precision=args.precision,
        network=getattr(args, "network", None) or "",
        operations=getattr(args, "operations", OPERATIONS),
    )


# --- How a sweep is done ---------------------------------------------------------------------


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """How much is done, where, and where it is kept."""
    add = parser.add_argument
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--seeds", type=positive, default=1, help="number of seeds: 0, 1, ...")
    add("--results-dir", default="runs", help="where results go, and where finished ones are found")
    add(
        "--tensorboard",
        metavar="DIR",
        help="write TensorBoard event files of every training there, with inlier priority recorded",
    )
    add("--checkpoint-minutes", type=float, default=3, help="between saves inside a training")
    add(
        "--runs-at-once",
        type=lambda text: text if text == "auto" else positive(text),
        default="auto",
        help="runs in flight, each on its share of the devices; auto: one per device, at most as "
        "many as there are trainings",
    )
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do every N-th run of the plan alone, the I-th of 1 to N; all shards may share "
        "--results-dir",
    )
    add = parser.add_argument_group(
        "a cluster", "Every run is a task of a Ray cluster. See docs/sweeps.md."
    ).add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where runs are done")
    add("--ray-address", help="of the cluster (default: RAY_ADDRESS, or one on this machine)")
    add(
        "--share",
        nargs="+",
        type=engines.parse_share,
        metavar="NAME=AMOUNT",
        help="what a run takes of the cluster, e.g. CPU=2, GPU=0.5 or TPU=1 (default: one GPU "
        "or TPU chip where there are any, else one CPU)",
    )
    add = parser.add_argument_group(
        "several processes", "Every process runs the same command; the first alone writes."
    ).add_argument
    add(
        "--distributed",
        action="store_true",
        help="this is one of several processes of one job, see jax.distributed.initialize; under "
        "Slurm, Open MPI, Kubernetes or on a TPU pod the rest is found out",
    )
    add("--coordinator", metavar="HOST:PORT", help="where the first process can be reached")
    add("--num-processes", type=positive, help="processes of the job")
    add("--process-id", type=int, help="which of them this is, from 0")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, with those of :func:`add_sweep` among them."""
    args = parser.parse_args()
    if complaint := _cluster_complaint(args) or _job_complaint(args):
        parser.error(complaint)
    return args


def _shard(text: str) -> tuple[int, int]:
    """For argparse: "2/4" as (2, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 1/4, 2/4, 3/4 or 4/4")
    return int(found[1]), int(found[2])


def _cluster_complaint(args: argparse.Namespace) -> str:
    """What is wrong with the flags for a cluster; "" if nothing."""
    if args.engine == "local":
        given = args.ray_address or args.share
        return "--ray-address and --share need --engine ray" if given else ""
    if args.distributed or args.runs_at_once != "auto":
        return "--engine ray shares out the cluster: leave out --distributed and --runs-at-once"
    return "--tensorboard needs --engine local" if args.tensorboard else ""


def _job_complaint(args: argparse.Namespace) -> str:
    """What is wrong with the flags for several processes; "" if nothing."""
    given = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed and args.runs_at_once not in ("auto", 1):
        return "--distributed does one run at a time, so --runs-at-once must be 1"
    if given == (None, None, None):
        return ""
    if not args.distributed:
        return "--coordinator, --num-processes and --process-id need --distributed"
    if None in given:
        return "--coordinator, --num-processes and --process-id are given together or not at all"
    if not re.fullmatch(r".+:\d+", args.coordinator):
        return f"--coordinator is HOST:PORT, got {args.coordinator!r}"
    if not 0 <= args.process_id < args.num_processes:
        return f"--process-id is one of 0 to {args.num_processes - 1}, got {args.process_id}"
    return ""

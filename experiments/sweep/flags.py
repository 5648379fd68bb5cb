"""Flags that scripts share, each with its checks: one sentence for what is wrong."""

import argparse
import re

from command import say

from e3jax import choices, datasets, devices
from e3jax.cli.arguments import HelpFormatter, add_deterministic, path, shard
from e3jax.devices import runtime
from sweep.plan import BASES, IN_EPOCHS, OPERATIONS, QUICK_IMAGES, Protocol


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
    parser.add_argument("--dataset", required=True, choices=datasets.NAMES, help="data set")
    add_source(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data-dir", type=path, help="folder with data prepared by TFDS (or set TFDS_DATA_DIR)")
    add(
        "--source",
        default="auto",
        choices=datasets.SOURCES,
        help="tfds: prepared data or a download; embedded: 5,000 MNIST images; auto: the first "
        "that works",
    )


def load(args: argparse.Namespace) -> datasets.Dataset:
    """The data set that the flags name; raises what :func:`e3jax.datasets.load` raises."""
    return datasets.load(args.dataset, data_dir=args.data_dir, source=args.source, announce=say)


def add_protocol(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = (
        f"quick: {QUICK_IMAGES} images per class, few steps; narrow: all images and the paper's "
        "epochs with quick's network; auto: quick on a CPU, else paper"
    )
    add("--protocol", default="auto", choices=("auto", *BASES), help=text)
    add("--steps", type=positive, help="length of each training (default: the protocol's)")
    add_precision(parser)
    text = "images of a set at most (0: no limit; default: the protocol's)"
    add("--max-images", type=int, metavar="N", help=text)


def add_precision(parser: argparse.ArgumentParser) -> None:
    text = "precision of convolutions and products; on a CPU tensorfloat32 is float32; auto: "
    text += "float32 on CPUs, tensorfloat32 on GPUs, bfloat16 on TPUs"
    parser.add_argument("--precision", default="auto", choices=choices.PRECISIONS, help=text)


def add_network_and_operations(parser: argparse.ArgumentParser) -> None:
    text = "network, e.g. wrn-10-4, resnet-20 or densenet-40 (default: the protocol's)"
    parser.add_argument("--network", help=text)
    text = "families of operations, e.g. RA or RA+IA"
    parser.add_argument("--operations", default=OPERATIONS, help=text)


def protocol(args: argparse.Namespace, platform: str | None = None) -> Protocol:
    """The protocol that the flags name.

    Args:
      args: with the flags of :func:`add_protocol`, perhaps of :func:`add_network_and_operations`.
      platform: "cpu", "gpu" or "tpu", where runs are done (default: the first device's).
    """
    base, max_images = args.protocol, args.max_images
    platform = platform or runtime.devices()[0].platform
    if base == "auto":
        base = "quick" if platform == "cpu" else "paper"
    if max_images is None and base not in IN_EPOCHS:
        max_images = QUICK_IMAGES
    network = getattr(args, "network", None) or ""
    operations = getattr(args, "operations", OPERATIONS)
    precision = devices.resolved(args.precision, platform)
    return Protocol(base, max_images or None, args.steps, precision, network, operations)


# --- How a sweep is done ---------------------------------------------------------------------


def sweep_parser(description: str) -> argparse.ArgumentParser:
    """A parser of what is trained on and how, how much of it, where, and where it is kept."""
    sweep = parser(description)
    add_data(sweep)
    add_protocol(sweep)
    add = sweep.add_argument
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--seeds", type=positive, default=1, help="number of seeds: 0, 1, ...")
    text = "folder for results, where finished runs are looked up, too"
    add("--results-dir", type=path, default="runs", help=text)
    text = "folder for TensorBoard event files of all trainings, with inlier priority"
    add("--tensorboard", type=path, metavar="DIR", help=text)
    text = "minutes between saves of a training"
    add("--checkpoint-minutes", type=float, default=3, metavar="MINUTES", help=text)
    text = "runs in progress, each on its share of the devices; auto: one per device and training"
    add("--runs-at-once", type=_auto_or_positive, default="auto", metavar="N", help=text)
    text = "do only every N-th run, from the I-th on (default: all runs)"
    add("--shard", type=shard, default=(1, 1), metavar="I/N", help=text)
    add_deterministic(sweep)
    _add_cluster(sweep.add_argument_group("a cluster", "Each run is a task of a Ray cluster."))
    text = "Every process runs the same command; only the first one writes."
    _add_job(sweep.add_argument_group("several processes", text))
    return sweep


def _add_cluster(group) -> None:
    add = group.add_argument
    add("--engine", default="local", choices=("local", "ray"), help="where to do the runs")
    add("--ray-address", help="address (default: RAY_ADDRESS, or a cluster of this machine)")
    text = "resources of each run: CPU=2, GPU=0.5 or TPU=1 (default: an accelerator, else a CPU)"
    add("--share", nargs="+", type=_share, metavar="NAME=AMOUNT", help=text)


def _add_job(group) -> None:
    add = group.add_argument
    text = "this process is part of a job; Slurm, Open MPI, Kubernetes and TPU pods set the rest"
    add("--distributed", action="store_true", help=text)
    add("--coordinator", metavar="HOST:PORT", help="address of the first process")
    add("--num-processes", type=positive, help="number of processes of the job")
    add("--process-id", type=int, help="number of this process, from 0")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, with those of :func:`sweep_parser` among them."""
    args = parser.parse_args()
    ray, job, at_once = args.engine == "ray", args.distributed, args.runs_at_once
    named = (args.coordinator, args.num_processes, args.process_id) != (None, None, None)
    address = args.coordinator or "HOST:0"
    wrong = {
        "--ray-address and --share need --engine ray": not ray and (args.ray_address or args.share),
        "--engine ray shares out the cluster: leave out --distributed": ray and job,
        "--engine ray shares out the cluster: leave out --runs-at-once": ray and at_once != "auto",
        "--tensorboard needs --engine local": ray and args.tensorboard,
        "--distributed does one run at a time: leave out --runs-at-once": job
        and at_once not in ("auto", 1),
        "--coordinator, --num-processes and --process-id need --distributed": named and not job,
        f"--coordinator is HOST:PORT, got {address!r}": not re.fullmatch(r".+:\d+", address),
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            parser.error(sentence)
    return args


def _auto_or_positive(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _share(text: str) -> tuple[str, float]:
    """For argparse: "GPU=0.5" as ("GPU", 0.5)."""
    match = re.fullmatch(r"(CPU|GPU|TPU)=(\d*\.?\d+)", text)
    if not match or not float(match[2]):
        usage = "use e.g. CPU=2, GPU=1, GPU=0.5 or TPU=1"
        raise argparse.ArgumentTypeError(f"invalid share {text!r}: {usage}")
    return match[1], float(match[2])

"""Runs E3Outlier and what it is compared with on a benchmark; writes tables and figures.

Each class in turn is the inliers; outliers are drawn from the others. Everything that is finished
stays on disk: the same command again, also after Ctrl-C or a crash, does only what is missing.
"""

import argparse
import contextlib
import functools
import itertools
import re
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import engines
import jax
import numpy as np
import progress
import protocols
import runs
import runtime
import sweep
from jax.experimental import multihost_utils
from rich.console import Console

from e3jax import contamination, images, networks, operations


class Variant(NamedTuple):
    """A part of a plan: what is compared there, and how its runs are done."""

    protocol: protocols.Protocol
    operations: str
    methods: Sequence[str]
    ratios: Sequence[float]


# The paper's 3 epochs with SGD are too few steps for fewer images than this; the score may invert.
_FEW_IMAGES = 2000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    protocols.add_data_arguments(parser)
    add("--ratios", type=float, nargs="+", default=[0.1], help="outlier ratios, share of the set")
    add(
        "--methods",
        nargs="+",
        default=runs.DEFAULT_METHODS,
        choices=("all", *runs.METHODS),
        metavar="METHOD",
        help=f"what to compare: {', '.join(runs.METHODS)}; methods that share a training are all "
        "done by it. all: Table 1, RDAE as published and pixels",
    )
    protocols.add_arguments(parser)
    protocols.add_network_and_operations(parser)
    add_sweep_arguments(parser)
    return parse(parser)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is done, where, and where it is kept: the flags of every sweep."""
    add = parser.add_argument
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--seeds", type=runtime.positive, default=1, help="number of seeds: 0, 1, ...")
    add("--results-dir", default="runs", help="where results go, and where finished ones are found")
    add(
        "--tensorboard",
        metavar="DIR",
        help="write TensorBoard event files of every training there, with inlier priority recorded",
    )
    add("--checkpoint-minutes", type=float, default=3, help="between saves inside a training")
    add(
        "--runs-at-once",
        type=_auto_or_positive,
        default="auto",
        help="runs in flight, each on its share of the devices; auto: one a device, at most as "
        "many as there are trainings",
    )
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do every N-th run of the plan alone, the I-th of 1 to N; all shards may share "
        "--results-dir",
    )
    _add_ray_arguments(parser)
    _add_job_arguments(parser)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command's arguments, with :func:`add_sweep_arguments` among them."""
    arguments = parser.parse_args()
    if complaint := _ray_complaint(arguments) or _job_complaint(arguments):
        parser.error(complaint)
    return arguments


def _add_ray_arguments(parser: argparse.ArgumentParser) -> None:
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


def _ray_complaint(arguments: argparse.Namespace) -> str:
    """What is wrong with the flags for a cluster, in one sentence; "" if nothing."""
    if arguments.engine == "local":
        given = arguments.ray_address or arguments.share
        return "--ray-address and --share need --engine ray" if given else ""
    if arguments.distributed or arguments.runs_at_once != "auto":
        return "--engine ray shares out the cluster: leave out --distributed and --runs-at-once"
    return "--tensorboard needs --engine local" if arguments.tensorboard else ""


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
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
    add("--num-processes", type=runtime.positive, help="processes of the job")
    add("--process-id", type=int, help="which of them this is, from 0")


def _job_complaint(arguments: argparse.Namespace) -> str:
    """What is wrong with the flags for several processes, in one sentence; "" if nothing."""
    given = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if arguments.distributed and arguments.runs_at_once not in ("auto", 1):
        return "--distributed does one run at a time, so --runs-at-once must be 1"
    if given == (None, None, None):
        return ""
    if not arguments.distributed:
        return "--coordinator, --num-processes and --process-id need --distributed"
    if None in given:
        return "--coordinator, --num-processes and --process-id are given together or not at all"
    if not re.fullmatch(r".+:\d+", arguments.coordinator):
        return f"--coordinator is HOST:PORT, got {arguments.coordinator!r}"
    if not 0 <= arguments.process_id < arguments.num_processes:
        return (
            f"--process-id is one of 0 to {arguments.num_processes - 1}, got {arguments.process_id}"
        )
    return ""


def _auto_or_positive(text: str) -> int | str:
    return text if text == "auto" else runtime.positive(text)


def _shard(text: str) -> tuple[int, int]:
    """For argparse: "2/4" as (2, 4)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 1/4, 2/4, 3/4 or 4/4")
    return int(found[1]), int(found[2])


def main() -> int:
    arguments = parse_arguments()
    return run(arguments, functools.partial(asked, arguments))


def asked(arguments: argparse.Namespace, base: protocols.Protocol) -> list[Variant]:
    """The plan of this command: one part."""
    return [Variant(base, arguments.operations, arguments.methods, arguments.ratios)]


def run(
    arguments: argparse.Namespace,
    variants: Callable[[protocols.Protocol], list[Variant]],
    draw: Callable[[sweep.Folder], None] = lambda folder: None,
) -> int:
    """Does a sweep and all that a person wants to know of it.

    Args:
      arguments: the command's.
      variants: the plan's parts, given the protocol that the arguments name.
      draw: what else to make of the results.

    Returns:
      the command's exit code.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = None
    try:
        with contextlib.ExitStack() as stack:
            folder, engine = _start(arguments)
            stack.callback(engine.close)
            # The other processes of a job compute, and are silent unless they fail.
            console.quiet = jax.process_index() > 0
            failures = Benchmark(arguments, variants, engine, folder, console).run_all()
        if folder:
            print(folder.write_tables())
            draw(folder)
            console.print(f"Tables, figures and every image's scores are in {folder.path}/")
    except (ValueError, OSError) as error:  # images.InputError is a ValueError
        console.quiet = False
        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        if folder and folder.rows():
            folder.write_tables()
        console.print("Stopped. What is finished is kept; the same command continues from here.")
        return 130
    for failure in failures:
        console.print(f"failed: {failure}", style="red")
    if failures:
        console.print(
            f"{len(failures)} run(s) failed, see {folder.runs}/*.failed; the same command tries "
            "them again"
        )
    return 1 if failures else 0


def _start(arguments: argparse.Namespace) -> tuple[sweep.Folder | None, engines.Engine]:
    """The results folder, None in all but the first process of a job, and the engine."""
    if arguments.engine == "ray":
        engine = engines.OnRay(arguments)
        return sweep.Folder(arguments.results_dir), engine
    runtime.start(
        arguments.distributed,
        arguments.coordinator,
        arguments.num_processes,
        arguments.process_id,
    )
    folder = None if jax.process_index() else sweep.Folder(arguments.results_dir)
    return folder, engines.InProcess(arguments, folder)


class Benchmark:
    """The plan of a command, and what is kept of its runs.

    In a job of several processes every one has such an object and takes the same decisions;
    ``folder`` is None in all but the first.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        variants: Callable[[protocols.Protocol], list[Variant]],
        engine: engines.Engine,
        folder: sweep.Folder | None,
        console: Console,
    ):
        self.arguments, self.engine = arguments, engine
        self.folder, self.console = folder, console
        self.dataset = protocols.load(arguments, console.print)
        grey = self.dataset.images.shape[-1] == 1
        self.variants = variants(protocols.resolve(arguments, grey, engine.platform))
        # By name: what is asked for twice is done once.
        plan = list({run.name: run for run in self._plan()}.values())
        self._check(plan)
        self.largest = max(runs.size(self.dataset, run) for run in plan)
        engine.split(sum(runs.TRAININGS[run.method].on_devices for run in plan))
        self.runs = self._shard(plan)
        self.todo = self._missing()
        self.failures: list[str] = []
        self._announce()

    def _plan(self) -> Iterator[sweep.Run]:
        classes = self.arguments.classes or range(len(self.dataset.class_names))
        for seed, variant in itertools.product(range(self.arguments.seeds), self.variants):
            asked = runs.TABLE_METHODS if "all" in variant.methods else variant.methods
            trainings = dict.fromkeys(runs.METHODS[method] for method in asked)
            for ratio, inlier_class, method in itertools.product(
                variant.ratios, classes, trainings
            ):
                yield sweep.Run(
                    dataset=self.dataset.name,
                    source=self.dataset.source,
                    method=method,
                    inlier_class=inlier_class,
                    ratio=ratio,
                    seed=seed,
                    max_images=variant.protocol.max_images,
                    **runs.TRAININGS[method].describe(variant.protocol, variant.operations),
                )

    def _check(self, plan: list[sweep.Run]) -> None:
        """Finds what is wrong with a plan before its first run, not after an hour."""
        known = range(len(self.dataset.class_names))
        for run in plan:
            if run.inlier_class not in known:
                raise images.InputError(
                    f"no image of {run.dataset} has the inlier class {run.inlier_class}: "
                    f"choose from 0 to {known[-1]}"
                )
        for variant in self.variants:
            k = len(operations.operation_set(variant.operations))
            networks.build(variant.protocol.config.network, k)
        for ratio in {run.ratio for run in plan}:
            sets = [run for run in plan if run.ratio == ratio]
            runs.draw(self.dataset, min(sets, key=lambda run: runs.size(self.dataset, run)))

    def _shard(self, plan: list[sweep.Run]) -> list[sweep.Run]:
        """Every N-th run, counted method by method: each shard has its part of the slow ones."""
        if not self.arguments.shard:
            return plan
        i, n = self.arguments.shard
        mine = {run.name for run in sorted(plan, key=lambda run: run.method)[i - 1 :: n]}
        return [run for run in plan if run.name in mine]

    def _missing(self) -> list[sweep.Run]:
        """The runs to do, as the first process sees them, which alone need see the folder."""
        done = np.array([bool(self.folder and self.folder.is_done(run)) for run in self.runs])
        if jax.process_count() > 1:
            plan = repr([run.name for run in self.runs]).encode()
            digest = np.uint32(zlib.crc32(self.dataset.images, zlib.crc32(plan)))
            if len(set(multihost_utils.process_allgather(digest).tolist())) > 1:
                raise ValueError("the processes of this job have different commands or images")
            done = multihost_utils.broadcast_one_to_all(done)
        return [run for run, is_done in zip(self.runs, done, strict=True) if not is_done]

    def _announce(self) -> None:
        """Says what is going to be done, with what, before anything slow starts."""
        say, n, shard = self.console.print, self.largest, self.arguments.shard
        say(f"Data: {self.dataset.name} from {self.dataset.source}, sets of up to {n} images")
        for description in dict.fromkeys(map(self._describe, self.variants)):
            say(f"Protocol: {description}")
        say(f"Device: {self.engine.device}")
        say(f"Runs at once: {self.engine.at_once}")
        of_shard = f" of shard {shard[0]} of {shard[1]}" if shard else ""
        done = len(self.runs) - len(self.todo)
        say(f"Plan: {len(self.runs)} runs{of_shard}, {done} of them finished before")
        name, config, _ = self.variants[0].protocol
        if "paper" in name and config.optimizer == "sgd" and n < _FEW_IMAGES:
            say(
                f"Warning: the paper's protocol takes too few steps on {n} images to learn: scores "
                "may be inverted; use --protocol quick or more images",
                style="yellow",
            )

    def _describe(self, variant: Variant) -> str:
        name, config, _ = variant.protocol
        k = len(operations.operation_set(variant.operations))
        return (
            f"{name} ({config.network}, {k} operations, {config.optimizer}, "
            f"{config.num_steps(self.largest, k)} steps of {config.batch_size} views, "
            f"{config.precision})"
        )

    def run_all(self) -> list[str]:
        """Does what is missing; returns a sentence for each run that failed."""
        work, at_once = sum(runs.cost(self.dataset, run) for run in self.todo), self.engine.at_once
        with progress.Meter(self.console, work, len(self.todo), max(at_once, 1)) as meter:
            self.engine.run_all(self.todo, self.dataset, meter, self._finish)
        return self.failures

    def _finish(
        self,
        run: sweep.Run,
        data: contamination.Contaminated,
        outcome: runs.Outcome | Exception | None,
        bar: progress.Bar,
    ) -> None:
        """Puts a run on disk; see :mod:`engines`."""
        if self.folder is None:
            return
        if isinstance(outcome, Exception):
            self.failures.append(f"{run.title}: {self.folder.fail(run, outcome)}")
            bar.finish(f"{run.title}: failed", "")
            return
        extra = outcome.measured | {"n_inliers": data.n_inliers, "n_outliers": data.n_outliers}
        extra |= {"commit": sweep.commit()}
        rows = self.folder.finish(run, outcome.scores, data.is_outlier, data.ids, extra)
        bar.finish(f"{run.title}: AUROC {rows[0]['auroc']:.1%}", extra["warning"])


if __name__ == "__main__":
    sys.exit(main())

"""Runs E3Outlier and pixel baselines on a benchmark and writes tables and figures.

Each class in turn is the inliers; outliers are drawn from the others. Everything that is finished
stays on disk: the same command again, also after Ctrl-C or a crash, does only what is missing.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import queue
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import live
import numpy as np
import progress
import protocols
import runtime
import sweep
from jax.experimental import multihost_utils
from rich.console import Console

from e3jax import checkpoint, datasets, images, operations, priority, scoring, training
from e3jax.baselines import pixels

METHODS = ("e3outlier", *pixels.METHODS)
# The paper's 3 epochs with SGD are too few steps for fewer images than this; the score may invert.
_FEW_IMAGES = 2000
# A training view costs about three scored ones (forward and backward).
_TRAIN_COST = 3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    protocols.add_data_arguments(parser)
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--ratios", type=float, nargs="+", default=[0.1], help="outlier ratios, share of the set")
    add("--seeds", type=runtime.positive, default=1, help="number of seeds: 0, 1, ...")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="what to run")
    protocols.add_arguments(parser)
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
    _add_job_arguments(parser)
    arguments = parser.parse_args()
    if complaint := _job_complaint(arguments):
        parser.error(complaint)
    return arguments


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


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = None
    try:
        runtime.start(
            arguments.distributed,
            arguments.coordinator,
            arguments.num_processes,
            arguments.process_id,
        )
        # The other processes of a job compute, and are silent unless they fail.
        console.quiet = jax.process_index() > 0
        folder = None if jax.process_index() else sweep.Folder(arguments.results_dir)
        Benchmark(arguments, folder, console).run_all()
        if folder:
            print(folder.write_tables())
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
    return 0


class Station(NamedTuple):
    """Devices that do one run after the other, and what was built for them."""

    mesh: jax.sharding.Mesh
    trainer: training.Trainer
    score: Callable[..., scoring.Scores]


class Stopped(Exception):
    """Raised in a run's thread once the command has failed or was interrupted."""


class Benchmark:
    """The plan of a command and the loop over its runs.

    In a job of several processes every one has such an object and takes the same decisions;
    ``folder`` is None in all but the first.
    """

    def __init__(self, arguments: argparse.Namespace, folder: sweep.Folder | None, console):
        self.arguments, self.folder, self.console = arguments, folder, console
        self.stop, self.writing = threading.Event(), threading.Lock()
        if arguments.tensorboard:
            live.check()
        device = jax.devices()[0]
        self.dataset = protocols.load(arguments, console.print)
        self.operations = operations.operation_set(arguments.operations)
        grey = self.dataset.images.shape[-1] == 1
        self.protocol, self.config, self.max_images = protocols.resolve(arguments, grey)
        self.runs = list(self._plan())
        self._check()
        self.at_once = self._runs_at_once()
        self.meshes = self._split_devices()
        self.device = f"{self.meshes[0].size} x {device.device_kind}"
        self.todo = self._missing()
        self._announce()

    def _plan(self) -> Iterator[sweep.Run]:
        arguments = self.arguments
        classes = arguments.classes or range(len(self.dataset.class_names))
        for seed, ratio, inlier_class, method in itertools.product(
            range(arguments.seeds), arguments.ratios, classes, arguments.methods
        ):
            learns = method == "e3outlier"
            yield sweep.Run(
                dataset=self.dataset.name,
                source=self.dataset.source,
                method=method,
                network=self.config.network if learns else "",
                operations=arguments.operations if learns else "",
                inlier_class=inlier_class,
                ratio=ratio,
                seed=seed,
                protocol=self.protocol if learns else "",
                max_images=self.max_images,
                config=self.config._asdict() if learns else {},
            )

    def _contaminated(self, run: sweep.Run) -> datasets.Contaminated:
        data, draw = self.dataset, (run.inlier_class, run.ratio, run.seed)
        return datasets.contaminate(data.images, data.labels, *draw, max_images=run.max_images)

    def _check(self) -> None:
        """Finds what is wrong with a plan before its first run, not after an hour."""
        known = range(len(self.dataset.class_names))
        for run in self.runs:
            if run.inlier_class not in known:
                raise images.InputError(
                    f"no image of {run.dataset} has the inlier class {run.inlier_class}: "
                    f"choose from 0 to {known[-1]}"
                )
        for ratio in self.arguments.ratios:
            runs = [run for run in self.runs if run.ratio == ratio]
            self._contaminated(min(runs, key=self._size))

    def _runs_at_once(self) -> int:
        """Runs in flight. Small ones use a machine better side by side than each split over it.

        "auto" looks at what was planned, not at what is left: it decides over how many devices a
        batch is split, and a command that continues must give the same numbers.
        """
        asked, devices = self.arguments.runs_at_once, jax.device_count()
        if jax.process_count() > 1:
            return 1
        if asked == "auto":
            trainings = sum(run.method == "e3outlier" for run in self.runs)
            fitting = (n for n in range(1, devices + 1) if devices % n == 0)
            return max(n for n in fitting if n <= max(trainings, 1))
        if devices % asked and asked % devices:
            raise ValueError(
                f"--runs-at-once {asked} cannot share {devices} devices evenly: give a number that "
                f"divides {devices}, or a multiple of it"
            )
        return asked

    def _split_devices(self) -> list[jax.sharding.Mesh]:
        """A mesh for every run in flight, or as many as there are devices if those are fewer."""
        devices = jax.devices()
        size = max(len(devices) // self.at_once, 1)
        groups = (devices[i : i + size] for i in range(0, len(devices), size))
        return [training.device_mesh(group) for group in groups]

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
        say, config = self.console.print, self.config
        n = max(self._size(run) for run in self.runs)
        steps = config.num_steps(n, len(self.operations))
        say(f"Data: {self.dataset.name} from {self.dataset.source}, sets of up to {n} images")
        say(
            f"Protocol: {self.protocol} ({config.network}, {len(self.operations)} operations, "
            f"{config.optimizer}, {steps} steps of {config.batch_size} views, {config.dtype})"
        )
        say(f"Device: {self.device}")
        say(f"Runs at once: {self.at_once}")
        done = len(self.runs) - len(self.todo)
        say(f"Plan: {len(self.runs)} runs, {done} of them finished before")
        if "paper" in self.protocol and config.optimizer == "sgd" and n < _FEW_IMAGES:
            say(
                f"Warning: the paper's protocol takes only {steps} steps on {n} images, too few "
                "to learn: scores may be inverted; use --protocol quick or more images",
                style="yellow",
            )

    def run_all(self) -> None:
        """Does what is missing; every finished run is on disk before its thread takes the next."""
        stations = [self._station(mesh) for mesh in self.meshes]
        todo = queue.SimpleQueue()
        for run in [*self.todo, *[None] * self.at_once]:
            todo.put(run)
        work = sum(map(self._work, self.todo))
        with (
            progress.Meter(self.console, work, len(self.todo), self.at_once) as meter,
            concurrent.futures.ThreadPoolExecutor(self.at_once) as threads,
        ):
            try:
                # Threads suffice: nearly all time is spent in XLA.
                for thread in concurrent.futures.as_completed(
                    threads.submit(self._work_off, todo, stations[i % len(stations)], meter)
                    for i in range(self.at_once)
                ):
                    thread.result()
            except BaseException:
                self.stop.set()
                raise

    def _station(self, mesh: jax.sharding.Mesh) -> Station:
        config = self.config
        # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
        chunk = 10 if mesh.devices.flat[0].platform == "cpu" else 200
        probe = None
        if self.arguments.tensorboard:
            probe = priority.make_probe(config.network, self.operations, config.dtype)
        return Station(
            mesh,
            training.make_trainer(config, self.operations, mesh, chunk, probe),
            scoring.make_scorer(config.network, self.operations, mesh, config.dtype),
        )

    def _work_off(self, todo: queue.SimpleQueue, station: Station, meter: progress.Meter) -> None:
        while run := todo.get():
            self._go_on()
            self._do(run, station, meter)

    def _go_on(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _do(self, run: sweep.Run, station: Station, meter: progress.Meter) -> None:
        title = f"{run.dataset} class {run.inlier_class} {run.method} seed {run.seed}"
        bar = meter.start(title, self._work(run))
        data = self._contaminated(run)
        if run.method == "e3outlier":
            scores, extra = self._e3outlier(run, station, data, bar)
        elif self.folder:
            scores, extra = self._pixels(run, data.images)
        if self.folder is None:
            return
        extra |= {"n_inliers": data.n_inliers, "n_outliers": data.n_outliers}
        extra |= {"device": self.device} | sweep.provenance()
        with self.writing:  # matplotlib serves one thread at a time
            rows = self.folder.finish(run, scores, data.is_outlier, data.ids, extra)
        bar.finish(f"{title}: AUROC {rows[0]['auroc']:.1%}", extra["warning"])

    def _e3outlier(
        self, run: sweep.Run, station: Station, data: datasets.Contaminated, bar: progress.Bar
    ) -> tuple[dict, dict]:
        k = len(self.operations)
        with contextlib.ExitStack() as stack:
            events = None
            if self.arguments.tensorboard:
                folder = Path(self.arguments.tensorboard, run.name) if self.folder else None
                events = live.EventFiles(folder, self.config, data.is_outlier, k, station.mesh.size)
                stack.enter_context(contextlib.closing(events))
            state, train_seconds = self._train(run, station, data.images, bar, events)
        start, done = time.monotonic(), 0

        def on_block(images_done: int) -> None:
            nonlocal done
            self._go_on()
            bar.advance((images_done - done) * k, "scoring")
            done = images_done

        scores = station.score(state.variables, data.images, on_block)
        names = {"e3outlier": scores.ne, "e3outlier-pl": scores.pl, "e3outlier-mp": scores.mp}
        return names, {
            "steps": self.config.num_steps(len(data.images), k),
            "pretext_accuracy": float(scores.accuracy.mean()),
            "train_seconds": train_seconds,
            "score_seconds": time.monotonic() - start,
            "warning": scoring.health(scores, k),
        }

    def _train(
        self,
        run: sweep.Run,
        station: Station,
        data: np.ndarray,
        bar: progress.Bar,
        events: live.EventFiles | None,
    ) -> tuple[training.TrainState, float]:
        """The trained state and the seconds it took, with those of an earlier start."""
        config, trainer = self.config, station.trainer
        bank = training.place_bank(station.mesh, data, max(map(self._size, self.runs)))
        key = jax.random.fold_in(jax.random.key(run.seed), run.inlier_class)
        state, before = trainer.init(key, data.shape[-1]), 0.0
        # The other processes of a job have no folder and touch none.
        where = self.folder.checkpoint(run) if self.folder else run.name
        with contextlib.closing(checkpoint.TrainCheckpoint(where)) as saved:
            if restored := saved.restore(state):
                state, before = restored
                bar.skip(int(state.step) * config.batch_size * _TRAIN_COST)
            start = last_save = time.monotonic()
            probe_data = training.place(station.mesh, events.probe_set) if events else ()

            def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
                nonlocal last_save
                log = jax.device_get(log)
                self._go_on()
                if events:
                    events.write(int(state.step), log)
                bar.advance(
                    int(np.isfinite(log.accuracy).sum()) * config.batch_size * _TRAIN_COST,
                    f"loss {np.nanmean(log.loss):.3f}, "
                    f"pretext accuracy {np.nanmean(log.accuracy):.0%}",
                )
                if time.monotonic() - last_save >= 60 * self.arguments.checkpoint_minutes:
                    saved.save(state, before + time.monotonic() - start)
                    last_save = time.monotonic()

            total = config.num_steps(len(data), len(self.operations))
            state = training.train(trainer, state, bank, len(data), total, on_chunk, probe_data)
            train_seconds = before + time.monotonic() - start
            if train_seconds >= 60 * self.arguments.checkpoint_minutes:
                saved.save(state, train_seconds)
        return state, train_seconds

    def _pixels(self, run: sweep.Run, data: np.ndarray) -> tuple[dict, dict]:
        start = time.monotonic()
        scores = pixels.score(jax.random.key(run.seed), data, run.method)
        seconds = time.monotonic() - start
        empty = {"steps": "", "pretext_accuracy": "", "train_seconds": "", "warning": ""}
        return scores, empty | {"score_seconds": seconds}

    def _size(self, run: sweep.Run) -> int:
        """Images in a run's set, or a few more: known before it is drawn."""
        inliers = int(np.sum(self.dataset.labels == run.inlier_class))
        return min(int(inliers / (1 - run.ratio)) + 1, run.max_images or 12_000)

    def _work(self, run: sweep.Run) -> int:
        """What a run costs, in scored views."""
        if run.method != "e3outlier":
            return 0
        n, k = self._size(run), len(self.operations)
        return _TRAIN_COST * self.config.num_steps(n, k) * self.config.batch_size + n * k


if __name__ == "__main__":
    sys.exit(main())

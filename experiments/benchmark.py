"""Runs E3Outlier and pixel baselines on a benchmark and writes tables and figures.

Each class in turn is the inliers; outliers are drawn from the others. Everything that is finished
stays on disk: the same command again, also after Ctrl-C or a crash, does only what is missing.
"""

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
import sweep
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from e3jax import checkpoint, datasets, images, operations, scoring, training
from e3jax.baselines import pixels

METHODS = ("e3outlier", *pixels.METHODS)
QUICK_IMAGES = 500
# The paper's 3 epochs with SGD are too few steps for fewer images than this; the score may invert.
_FEW_IMAGES = 2000
# A training view costs about three scored ones (forward and backward).
_TRAIN_COST = 3
_MOST_CPU_DEVICES = 6  # as a power of two: 64, the quick protocol's batch


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
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
    add("--classes", type=int, nargs="+", help="inlier classes (default: each in turn)")
    add("--ratios", type=float, nargs="+", default=[0.1], help="outlier ratios, share of the set")
    add("--seeds", type=_positive, default=1, help="number of seeds: 0, 1, ...")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, help="what to run")
    add(
        "--protocol",
        default="auto",
        choices=("auto", "paper", "quick"),
        help="paper: the paper's training; quick: sized for a CPU, on "
        f"{QUICK_IMAGES} images a class; auto: paper on an accelerator, quick on a CPU",
    )
    add("--steps", type=_positive, help="length of a training (default: the protocol's)")
    add("--network", help="wrn-DEPTH-WIDTH (default: the protocol's)")
    add("--operations", default="RA+IA+PR", help="families of operations, e.g. RA or RA+IA")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of convolutions")
    add("--max-images", type=int, help="cut each set to so many (0: all; default: the protocol's)")
    add("--results-dir", default="runs", help="where results go, and where finished ones are found")
    add("--checkpoint-minutes", type=float, default=3, help="between saves inside a training")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1: give a positive number")
    return number


def main() -> int:
    arguments = parse_arguments()
    # One device a core: XLA uses the cores of a machine better through a mesh than by itself.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", 2 ** min(cores.bit_length() - 1, _MOST_CPU_DEVICES))
    jax.config.update("jax_compilation_cache_dir", str(datasets.cache_folder() / "compiled"))
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = sweep.Folder(arguments.results_dir)
        Benchmark(arguments, folder, console).run_all()
        print(folder.write_tables())
        console.print(f"Tables, figures and every image's scores are in {folder.path}/")
    except (ValueError, OSError) as error:  # images.InputError is a ValueError
        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        if folder.rows():
            folder.write_tables()
        console.print("Stopped. What is finished is kept; the same command continues from here.")
        return 130
    return 0


class Benchmark:
    """The plan of a command and the loop over its runs."""

    def __init__(self, arguments: argparse.Namespace, folder: sweep.Folder, console: Console):
        self.arguments, self.folder, self.console = arguments, folder, console
        self.mesh = training.device_mesh()
        device = self.mesh.devices.flat[0]
        self.device = f"{self.mesh.size} x {device.device_kind}"
        self.protocol = arguments.protocol
        if self.protocol == "auto":
            self.protocol = "quick" if device.platform == "cpu" else "paper"
        self.dataset = datasets.load(
            arguments.dataset,
            data_dir=arguments.data_dir,
            source=arguments.source,
            announce=console.print,
        )
        self.operations = operations.operation_set(arguments.operations)
        quick, grey = self.protocol == "quick", self.dataset.images.shape[-1] == 1
        config = training.quick_config() if quick else training.paper_config(grey)
        network = arguments.network or config.network
        steps = arguments.steps or config.steps
        self.config = config._replace(network=network, dtype=arguments.dtype, steps=steps)
        # A changed protocol is another one: its runs must not be averaged with the original's.
        if arguments.steps:
            self.protocol += f"-{arguments.steps}steps"
        if arguments.dtype != config.dtype:
            self.protocol += f"-{arguments.dtype}"
        self.max_images = QUICK_IMAGES if quick else None
        if arguments.max_images is not None:
            self.max_images = arguments.max_images or None
        self.runs = list(self._plan())
        self._check()
        self.todo = [run for run in self.runs if not folder.is_done(run)]
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
        done = len(self.runs) - len(self.todo)
        say(f"Plan: {len(self.runs)} runs, {done} of them finished before")
        if "paper" in self.protocol and config.optimizer == "sgd" and n < _FEW_IMAGES:
            say(
                f"Warning: the paper's protocol takes only {steps} steps on {n} images, too few "
                "to learn: scores may be inverted; use --protocol quick or more images",
                style="yellow",
            )

    def run_all(self) -> None:
        """Does what is missing; every finished run is on disk before the next starts."""
        capacity = max(map(self._size, self.runs))
        # Short enough for a prompt answer to Ctrl-C, long enough not to wait for the host.
        chunk = 10 if self.mesh.devices.flat[0].platform == "cpu" else 200
        trainer = training.make_trainer(self.config, self.operations, self.mesh, chunk)
        scorer = scoring.make_scorer(
            self.config.network, self.operations, self.mesh, self.config.dtype
        )
        with Meter(self.console, sum(map(self._work, self.todo)), len(self.todo)) as meter:
            for run in self.todo:
                title = f"{run.dataset} class {run.inlier_class} {run.method} seed {run.seed}"
                meter.start(title, self._work(run))
                data = self._contaminated(run)
                if run.method == "e3outlier":
                    bank = training.place_bank(self.mesh, data.images, capacity)
                    scores, extra = self._e3outlier(run, trainer, scorer, bank, data.images, meter)
                else:
                    scores, extra = self._pixels(run, data.images)
                extra |= {"n_inliers": data.n_inliers, "n_outliers": data.n_outliers}
                extra |= {"device": self.device} | sweep.provenance()
                rows = self.folder.finish(run, scores, data.is_outlier, data.ids, extra)
                meter.finish(f"{title}: AUROC {rows[0]['auroc']:.1%}", extra["warning"])

    def _e3outlier(self, run, trainer, scorer, bank, data, meter) -> tuple[dict, dict]:
        n, k, config = len(data), len(self.operations), self.config
        key = jax.random.fold_in(jax.random.key(run.seed), run.inlier_class)
        state, before = trainer.init(key, data.shape[-1]), 0.0
        saved = checkpoint.TrainCheckpoint(self.folder.checkpoint(run))
        if restored := saved.restore(state):
            state, before = restored
            meter.advance(int(state.step) * config.batch_size * _TRAIN_COST)
        total, start, last_save = config.num_steps(n, k), time.monotonic(), time.monotonic()

        def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
            nonlocal last_save
            steps = np.isfinite(np.asarray(log.accuracy))
            text = (
                f"loss {np.nanmean(log.loss):.3f}, pretext accuracy {np.nanmean(log.accuracy):.0%}"
            )
            meter.advance(int(steps.sum()) * config.batch_size * _TRAIN_COST, text)
            if time.monotonic() - last_save >= 60 * self.arguments.checkpoint_minutes:
                saved.save(state, before + time.monotonic() - start)
                last_save = time.monotonic()

        state = training.train(trainer, state, bank, n, total, on_chunk)
        train_seconds, start = before + time.monotonic() - start, time.monotonic()
        if train_seconds >= 60 * self.arguments.checkpoint_minutes:
            saved.save(state, train_seconds)
        saved.close()
        done = 0

        def on_block(images_done: int) -> None:
            nonlocal done
            meter.advance((images_done - done) * k, "scoring")
            done = images_done

        scores = scorer(state.variables, data, on_block)
        names = {"e3outlier": scores.ne, "e3outlier-pl": scores.pl, "e3outlier-mp": scores.mp}
        return names, {
            "steps": total,
            "pretext_accuracy": float(scores.accuracy.mean()),
            "train_seconds": train_seconds,
            "score_seconds": time.monotonic() - start,
            "warning": scoring.health(scores, k),
        }

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


class Meter:
    """Two progress bars on a terminal; elsewhere one line a finished run and one estimate."""

    def __init__(self, console: Console, total_work: int, runs: int):
        self.console, self.total, self.runs = console, total_work, runs
        self.done, self.number, self._mark = 0, 0, None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # On a terminal alone: elsewhere rich would print its bars once more at the end.
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.all = self.progress.add_task("all runs", total=max(total_work, 1), note="")
        self.current = None

    def __enter__(self) -> "Meter":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def start(self, title: str, work: int) -> None:
        self.number += 1
        self.end = self.done + work
        self.current = self.progress.add_task(title, total=max(work, 1), note="compiling")

    def advance(self, work: int, note: str = "") -> None:
        self.done += work
        self.progress.update(self.current, advance=work, note=note)
        self.progress.update(self.all, advance=work)
        self._estimate()

    def _estimate(self) -> None:
        """Once, from the second chunk of work: the first one compiles."""
        now = time.monotonic()
        if self._mark is None:
            self._mark = (now, self.done)
        elif self._mark and self.done > self._mark[1]:
            rate = (self.done - self._mark[1]) / (now - self._mark[0])
            minutes = (self.total - self.done) / rate / 60
            self.console.print(f"Estimate: about {max(minutes, 1):.0f} more minute(s) for all runs")
            self._mark = ()

    def finish(self, text: str, warning: str) -> None:
        self.progress.update(self.all, advance=max(self.end - self.done, 0))
        self.done = self.end
        self.progress.remove_task(self.current)
        self.console.print(f"[{self.number}/{self.runs}] {text}")
        if warning:
            self.console.print(f"    warning: {warning}", style="yellow")


if __name__ == "__main__":
    sys.exit(main())

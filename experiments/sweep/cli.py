"""A sweep from a command to its tables: plans, announces, does what is missing, tells failures."""

import argparse
import collections
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import command
import jax
import numpy as np
from jax.experimental import multihost_utils

from e3jax import devices, networks, priority
from e3jax.datasets.contamination import Contaminated
from e3jax.report import sheet
from e3jax.training import TrainConfig
from e3jax.training.checkpoint import TrainCheckpoint
from e3jax.training.fitting import Observer
from sweep import curves, engines, flags, plan, tensorboard
from sweep.methods import METHODS, perform
from sweep.plan import Protocol, Run, Variant
from sweep.progress import Bar, Meter
from sweep.store import Folder

# The paper's 3 epochs with SGD are too few steps for fewer images than this; the score may invert.
_FEW_IMAGES = 2000
# How often to look whether another command has finished, or lost, a run that is left.
_LOOK_SECONDS = 2


def run(
    args: argparse.Namespace,
    variants: Callable[[Protocol], list[Variant]],
    draw: Callable[[Path, list[dict]], object] = lambda folder, rows: None,
    drawn: Callable[[Path, str], Iterable[Path]] = lambda folder, protocol: (),
) -> int:
    """Does a sweep and all that a person wants to know of it.

    Args:
      args: the command's, see :func:`sweep.flags.parse`.
      variants: the plan's parts, given the protocol that the arguments name.
      draw: what else to make of the results: given their folder and rows.
      drawn: the figures that this writes: given the folder and the protocol's name.

    Returns:
      the command's exit code.
    """

    def work() -> int:
        if args.tensorboard:
            tensorboard.check(args.tensorboard)
        platform, make_engine = engines.prepare(args)
        folder = None if jax.process_index() else Folder(args.results_dir)
        # The other processes of a job compute, and are silent unless they fail.
        command.CONSOLE.quiet = folder is None
        try:
            protocol = flags.protocol(args, platform)
            for figure in drawn(folder.path, protocol.name) if folder else ():
                sheet.check_output(figure)
            failures = Sweep(args, variants(protocol), make_engine, folder).do()
        except KeyboardInterrupt:
            if folder:
                folder.write_tables()
            raise
        finally:
            command.CONSOLE.quiet = False
        if folder and (table := folder.write_tables()):
            print(table)
            draw(folder.path, folder.rows())
            command.say(f"Tables, figures and every image's scores are in {folder.path}/")
        for failure in failures:
            command.say(f"failed: {failure}", style="red")
        if failures:
            where = f"see {folder.runs}/*.failed; the same command tries them again"
            command.say(f"{len(failures)} run(s) failed, {where}")
        return min(len(failures), 1)

    return command.run(work, "What is finished is kept; the same command continues from here.")


class InFlight(NamedTuple):
    """A run that is being done.

    Attributes:
      run: which one.
      data: its set, without the images.
      bar: its part of the meter.
    """

    run: Run
    data: Contaminated
    bar: Bar


class Sweep:
    """The plan of a command, and what is to be done of it.

    In a job of several processes every one has such an object, and the first decides for all which
    run is next; ``folder`` is None in all others.
    """

    def __init__(self, args, variants: list[Variant], make_engine, folder: Folder | None):
        self.args, self.folder = args, folder
        self.dataset = flags.load(args)
        whole = plan.grid(self.dataset, variants, METHODS, args.seeds, args.classes)
        by_size = sorted(whole, key=lambda run: run.size(self.dataset), reverse=True)
        self.largest = by_size[0].size(self.dataset)
        # What is wrong with a plan is found before its first run, not after an hour.
        for network in {run.network for run in whole if run.network}:
            networks.check_classifier(network)
        for smallest in {run.ratio: run for run in by_size}.values():
            smallest.draw(self.dataset)
        self.runs = plan.shard(whole, *args.shard)
        self.series = collections.defaultdict(list)
        for run in self.runs:
            self.series[run.series].append(run)
        self.finished = folder.finished() if folder else set()
        self.todo = [i for i, run in enumerate(self.runs) if run.name not in self.finished]
        self.left, self.failures = len(self.todo), []
        self.in_flight: dict[futures.Future, InFlight] = {}
        self.engine = make_engine(sum(bool(run.config) for run in whole))
        if folder:
            folder.check_outputs(self.runs, self.finished, self.engine.device.split(" x ")[-1])

    def do(self) -> list[str]:
        """Does what is missing; returns a sentence for each run that failed."""
        self._agree()
        self._announce()
        work = sum(max(self.runs[i].steps(self.largest), 1) for i in self.todo)
        with Meter(work, len(self.todo)) as self.meter:
            try:
                self._do(self.engine.share(self.dataset.images))
            finally:
                self.meter.stopped.set()
                self.engine.shutdown(cancel_futures=True)
                for flight in self.in_flight.values():
                    flight.bar.close()
        return self.failures

    def _do(self, bank) -> None:
        while True:
            while len(self.in_flight) < self.engine.window and (taken := self._take()):
                self._start(bank, taken)
            if self.in_flight:
                timeout = _LOOK_SECONDS if self.left else None
                done, _ = futures.wait(self.in_flight, timeout, futures.FIRST_COMPLETED)
                for future in done:
                    self._finish(future)
            elif self.left:  # what is left is being done by another command
                time.sleep(_LOOK_SECONDS)
            else:
                return

    def _take(self) -> Run | None:
        """The next run that no other command is doing; None if there is none at the moment."""
        taken = -1
        for i in list(self.todo) if self.folder else ():
            run = self.runs[i]
            if self.folder.lock(run):
                self.todo.remove(i)
                if not self.folder.file(run, "json").exists():
                    taken = i
                    break
                self.folder.unlock(run)
                self.meter.tell(f"{run.title}: finished by another command")
                self._end(run)
        self.left = len(self.todo)
        taken, self.left = devices.broadcast_from_first(np.int32([taken, self.left])).tolist()
        return self.runs[taken] if taken >= 0 else None

    def _start(self, bank, run: Run) -> None:
        if self.folder is None and not run.config:
            return
        data, is_here = run.draw(self.dataset), self.engine.devices_each > 0
        bar = Bar(self.meter, run.title, run.steps(len(data.images)), is_here)
        flight = InFlight(run, data._replace(images=None), bar)
        options = {"on_progress": bar.on_progress} if is_here else {}
        if is_here and run.config:
            # The other processes of a job have no folder and touch none.
            state = self.folder.file(run, "state") if self.folder else run.name
            options["checkpoint"] = TrainCheckpoint(state, 60 * self.args.checkpoint_minutes)
            options["observer"] = self._observer(run, data, bar)
        executor = self.engine if run.config else self.engine.untrained
        future = executor.submit(perform, METHODS[run.method].do, run, bank, data.ids, options)
        self.in_flight[future] = flight

    def _observer(self, run: Run, data: Contaminated, bar: Bar) -> Observer:
        """Shows a training's log, and writes event files of it, with inlier priority."""
        observer = Observer(bar.on_log)
        if not self.args.tensorboard:
            return observer
        config = TrainConfig(**run.config)
        recording = curves.recording(data, config, devices=self.engine.devices_each)
        if self.folder:
            events, n = Path(self.args.tensorboard, run.name), len(data.images)
            bar.events = tensorboard.Writer(events, n, config, recording.weights)
        if not run.network:  # nor pseudo labels, which inlier priority is about
            return observer
        probe = priority.make_probe(config.network, config.k, config.precision)
        return observer._replace(probe=probe, every=curves.EVERY, data=recording.probe_set)

    def _finish(self, future: futures.Future) -> None:
        """Puts a run on disk, or why it failed."""
        run, data, bar = self.in_flight.pop(future)
        bar.close()
        error = future.exception()
        # The processes of a job cannot know whether a run failed in all of them.
        if error and jax.process_count() > 1:
            raise error
        if self.folder is None:
            return
        if error:
            self.failures.append(f"{run.title}: {self.folder.fail(run, error)}")
            bar.finish(f"{run.title}: failed")
        else:
            first, *_ = self.folder.finish(run, future.result(), data)
            bar.finish(f"{run.title}: AUROC {first['auroc']:.1%}", first["warning"])
            self._end(run)
        self.folder.unlock(run)

    def _end(self, run: Run) -> None:
        """Gives the mean of a method's classes once all of them are finished."""
        self.finished.add(run.name)
        classes = self.series[run.series]
        if len(classes) > 1 and self.finished.issuperset(each.name for each in classes):
            mean = np.mean([self.folder.auroc(each) for each in classes])
            title = f"{run.dataset} ratio {run.ratio:g} seed {run.data_seed} {run.method}"
            command.say(f"{title}: mean AUROC of {len(classes)} classes {mean:.1%}")

    def _announce(self) -> None:
        """Says what is going to be done, with what, before anything slow starts."""
        n, data, (i, count) = self.largest, self.dataset, self.args.shard
        command.say(f"Data: {data.name} from {data.source}, sets of up to {n} images")
        trained = [run for run in self.runs if run.config]
        for description in dict.fromkeys(run.describe(n) for run in trained):
            command.say(f"Protocol: {description}")
        command.say(f"Device: {self.engine.device}")
        command.say(f"Runs at once: {self.engine.at_once}")
        of_shard = f" of shard {i} of {count}" if count > 1 else ""
        done = len(self.runs) - len(self.todo)
        command.say(f"Plan: {len(self.runs)} runs{of_shard}, {done} of them finished before")
        sgd = [run for run in trained if run.network and run.config["optimizer"] == "sgd"]
        if sgd and n < _FEW_IMAGES:
            command.say(
                f"Warning: the paper's protocol takes too few steps on {n} images to learn: scores "
                "may be inverted; use --protocol quick or more images",
                style="yellow",
            )

    def _agree(self) -> None:
        """All processes of a job must plan the same, of the same images."""
        if jax.process_count() > 1:
            text = repr([run.name for run in self.runs]).encode()
            digest = np.uint32(zlib.crc32(self.dataset.images, zlib.crc32(text)))
            if len(set(multihost_utils.process_allgather(digest).tolist())) > 1:
                raise ValueError("the processes of this job have different commands or images")

"""Inlier priority during training: Figs. 2, 3 and 4 of the paper on one page, with a control.

Trains on contaminated sets and records, at the last layer, the norm of the inliers' and of the
outliers' summed gradient (Fig. 2) and their mean de facto update (Fig. 3); then draws histograms of
their PL scores (Fig. 4). The control is a random split of the inliers in the same proportion.
Finished trainings are kept: the same command again does what is missing.
"""

import argparse
import csv
import hashlib
import io
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import live
import numpy as np
import progress
import protocols
import recording
import runtime
import scipy.stats
import sweep
from rich.console import Console

from e3jax import (
    contamination,
    devices,
    files,
    metrics,
    operations,
    priority,
    report,
    scoring,
    training,
)

_TRAIN_COST = 3  # a training view in scored ones
_EVERY, _ROUNDS = 50, 9  # of --overhead
# What of a summary is compared, training by training, in both halves.
_COMPARED = (
    ("magnitude_ratio", "magnitude_ratio_control"),
    ("de_facto_update_inliers", "de_facto_update_outliers"),
    ("update_by_others_inliers", "update_by_others_outliers"),
)
SERIES = tuple(itertools.product(recording.QUANTITIES, recording.GROUPS))
COLUMNS = (
    *"dataset,source,network,operations,inlier_class,ratio,protocol,seed,step".split(","),
    *(f"{quantity}_{group}" for quantity, group in SERIES),
    *"device,versions,commit".split(","),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    protocols.add_data_arguments(parser)
    add("--inlier-class", type=int, nargs="+", required=True, help="one page each")
    add("--ratio", type=float, default=0.1, help="outlier ratio, share of the set")
    add("--seeds", type=runtime.positive, default=3, help="number of trainings: seeds 0, 1, ...")
    protocols.add_arguments(parser)
    protocols.add_network_and_operations(parser)
    add("--every", type=runtime.positive, default=5, help="steps between recorded points")
    add(
        "--probe-views",
        type=runtime.positive,
        default=2000,
        help="fixed views on which gradient magnitudes are measured",
    )
    add(
        "--overhead",
        action="store_true",
        help="instead: time training with and without recording, in turns, as benchmark.py "
        "--tensorboard records",
    )
    add("--results-dir", default="runs/priority", help="where pages and series go")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runtime.start()
        study = Study(arguments, console)
        study.announce()
        study.measure_overhead() if arguments.overhead else study.run()
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red")
        return 2
    except KeyboardInterrupt:
        console.print("Stopped. Finished trainings are kept; the same command continues.")
        return 130
    return 0


class Training(NamedTuple):
    """One training's outcome: its series, every image's PL score, what made it."""

    series: recording.Series
    pl: np.ndarray
    is_outlier: np.ndarray
    provenance: dict[str, str]

    def summary(self) -> dict[str, float]:
        """Ratios of gradient magnitudes, and means of the rest over both halves of the training."""
        values, half = self.series.values, len(self.series.steps) // 2
        inliers, outliers, large, small = values["gradient_magnitude"].T
        found = {}
        for name, ratio in (("", inliers / outliers), ("_control", large / small)):
            found[f"magnitude_ratio{name}_start"] = ratio[0]
            found[f"magnitude_ratio{name}_half1"] = ratio[:half].mean()
            found[f"magnitude_ratio{name}_half2"] = ratio[half:].mean()
        for quantity in ("de_facto_update", "update_by_others", "loss"):
            for number, part in enumerate((slice(half), slice(half, None)), start=1):
                means = np.nanmean(values[quantity][part], axis=0)
                for group, value in zip(("inliers", "outliers", "", "control"), means, strict=True):
                    if group:
                        found[f"{quantity}_{group}_half{number}"] = value
        return found | {"pl_auroc": metrics.auroc(self.pl, self.is_outlier)}


class Study:
    """What a command records: its cases (an inlier class each) and seeds."""

    def __init__(self, arguments: argparse.Namespace, console: Console):
        self.arguments, self.console = arguments, console
        self.folder = Path(arguments.results_dir)
        self.data = protocols.load(arguments, console.print)
        self.operations = operations.operation_set(arguments.operations)
        self.protocol = protocols.resolve(arguments, self.data.images.shape[-1] == 1)
        self.mesh = devices.device_mesh()
        self.device = f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}"
        self.views = max(arguments.probe_views // self.mesh.size, 1) * self.mesh.size
        self.todo = []
        for inlier_class in arguments.inlier_class:
            for seed in range(arguments.seeds):
                self.contaminated(inlier_class, seed)  # complains now, not after an hour
                if not self.path(inlier_class, seed).exists():
                    self.todo.append((inlier_class, seed))

    def contaminated(self, inlier_class: int, seed: int) -> contamination.Contaminated:
        return contamination.contaminate(
            self.data.images,
            self.data.labels,
            inlier_class,
            self.arguments.ratio,
            seed,
            max_images=self.protocol.max_images,
        )

    def case(self, inlier_class: int) -> str:
        arguments, name = self.arguments, self.protocol.name
        return f"{self.data.name}-class{inlier_class}-ratio{arguments.ratio:g}-{name}"

    def path(self, inlier_class: int, seed: int) -> Path:
        """Of a training's outcome; its name holds a hash of all that it depends on."""
        arguments = self.arguments
        what = [self.data.source, self.protocol, arguments.operations, arguments.every, self.views]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
        return self.folder / "runs" / f"{self.case(inlier_class)}-seed{seed}-{digest}.npz"

    def announce(self) -> None:
        config, say = self.protocol.config, self.console.print
        data = self.contaminated(self.arguments.inlier_class[0], 0)
        n = len(data.images)
        self.steps, self.n = config.num_steps(n, len(self.operations)), n
        say(f"Data: {self.data.name} from {self.data.source}, sets of about {n} images")
        say(
            f"Protocol: {self.protocol.name} ({config.network}, {config.optimizer}, {self.steps} "
            f"steps of {config.batch_size} views); a point every {self.arguments.every} steps, "
            f"gradient magnitudes on {self.views} views"
        )
        say(f"Device: {self.device}")
        planned = len(self.arguments.inlier_class) * self.arguments.seeds
        say(f"Plan: {planned} trainings, {planned - len(self.todo)} of them finished before")

    def run(self) -> None:
        config, cost = self.protocol.config, 0
        if self.todo:
            probe = priority.make_probe(config.network, self.operations, config.precision)
            chunk = 10 if devices.is_cpu(self.mesh) else 200
            every = self.arguments.every
            self.trainer = training.make_trainer(
                config, self.operations, self.mesh, chunk, probe, every
            )
            self.score = scoring.Scorer(
                config.network, self.operations, self.mesh, config.precision
            )
            # In scored views: steps, recorded points, scores.
            points = -(-self.steps // every)
            self.cost_of_step = _TRAIN_COST * config.batch_size + points * self.views / self.steps
            cost = int(self.steps * self.cost_of_step) + self.n * len(self.operations)
        with progress.Meter(self.console, cost * len(self.todo), len(self.todo), 1) as meter:
            for inlier_class, seed in self.todo:
                bar = meter.start(f"{self.case(inlier_class)} seed {seed}", cost)
                self.train(inlier_class, seed, bar)
        for inlier_class in self.arguments.inlier_class:
            self.draw(inlier_class)
        print(self.summarise())
        self.console.print(f"Pages and series are in {self.folder}/")

    def train(self, inlier_class: int, seed: int, bar: progress.Bar) -> None:
        """Does one training and keeps its outcome."""
        data, k = self.contaminated(inlier_class, seed), len(self.operations)
        groups = recording.split_groups(data.is_outlier, seed)
        probe_set = recording.probe_set(data.images, groups, k, self.views, seed)
        key = jax.random.fold_in(jax.random.key(seed), inlier_class)
        logs = []

        def on_chunk(state: training.TrainState, log: training.StepLog) -> None:
            log = jax.device_get(log)
            logs.append(log.probe)
            bar.advance(
                int(np.isfinite(log.loss).sum() * self.cost_of_step),
                f"loss {np.nanmean(log.loss):.3f}",
            )

        n = len(data.images)
        state = training.train(
            self.trainer,
            self.trainer.init(key, data.images.shape[-1]),
            training.place_bank(self.trainer.mesh, data.images),
            n,
            self.protocol.config.num_steps(n, k),
            on_chunk,
            devices.place(self.trainer.mesh, probe_set),
        )
        log = jax.tree.map(lambda *parts: np.concatenate(parts), *logs)
        steps, values = recording.series(log, groups)
        scores = self.score(state.variables, data.images)
        path = self.path(inlier_class, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = values | {"steps": steps, "pl": scores.pl, "is_outlier": data.is_outlier}
        arrays["provenance"] = json.dumps({"device": self.device} | sweep.provenance())
        files.write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
        auroc = metrics.auroc(scores.pl, data.is_outlier)
        text = f"{self.case(inlier_class)} seed {seed}: PL AUROC {auroc:.1%}"
        bar.finish(text, scoring.health(scores, k))

    def measure_overhead(self) -> None:
        """Adds a row to recording.csv: how much longer training takes with recording, in turns."""
        config = self.protocol.config
        data = self.contaminated(self.arguments.inlier_class[0], 0)
        events = live.EventFiles(None, config, data, len(self.operations), self.mesh.size)
        probe = priority.make_probe(config.network, self.operations, config.precision)
        probe_set = devices.place(self.mesh, events.probe_set)
        plain = self._seconds_of_chunks(data.images)
        recorded = self._seconds_of_chunks(data.images, probe, probe_set)
        ratios = []
        for number in range(_ROUNDS + 1):
            ratios.append(1 / (next(plain) / next(recorded)))
            self.console.print(f"[{number}/{_ROUNDS}] " + ("measured" if number else "compiled"))
        low, middle, high = np.percentile(ratios[1:], [25, 50, 75])
        row = {
            "network": config.network,
            "batch_size": config.batch_size,
            "every": _EVERY,
            "probe_views": len(events.probe_set.labels),
            "rounds": _ROUNDS,
            "time_ratio": f"{middle:.4f}",
            "quartile_1": f"{low:.4f}",
            "quartile_3": f"{high:.4f}",
            "device": self.device,
        } | sweep.provenance()
        path = self.folder / "recording.csv"
        rows = list(csv.reader(path.read_text().splitlines()))[1:] if path.exists() else []
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_csv(path, list(row), [*rows, list(row.values())])
        print(f"recording makes training take {middle:.3f} times as long ({low:.3f} to {high:.3f})")

    def _seconds_of_chunks(self, images: np.ndarray, probe=None, probe_data=()) -> Iterator[float]:
        """Seconds of ever more steps, the first with compiling; a chunk has one recorded step."""
        trainer = training.make_trainer(
            self.protocol.config, self.operations, self.mesh, _EVERY, probe, _EVERY
        )
        state = trainer.init(jax.random.key(0), images.shape[-1])
        bank = training.place_bank(trainer.mesh, images)
        while True:
            start = time.monotonic()
            state, _ = trainer.advance(state, bank, len(images), 2**31 - 1, probe_data)
            jax.block_until_ready(state)
            yield time.monotonic() - start

    def load(self, inlier_class: int) -> list[Training]:
        """The finished trainings of a case."""
        found = []
        for seed in range(self.arguments.seeds):
            with np.load(self.path(inlier_class, seed)) as arrays:
                values = {name: arrays[name] for name in recording.QUANTITIES}
                series = recording.Series(arrays["steps"], values)
                provenance = json.loads(str(arrays["provenance"]))
                found.append(Training(series, arrays["pl"], arrays["is_outlier"], provenance))
        return found

    def draw(self, inlier_class: int) -> None:
        """Writes a case's page as PNG and PDF, its series and its scores as CSV."""
        trainings, case = self.load(inlier_class), self.folder / self.case(inlier_class)
        values = {
            quantity: np.stack([t.series.values[quantity] for t in trainings])
            for quantity in recording.QUANTITIES
        }
        for suffix in (".png", ".pdf"):
            report.plot_priority(
                f"{case}{suffix}",
                trainings[0].series.steps,
                values,
                np.concatenate([t.pl for t in trainings]),
                np.concatenate([t.is_outlier for t in trainings]),
                f"{self.data.name}, class {inlier_class} as inliers, "
                f"ρ = {self.arguments.ratio:.0%}, {self.protocol.config.network}, "
                f"{len(trainings)} seed(s)",
            )
        _write_csv(Path(f"{case}.csv"), COLUMNS, self._points(inlier_class, trainings))
        scores = (
            (seed, int(is_outlier), f"{pl:.5f}")
            for seed, t in enumerate(trainings)
            for pl, is_outlier in zip(t.pl, t.is_outlier, strict=True)
        )
        _write_csv(Path(f"{case}-scores.csv"), ("seed", "is_outlier", "pl"), scores)

    def _points(self, inlier_class: int, trainings: list[Training]) -> Iterator[list]:
        arguments, protocol = self.arguments, self.protocol
        what = [self.data.name, self.data.source, protocol.config.network, arguments.operations]
        what += [inlier_class, arguments.ratio, protocol.name]
        for seed, found in enumerate(trainings):
            for i, step in enumerate(found.series.steps):
                values = [
                    f"{found.series.values[quantity][i, recording.GROUPS.index(group)]:.5g}"
                    for quantity, group in SERIES
                ]
                yield [*what, seed, step, *values, *found.provenance.values()]

    def summarise(self) -> str:
        """Writes a row for every training and returns their means with 95 % intervals."""
        rows, what = [], [self.data.name, self.data.source, self.protocol.name]
        for inlier_class in self.arguments.inlier_class:
            for seed, found in enumerate(self.load(inlier_class)):
                case = [*what, inlier_class, self.arguments.ratio, seed]
                numbers = found.summary()
                rows.append([*case, *numbers.values(), *found.provenance.values()])
        columns = "dataset,source,protocol,inlier_class,ratio,seed".split(",")
        columns += [*numbers, *found.provenance]
        _write_csv(
            self.folder / f"{self.data.name}-{self.protocol.name}-summary.csv", columns, rows
        )
        return summary_table(columns, rows)


def summary_table(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Means over trainings with 95 % t intervals: numbers of a summary, differences of pairs."""
    first, last = columns.index("magnitude_ratio_start"), columns.index("pl_auroc")
    lines = [f"| mean of {len(rows)} training(s) | {rows[0][0]} |", "| --- | --- |"]
    for i in range(first, last + 1):
        values = np.array([float(row[i]) for row in rows])
        lines.append(f"| {columns[i]} | {_mean_and_interval(values)} |")
    for pair, half in itertools.product(_COMPARED, ("half1", "half2")):
        names = [f"{name}_{half}" for name in pair]
        a, b = (np.array([float(row[columns.index(name)]) for row in rows]) for name in names)
        lines.append(f"| {' - '.join(names)} | {_mean_and_interval(a - b)} |")
    return "\n".join(lines)


def _mean_and_interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.3g}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return f"{values.mean():.3g} ({values.mean() - half:.3g} to {values.mean() + half:.3g})"


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    files.write_atomically(path, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    sys.exit(main())

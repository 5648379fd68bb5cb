"""Inlier priority during training: Figs. 2, 3 and 4 of the paper on one page, with a control.

Trains on contaminated sets and records, at the last layer, the norm of the inliers' and of the
outliers' summed gradient (Fig. 2) and their mean de facto update (Fig. 3); then draws histograms of
their PL scores (Fig. 4). The control is a random split of the inliers in the same proportion.
Finished trainings are kept: the same command again does what is missing.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import sys
from pathlib import Path

import command
import jax
import numpy as np
import pandas as pd
from paper import figures, tables
from sweep import curves, flags, methods, plan, progress, store
from sweep.provenance import provenance

from e3jax import devices, metrics, priority, training
from e3jax.cli.main import path
from e3jax.devices import runtime
from e3jax.evidence import health
from e3jax.report import sheet
from e3jax.training import fitting
from e3jax.training.fitting import Observer
from e3jax.work import files

_EVERY, _ROUNDS = curves.EVERY, 9  # of --overhead
_NAMES = ["_".join(name) for name in itertools.product(curves.QUANTITIES, curves.GROUPS)]
_CASE = "dataset,source,network,operations,inlier_class,ratio,protocol,seed".split(",")
_SCORES = ("seed", "is_outlier", "pl")
_RUN_MARK = '{"points": {"step": '  # how a training's file begins
_OVERHEAD = """network batch_size every probe_views probe_images rounds time_ratio quartile_1
quartile_3 device versions commit""".split()


class Study:
    """What a command records: one training per inlier class and seed.

    Every training is a run of the benchmark with a probe, and has its file in ``folder/runs``.
    """

    def __init__(self, args: argparse.Namespace):
        runtime.prepare()
        self.args, self.folder = args, args.results_dir
        self.dataset, self.mesh = flags.load(args), devices.device_mesh()
        self.kind = self.mesh.devices.flat[0].device_kind
        self.device = devices.describe(self.mesh)
        variant = plan.Variant(flags.protocol(args), ["e3outlier"], [args.ratio])
        runs = plan.grid(self.dataset, [variant], methods.METHODS, args.seeds, args.inlier_class)
        # What a training is told by besides: its file must not be another one's.
        recorded = {"every": args.every, "probe_views": args.probe_views}
        recorded |= {"probe_images": args.probe_images, "device": self.kind}
        self.runs = [dataclasses.replace(run, constants=recorded) for run in runs]
        self.config = config = training.TrainConfig(**runs[0].config)
        self.probe = priority.make_probe(config.network, config.k, config.precision)
        self.fit = functools.partial(fitting.fit, config=config, mesh=self.mesh)
        # Complains now about a class or a ratio, not after an hour.
        self.n = max(len(run.draw(self.dataset).images) for run in runs)

    def do(self) -> None:
        """Does the trainings that are missing; draws a page per class and tables them all."""
        first, args = self.runs[0], self.args
        command.say(f"Data: {first.dataset} from {first.source}, sets of up to {self.n} images")
        command.say(f"Protocol: {first.describe(self.n)}")
        what = f"{args.probe_views} views, updates on all views of {args.probe_images} images"
        command.say(f"Recording: every {args.every} steps; gradient magnitudes on {what}")
        command.say(f"Device: {self.device}")
        self.check_outputs()
        if args.overhead:
            return self.measure_overhead()
        todo = [run for run in self.runs if not self.path(run).exists()]
        done, steps = len(self.runs) - len(todo), first.steps(self.n)
        command.say(f"Plan: {len(self.runs)} trainings, {done} of them finished before")
        with progress.Meter(steps * len(todo), len(todo)) as meter:
            for run in todo:
                self.train(run, progress.Bar(meter, run.title, steps))
        rows = [row for runs in self.pages() for row in self.draw(runs)]
        store.write_csv(self.folder / f"{self.case(self.runs)}-summary.csv", rows, rows[0])
        print(tables.priority_table(pd.DataFrame(rows)))
        command.say(f"Pages, points and scores are in {self.folder}/")

    def pages(self) -> list[list[plan.Run]]:
        """The trainings by inlier class, each of which has a page."""
        return [[run for run in self.runs if run.inlier_class == c] for c in self.args.inlier_class]

    def check_outputs(self) -> None:
        """Raises an InputError if the command would replace a file that it did not write."""
        if self.args.overhead:
            return store.check_csv(self.folder / "recording.csv", _OVERHEAD)
        for run in self.runs:
            files.check_output(self.path(run), _RUN_MARK)
        store.check_csv(self.folder / f"{self.case(self.runs)}-summary.csv", _CASE)
        for case in map(self.case, self.pages()):
            store.check_csv(self.folder / f"{case}.csv", _CASE)
            store.check_csv(self.folder / f"{case}-scores.csv", _SCORES)
            for suffix in ("png", "pdf"):
                sheet.check_output(self.folder / f"{case}.{suffix}")

    def path(self, run: plan.Run) -> Path:
        return self.folder / "runs" / f"{run.name}.json"

    def train(self, run: plan.Run, bar: progress.Bar) -> None:
        """Does one training and keeps its points and scores."""
        data, seed, logs = run.draw(self.dataset), run.data_seed, []
        size = (self.args.probe_views, self.args.probe_images, self.mesh.size)
        recording = curves.recording(data, self.config, *size, seed)
        observer = Observer(
            lambda step, log: logs.append(log.probe),
            self.probe,
            self.args.every,
            recording.probe_set,
        )
        fitted = self.fit(run.key, data.images, on_progress=bar.on_progress, observer=observer)
        log = jax.tree.map(lambda *parts: np.concatenate(parts), *logs)
        steps, values = curves.series(log, recording.weights)
        points = dict(zip(_NAMES, np.hstack(list(values.values())).T, strict=True))
        evaluation = fitting.score(fitted, data.images, mesh=self.mesh)
        scores = {"is_outlier": data.is_outlier.astype(int), "pl": evaluation.mean("pl")}
        made = {"device": self.device} | provenance()
        outcome = {"points": {"step": steps} | points, "scores": scores, "made": made}
        self.path(run).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path(run), json.dumps(outcome, default=np.ndarray.tolist))
        auroc = metrics.auroc(scores["pl"], data.is_outlier)
        bar.finish(f"{run.title}: PL AUROC {auroc:.1%}", health.check_fit(evaluation))

    def case(self, runs: list[plan.Run]) -> str:
        """The name of a case's files: all that distinguishes it from others."""
        args, run = self.args, runs[0]
        classes = "+".join(str(c) for c in dict.fromkeys(run.inlier_class for run in runs))
        size = f"{run.max_images}images" if run.max_images else ""
        what = (f"class{classes}", f"ratio{run.ratio:g}", run.protocol, run.network, run.operations)
        how = (f"every{args.every}", f"{args.probe_views}views", f"{args.probe_images}probed")
        how += (f"{args.seeds}seeds", self.kind)
        return figures.file_name(run.dataset, *what, size, *how, run.source)

    def draw(self, runs: list[plan.Run]) -> list[dict]:
        """Writes the page of a case and its points and scores; returns a row per training."""
        points, scores, rows = [], [], []
        for run in runs:
            outcome = json.loads(self.path(run).read_text())
            of_run, made = {c: run.columns[c] for c in _CASE}, outcome["made"]
            points.append(pd.DataFrame(of_run | outcome["points"] | made))
            scores.append(pd.DataFrame({"seed": run.data_seed} | outcome["scores"]))
            rows.append(of_run | summary(points[-1], scores[-1]) | made)
        case, points, scores = self.folder / self.case(runs), pd.concat(points), pd.concat(scores)
        store.write_csv(f"{case}.csv", points.to_dict("records"), points)
        store.write_csv(f"{case}-scores.csv", scores.to_dict("records"), _SCORES)
        title = f"{run.dataset}, class {run.inlier_class} as inliers, ρ = {100 * run.ratio:g} %"
        title += f", {run.network}, {len(runs)} seed{'s' * (len(runs) > 1)}"
        for suffix in ("png", "pdf"):
            figures.plot_priority(f"{case}.{suffix}", points, scores, title)
        return rows

    def measure_overhead(self) -> None:
        """Adds a row to recording.csv: training with and without recording, in turns.

        It is recorded as by ``benchmark.py --tensorboard``.
        """
        data, config = self.runs[0].draw(self.dataset), self.config
        config = config._replace(steps=_EVERY * (_ROUNDS + 1))
        probe_set = curves.recording(data, config, devices=self.mesh.size).probe_set
        recording = Observer(None, self.probe, _EVERY, probe_set)
        fitted, seconds = [None, None], []
        for steps in range(_EVERY, config.steps + 1, _EVERY):
            for recorded, observer in enumerate([Observer(), recording]):
                fitted[recorded] = self.fit(
                    jax.random.key(0),
                    data.images,
                    config=config,
                    start=fitted[recorded],
                    until=steps,
                    observer=observer,
                )
            seconds.append([each.seconds for each in fitted])
        # The first round compiles.
        plain, with_recording = np.diff(seconds, axis=0).T
        low, middle, high = np.percentile(with_recording / plain, [25, 50, 75])
        row = {"network": config.network, "batch_size": config.batch_size, "every": _EVERY}
        row |= {"probe_views": len(probe_set.labels), "probe_images": len(probe_set.data)}
        row |= {"rounds": _ROUNDS, "time_ratio": middle}
        row |= {"quartile_1": low, "quartile_3": high, "device": self.device} | provenance()
        self.folder.mkdir(parents=True, exist_ok=True)
        store.append_rows(self.folder / "recording.csv", _OVERHEAD, [row])
        print(f"recording makes training take {middle:.3f} times as long ({low:.3f} to {high:.3f})")


def summary(points: pd.DataFrame, scores: pd.DataFrame) -> dict[str, float]:
    """Means over thirds of a training: ratios of gradient magnitudes, and all else by group."""
    inliers, outliers, large, small = (points[name] for name in _NAMES[:4])
    values = points[_NAMES[4:]].assign(magnitude_ratio=inliers / outliers)
    values["magnitude_ratio_control"] = large / small
    found = {}
    for stage, rows in zip(tables.STAGES, np.array_split(np.arange(len(points)), 3), strict=True):
        found |= values.iloc[rows].mean().add_suffix(f"_{stage}")
    return found | {"pl_auroc": metrics.auroc(scores["pl"], scores["is_outlier"])}


def main() -> int:
    parser = flags.parser(__doc__)
    add = parser.add_argument
    flags.add_data(parser)
    add("--inlier-class", type=int, nargs="+", required=True, help="one page each")
    add("--ratio", type=float, default=0.1, help="outlier ratio, share of the set")
    add("--seeds", type=flags.positive, default=3, help="number of trainings: seeds 0, 1, ...")
    flags.add_protocol(parser)
    flags.add_network_and_operations(parser)
    add("--every", type=flags.positive, default=50, help="steps between recorded points")
    add("--probe-views", type=flags.positive, default=2000, help="fixed views measured for Fig. 2")
    add("--probe-images", type=flags.positive, default=60, help="images measured for Fig. 3")
    add("--overhead", action="store_true", help="instead: time training with and without recording")
    add("--results-dir", type=path, default="runs/priority", help="where pages and points go")
    args = parser.parse_args()
    stopped = "Finished trainings are kept; the same command continues."
    return command.run(lambda: Study(args).do(), stopped)


if __name__ == "__main__":
    sys.exit(main())

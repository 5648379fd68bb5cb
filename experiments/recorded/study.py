"""What a command records of inlier priority: one training per inlier class and seed, and pages.

Every training is a run of the benchmark with a probe, and has its file in ``folder/runs``.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import command
import jax
import numpy as np
import pandas as pd
from paper import appendix, figures
from paper.appendix import STAGES
from sweep import curves, flags, methods, plan, progress, rows
from sweep.provenance import provenance

from e3jax import devices, metrics, priority
from e3jax.devices import runtime
from e3jax.evidence import health
from e3jax.report import sheet
from e3jax.training import TrainConfig, fitting
from e3jax.training.fitting import Observer
from e3jax.work import files

_NAMES = ["_".join(name) for name in itertools.product(curves.QUANTITIES, curves.GROUPS)]
_CASE = "dataset,source,network,operations,inlier_class,ratio,protocol,seed".split(",")
_SCORES = ("seed", "is_outlier", "pl")
_RUN_MARK = '{"points": {"step": '  # how a training's file begins


class Study:
    """The trainings that a command's flags name.

    Attributes:
      runs: the trainings.
      dataset, mesh, config: what they train on and how.
      probe: what records them.
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
        self.config = config = TrainConfig(**runs[0].config)
        self.probe = priority.make_probe(config.network, config.k, config.precision)
        # Complains now about a class or a ratio, not after an hour.
        self.n = max(len(run.draw(self.dataset).images) for run in runs)

    def announce(self) -> None:
        first, args = self.runs[0], self.args
        command.say(f"Data: {first.dataset} from {first.source}, sets of up to {self.n} images")
        command.say(f"Protocol: {first.describe(self.n)}")
        what = f"{args.probe_views} views, updates on all views of {args.probe_images} images"
        command.say(f"Recording: every {args.every} steps; gradient magnitudes on {what}")
        command.say(f"Device: {self.device}")

    def do(self) -> None:
        """Does the trainings that are missing; draws a page per class and tables them all."""
        self.check_outputs()
        todo = [run for run in self.runs if not self.path(run).exists()]
        steps = self.runs[0].steps(self.n)
        done = len(self.runs) - len(todo)
        command.say(f"Plan: {len(self.runs)} trainings, {done} of them finished before")
        with progress.Meter(steps * len(todo), len(todo)) as meter:
            for run in todo:
                self.train(run, progress.Bar(meter, run.title, steps))
        trainings = [row for runs in self.pages() for row in self.draw(runs)]
        rows.write(self.folder / f"{self.case(self.runs)}-summary.csv", trainings, trainings[0])
        print(appendix.priority_table(pd.DataFrame(trainings)))
        command.say(f"Pages, points and scores are in {self.folder}/")

    def pages(self) -> list[list[plan.Run]]:
        """The trainings by inlier class, each of which has a page."""
        return [[run for run in self.runs if run.inlier_class == c] for c in self.args.inlier_class]

    def check_outputs(self) -> None:
        """Raises an InputError if the command would replace a file that it did not write."""
        for run in self.runs:
            files.check_output(self.path(run), _RUN_MARK)
        rows.check(self.folder / f"{self.case(self.runs)}-summary.csv", _CASE)
        for case in map(self.case, self.pages()):
            rows.check(self.folder / f"{case}.csv", _CASE)
            rows.check(self.folder / f"{case}-scores.csv", _SCORES)
            for suffix in ("png", "pdf"):
                sheet.check_output(self.folder / f"{case}.{suffix}")

    def path(self, run: plan.Run) -> Path:
        return self.folder / "runs" / f"{run.name}.json"

    def train(self, run: plan.Run, bar: progress.Bar) -> None:
        """Does one training and keeps its points and scores."""
        data, logs = run.draw(self.dataset), []
        size = (self.args.probe_views, self.args.probe_images, self.mesh.size)
        recording = curves.recording(data, self.config, *size, run.data_seed)
        observer = Observer(
            on_log=lambda step, log: logs.append(log.probe),
            probe=self.probe,
            every=self.args.every,
            data=recording.probe_set,
        )
        fitted = fitting.fit(
            run.key,
            data.images,
            config=self.config,
            mesh=self.mesh,
            on_progress=bar.on_progress,
            observer=observer,
        )
        log = jax.tree.map(lambda *parts: np.concatenate(parts), *logs)
        steps, values = curves.series(log, recording.weights)
        points = dict(zip(_NAMES, np.hstack(list(values.values())).T, strict=True))
        evaluation = fitting.score(fitted, data.images, mesh=self.mesh)
        scores = {"is_outlier": data.is_outlier.astype(int), "pl": evaluation.mean("pl")}
        made = {"device": self.device} | provenance()
        outcome = {"points": {"step": steps} | points, "scores": scores, "made": made}
        files.write_text(self.path(run), json.dumps(outcome, default=np.ndarray.tolist))
        auroc = metrics.auroc(scores["pl"], data.is_outlier)
        bar.finish(f"{run.title}: PL AUROC {auroc:.1%}", health.check_fit(evaluation))

    def case(self, runs: list[plan.Run]) -> str:
        """The name of a case's files: all that distinguishes it from others."""
        args, run = self.args, runs[0]
        classes = "+".join(str(c) for c in dict.fromkeys(run.inlier_class for run in runs))
        size = f"{run.max_images}images" if run.max_images else ""
        sets = (f"class{classes}", f"ratio{run.ratio:g}", run.protocol, run.network, run.operations)
        recorded = (f"every{args.every}", f"{args.probe_views}views", f"{args.probe_images}probed")
        recorded += (f"{args.seeds}seeds", self.kind)
        return figures.file_name(run.dataset, *sets, size, *recorded, run.source)

    def draw(self, runs: list[plan.Run]) -> list[dict]:
        """Writes the page of a case and its points and scores; returns a row per training."""
        points, scores, trainings = [], [], []
        for run in runs:
            outcome = json.loads(self.path(run).read_text())
            of_run, made = {c: run.columns[c] for c in _CASE}, outcome["made"]
            points.append(pd.DataFrame(of_run | outcome["points"] | made))
            scores.append(pd.DataFrame({"seed": run.data_seed} | outcome["scores"]))
            trainings.append(of_run | summary(points[-1], scores[-1]) | made)
        case, points, scores = self.folder / self.case(runs), pd.concat(points), pd.concat(scores)
        rows.write(f"{case}.csv", points.to_dict("records"), points)
        rows.write(f"{case}-scores.csv", scores.to_dict("records"), _SCORES)
        title = f"{run.dataset}, class {run.inlier_class} as inliers, ρ = {100 * run.ratio:g} %"
        title += f", {run.network}, {len(runs)} seed{'s' * (len(runs) > 1)}"
        for suffix in ("png", "pdf"):
            figures.plot_priority(f"{case}.{suffix}", points, scores, title)
        return trainings


def summary(points: pd.DataFrame, scores: pd.DataFrame) -> dict[str, float]:
    """Means over thirds of a training: ratios of gradient magnitudes, and all else by group."""
    inliers, outliers, large, small = (points[name] for name in _NAMES[:4])
    values = points[_NAMES[4:]].assign(magnitude_ratio=inliers / outliers)
    values["magnitude_ratio_control"] = large / small
    means = {}
    for stage, part in zip(STAGES, np.array_split(np.arange(len(points)), 3), strict=True):
        means |= values.iloc[part].mean().add_suffix(f"_{stage}")
    return means | {"pl_auroc": metrics.auroc(scores["pl"], scores["is_outlier"])}

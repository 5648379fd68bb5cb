"""``e3jax rank``: learns a folder of images and ranks its images."""

import argparse
import warnings

from e3jax.cli import console, report, source
from e3jax.detector import saving
from e3jax.detector.estimator import E3Outlier
from e3jax.devices import runtime
from e3jax.evidence.health import HealthWarning
from e3jax.training.checkpoint import TrainCheckpoint


def run(args: argparse.Namespace, screen: console.Console) -> int:
    detector = E3Outlier(
        contamination=args.contamination,
        evidence=args.evidence,
        rule=args.rule,
        network=args.network,
        operations=args.operations,
        steps="auto" if args.steps is None else args.steps,
        score_operations="auto" if args.score_operations is None else args.score_operations,
        time_budget=args.time_budget,
        image_size=args.image_size,
        resize=args.resize,
        random_state=args.seed,
    )
    # All that can be wrong is told before hours of work, not after them.
    detector.check_parameters()
    in_report = args.save and args.save.absolute().parent == args.out.absolute()
    if args.save and not in_report:
        saving.check_target(args.save)
    found = source.find(args)
    runtime.prepare()
    runtime.devices()
    with report.folder(args, found), console.bars(screen) as on_progress:
        if in_report:  # whose folder is there now
            saving.check_target(args.save)
        found = source.on_disk(found, args, args.image_size, args.resize, screen, on_progress)
        detector.set_params(on_progress=on_progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # said at the end
            if not found.is_bank:
                detector.fit(found.X)
            elif not _fit_in_parts(detector, found, args):
                return report.say_part(screen, args)
        ranked = detector.ranking_
        report.write(args, ranked, found, on_progress)
        if args.save:
            saving.save(detector, args.save)
        report.forget_work(args, detector, screen)
    report.sum_up(screen, args.out, ranked, found.closed)
    health = detector.health_
    screen.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if args.save:
        screen.print(f"The detector is in {args.save}")
    return report.judge(screen, detector)


def _fit_in_parts(detector: E3Outlier, found: source.Source, args: argparse.Namespace) -> bool:
    """Fits on a bank, keeping what is done beside the report; returns whether all of it is."""
    options = report.sharing(args) | {"checkpoint": TrainCheckpoint}
    return detector.fit_in(args.out / report.WORK, found.X, **options)

"""``e3jax rank``: learns a folder of images and ranks its images."""

import argparse
import warnings

from e3jax.cli import console, report, source
from e3jax.collection import Reader
from e3jax.detector import saving
from e3jax.detector.estimator import E3Outlier
from e3jax.devices import runtime
from e3jax.evidence.health import HealthWarning
from e3jax.training.checkpoint import TrainCheckpoint


def run(args: argparse.Namespace, screen: console.Console) -> int:
    """Learns a collection and ranks it; returns the exit code."""
    detector, reader = _detector(args), Reader(args.image_size, args.resize)
    out, save, shard = args.out, args.save, args.shard
    # All that can be wrong is reported before hours of work, not after them.
    detector.check_parameters()
    if save:
        report.check_model(save, out)
    photos = source.find(args.photos)
    runtime.prepare()
    runtime.devices()
    executor = source.executor(args.engine, args.ray_address)
    with report.folder(out, "rank", photos, shard), console.bars(screen) as on_progress:
        collection = photos.read(reader, out / "bank", executor, on_progress, least=2)
        detector.set_params(on_progress=on_progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # printed at the end
            is_fitted = detector.fit_in(
                out / report.WORK,
                collection,
                shard=shard,
                executor=executor,
                checkpoint=TrainCheckpoint,
            )
        if not is_fitted:
            return report.print_shard(screen, shard)
        ranking, health = detector.ranking_, detector.health_
        report.write(out, ranking, collection, args.photos, on_progress)
        if save:
            saving.save(detector, save)
        if shard == report.WHOLE:  # else others may still read it
            report.forget_work(screen, out, detector)
    report.sum_up(screen, out, ranking)
    screen.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if save:
        screen.print(f"The detector is in {save}")
    return report.judge(screen, health)


def _detector(args: argparse.Namespace) -> E3Outlier:
    return E3Outlier(
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

"""``e3jax rank``: learns a folder of images and ranks its images."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e3jax.cli import console, report, source
from e3jax.collection import Reader
from e3jax.detector import saving
from e3jax.detector.estimator import E3Outlier
from e3jax.evidence.health import HealthWarning
from e3jax.report import decisions as decision_files
from e3jax.training.checkpoint import TrainCheckpoint


def run(
    screen: console.Console,
    paths: Sequence[Path],
    out: Path,
    save: Path | None,
    decisions: Path | None,
    shard: tuple[int, int],
    engine: str,
    ray_address: str | None,
    deterministic: bool,
    **parameters: Any,
) -> int:
    """Learns a collection and ranks it; returns the exit code.

    ``parameters`` are those of :class:`E3Outlier`.
    """
    detector = E3Outlier(**parameters)
    reader = Reader(detector.image_size, detector.resize)
    # All that can be wrong is reported before hours of work, not after them.
    detector.check_parameters()
    if save:
        report.check_model(save, out)
    decided = decision_files.read(decisions) if decisions else None
    photos = source.find(paths)
    source.start_devices(deterministic)
    decoding = source.decoding_engine(engine, ray_address)
    scoring = source.scoring_engine(screen, engine, ray_address)
    with report.folder(out, "rank", photos, shard), console.bars(screen) as on_progress:
        collection = photos.read(reader, out / "bank", decoding, on_progress, least=2)
        detector.set_params(on_progress=on_progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HealthWarning)  # printed at the end
            is_fitted = detector.fit_in(
                out / report.WORK,
                collection,
                decisions=decided,
                shard=shard,
                executor=scoring,
                checkpoint=TrainCheckpoint,
            )
        if not is_fitted:
            return report.print_shard(screen, shard)
        ranking, health = detector.ranking_, detector.health_
        report.write(out, ranking, collection, paths, on_progress)
        if save:
            saving.save(detector, save)
        if shard == report.WHOLE:  # else others may still read it
            report.forget_work(screen, out, detector)
    report.sum_up(screen, out, ranking, detector)
    if ranking.decisions is not None:
        count, left_out = int((ranking.decisions != 0).sum()), int((ranking.decisions < 0).sum())
        screen.print(f"{count} decisions taken into account: {left_out} left out of training")
    least, most = health.outliers
    unsure = "" if least else "; none stands apart for sure, so look at the first ones"
    others = "" if ranking.decisions is None else ", besides those decided"
    screen.print(f"Likely not to belong: {least} to {most} images{others}{unsure}")
    if health.verdict:
        screen.print(health.verdict)
    screen.print(
        f"Operations recognised: {health.pretext_accuracy:.0%} of the views after {health.steps} "
        "steps"
    )
    if save:
        screen.print(f"The detector is in {save}")
    return report.judge(screen, health)

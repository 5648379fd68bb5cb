"""``e3jax score``: scores new images with a saved detector."""

from collections.abc import Sequence
from pathlib import Path

from e3jax import devices
from e3jax.cli import console, report, source
from e3jax.detector import saving
from e3jax.devices import runtime


def run(
    screen: console.Console,
    model: Path,
    paths: Sequence[Path],
    out: Path,
    features: Path | None,
    shard: tuple[int, int],
    engine: str,
    ray_address: str | None,
    precision: str | None,
    deterministic: bool,
) -> int:
    """Ranks new images; returns the exit code."""
    detector = saving.load(model)
    if precision:
        detector.set_params(precision=precision)
    if features:
        detector.set_params(features=features)
    detector.check_parameters()
    photos = source.find(paths)
    source.start_devices(deterministic)
    network = detector.model_.network.network
    screen.print(runtime.describe_work(network, devices.resolved(detector.precision)))
    decoding = source.decoding_engine(engine, ray_address)
    scoring = source.scoring_engine(screen, engine, ray_address)
    with report.folder(out, "score", photos, shard), console.bars(screen) as on_progress:
        detector.on_progress = on_progress
        reader = detector.model_.reader
        collection = photos.read(reader, out / "bank", decoding, on_progress)
        ranking = detector.rank_in(out / report.WORK, collection, shard=shard, executor=scoring)
        if ranking is None:
            return report.print_shard(screen, shard)
        report.write(out, ranking, collection, paths, on_progress)
        if shard == report.WHOLE:  # else others may still read it
            report.forget_work(screen, out, detector)
    report.sum_up(screen, out, ranking, detector)
    return report.judge(screen, detector.health_)

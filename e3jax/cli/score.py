"""``e3jax score``: scores new images with a saved detector."""

import argparse

from e3jax.cli import console, report, source
from e3jax.detector import saving
from e3jax.devices import runtime


def run(args: argparse.Namespace, screen: console.Console) -> int:
    detector = saving.load(args.model)
    found = source.find(args)
    runtime.prepare()
    runtime.devices()
    used = (runtime.describe_devices(), detector.network_, detector.precision_)
    screen.print(f"Device: {', '.join(used)}")
    with report.folder(args, found), console.bars(screen) as on_progress:
        shape = (detector.image_size, detector.resize)
        found = source.on_disk(found, args, *shape, screen, on_progress)
        detector.on_progress = on_progress
        if not found.is_bank:
            ranked = detector.rank(found.X)
        elif not (
            ranked := detector.rank_in(args.out / report.WORK, found.X, **report.sharing(args))
        ):
            return report.say_part(screen, args)
        report.write(args, ranked, found, on_progress)
        report.forget_work(args, detector, screen)
    report.sum_up(screen, args.out, ranked, found.closed)
    return report.judge(screen, detector)

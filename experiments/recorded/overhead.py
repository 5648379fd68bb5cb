"""How much longer a training takes that is recorded."""

import jax
import numpy as np
from sweep import curves, rows
from sweep.provenance import provenance

from e3jax.training import fitting
from e3jax.training.fitting import Observer
from recorded.study import Study

EVERY, ROUNDS = curves.EVERY, 9
_COLUMNS = """network batch_size every probe_views probe_images rounds time_ratio quartile_1
quartile_3 device versions commit""".split()


def measure(study: Study) -> None:
    """Adds a row to recording.csv: training with and without recording, in turns.

    It is recorded as by ``benchmark.py --tensorboard``.
    """
    table = study.folder / "recording.csv"
    rows.check(table, _COLUMNS)
    data = study.runs[0].draw(study.dataset)
    config = study.config._replace(steps=EVERY * (ROUNDS + 1))
    probe_set = curves.recording(data, config, devices=study.mesh.size).probe_set
    observers = (Observer(), Observer(None, study.probe, EVERY, probe_set))
    fitted, seconds = [None, None], []
    for steps in range(EVERY, config.steps + 1, EVERY):
        fitted = [
            fitting.fit(
                jax.random.key(0),
                data.images,
                config=config,
                mesh=study.mesh,
                start=start,
                until=steps,
                observer=observer,
            )
            for start, observer in zip(fitted, observers, strict=True)
        ]
        seconds.append([each.seconds for each in fitted])
    # The first round compiles.
    plain, recorded = np.diff(seconds, axis=0).T
    low, middle, high = np.percentile(recorded / plain, [25, 50, 75])
    row = {"network": config.network, "batch_size": config.batch_size, "every": EVERY}
    row |= {"probe_views": len(probe_set.labels), "probe_images": len(probe_set.data)}
    row |= {"rounds": ROUNDS, "time_ratio": middle, "quartile_1": low, "quartile_3": high}
    rows.append(table, [row | {"device": study.device} | provenance()], _COLUMNS)
    print(f"recording makes training take {middle:.3f} times as long ({low:.3f} to {high:.3f})")

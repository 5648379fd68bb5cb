"""Views are never stored: the original program needs 16 to 33 GB for those of 12,000 images."""

import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest
from conftest import ROOT

from e3jax import (
    E3Outlier,
    bank,
    checkpoint,
    descriptors,
    estimator,
    fusion,
    gallery,
    ranking,
    scoring,
)
from e3jax.images import ImageBank
from e3jax.reading import Collection

PROGRAM = """
import os, sys
import jax
import numpy as np
import e3jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_compilation_cache_dir", os.environ["E3JAX_CACHE_DIR"] + "/compiled")
n = int(sys.argv[1])
config = e3jax.paper_config(grey=False)
images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
fitted = e3jax.fit(jax.random.key(0), images, config=config, until=4)
e3jax.score(fitted, images[:4])
# Not getrusage's, which a process inherits from the one that started it.
status = open("/proc/self/status").read().split()
print(int(status[status.index("VmHWM:") + 1]) * 1024)
"""


def peak_bytes(n: int) -> int:
    command = [sys.executable, "-c", PROGRAM, str(n)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's resident set size")
def test_the_papers_protocol_on_12000_colour_images_stays_under_2_gb():
    # The first start compiles, which takes memory of its own.
    first, few, many = (peak_bytes(n) for n in (128, 128, 12_000))
    assert max(first, many) < 2e9
    # What the images add is three copies of them (ours and one per device), not their 111 views.
    bank = 12_000 * 32 * 32 * 3
    assert many - few < 3 * bank + 50e6, f"{few / 1e6:.0f} and {many / 1e6:.0f} MB"


@pytest.fixture
def drawn_scores(monkeypatch):
    """Collections are numbers of images, whose scores are drawn instead of computed."""
    block = np.random.default_rng(1).integers(0, 256, (4096, 8, 8, 1), np.uint8)
    random, kinds = np.random.default_rng(0), [fusion.NETWORK, *descriptors.DESCRIPTORS]

    def read(detector, n, *_, least):
        counts = np.diff([*range(0, n, 4096), n])
        images = bank.Joined(lambda piece: block, counts, block[:0])
        return Collection(
            ImageBank(images, np.arange(n)), [], digests=np.arange(n, dtype=np.uint64)
        )

    def train(detector, *_):
        detector.score_operations_, detector.network_, detector.steps_ = 2, "wrn-10-1", 1
        detector.variables_ = {}

    def score(detector, images, *_):
        entropies = random.random((len(images), 2), np.float32)
        return scoring.ViewScores({"ne": -entropies}, np.ones(len(images)), None)

    def hear(call):
        n = len(call[1])
        drawn = {kind: random.lognormal(size=n) for kind in kinds}
        return drawn | {"entropies": np.zeros((n, 2), np.uint8)}

    for name, function in {"_read": read, "_train": train, "_score": score}.items():
        monkeypatch.setattr(E3Outlier, name, function)
    monkeypatch.setattr(E3Outlier, "_range", lambda *_: None)
    monkeypatch.setattr(estimator, "collect", lambda n: n)
    monkeypatch.setattr(estimator, "_hear", hear)
    monkeypatch.setattr(jax.random, "choice", lambda key, n, shape, replace: np.arange(*shape))
    monkeypatch.setattr(scoring, "check_fit", lambda *_: "")
    monkeypatch.setattr(descriptors, "fit", lambda *_: dict.fromkeys(descriptors.DESCRIPTORS))
    limits = ((estimator, "LARGE"), (estimator, "_SAMPLE"), (fusion, "_MOST"), (gallery, "_MOST"))
    for module, name in limits:
        monkeypatch.setattr(module, name, 1000)


@pytest.mark.usefixtures("drawn_scores")
def test_what_follows_the_scores_takes_less_than_60_bytes_per_image(tmp_path):
    def rank(n: int) -> None:
        detector, folder = E3Outlier(operations="RA", random_state=0), tmp_path / f"{n}"
        detector.fit_in(folder / "parts", n)
        next(ranking._rows(detector.ranking_))
        pictures = np.broadcast_to(np.uint8(0), (n, 8, 8, 1))
        gallery.write_gallery(folder / "gallery.html", detector.ranking_, pictures)
        checkpoint.save(detector, folder / "detector")

    rank(3000)  # compiles
    tracemalloc.start()
    rank(n := 300_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * n, f"{peak / n:.0f} bytes"

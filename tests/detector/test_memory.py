"""Views are never stored: the original program needs 16 to 33 GB for those of 12,000 images.

And what follows the scores of many images takes little besides them.
"""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import ROOT

from e3jax.collection import copies
from e3jax.evidence import fusion, thresholds
from e3jax.work.store import Store

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


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's resident set size")
def test_the_papers_protocol_on_12000_colour_images_stays_under_2_gb():
    # The first start compiles, which takes memory of its own.
    first, few, many = (peak_bytes(n) for n in (128, 128, 12_000))
    assert max(first, many) < 2e9
    # What the images add is three copies of them (ours and one per device), not their 111 views.
    bank = 12_000 * 32 * 32 * 3
    assert many - few < 3 * bank + 50e6, f"{few / 1e6:.0f} and {many / 1e6:.0f} MB"


@pytest.mark.parametrize(
    ("follow", "most"),
    [(fusion.distribution, 24), (thresholds.deviations, 24), (lambda v: copies.exact(None, v), 34)],
)
def test_what_follows_the_scores_takes_few_bytes_per_image(follow, most):
    values = np.random.default_rng(0).permutation(np.arange(1.0, 500_001))
    tracemalloc.start()
    follow(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * len(values), f"{peak / len(values):.0f} bytes"


def test_mapped_arrays_are_what_they_were_and_take_no_memory(tmp_path):
    store, values = Store(tmp_path / "work", "name"), np.arange(500_000)
    tracemalloc.start()
    mapped = store.as_memmap("values", values)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    np.testing.assert_array_equal(mapped, values)
    assert kept < len(values) and Store().as_memmap("values", values) is values

"""Two simulated devices, one cache and strict promotion for the whole session.

The programs that tests start share the cache.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

# Calls of the wings that compute are checked against the annotations of arrays.
CHECKED = ("images", "operations", "networks", "devices", "training", "priority")
jaxtyping.install_import_hook([f"e3jax.{wing}" for wing in CHECKED], "checking.checked")
import tiny  # noqa: E402, F401 - a network's name, "tiny-8"

from e3jax import datasets  # noqa: E402
from e3jax.datasets import contamination  # noqa: E402

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
ROOT = Path(__file__).parents[1]
# For programs that tests start: of this checkout, whichever one is installed.
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))


# The others follow; a long file at the end would leave a core without work.
LONGEST_FIRST = """docs sweeps speed kills bank_kills configurations mesh compiling benchmark jobs
accelerators memory overwriting folders reading types golden surroundings priority baselines
networks convolutions theory estimator cli large fitting versions batches trainer step
operations""".split()


def pytest_collection_modifyitems(items):
    """Puts long files first, before them those that leave no compiled program to the others."""
    place = {f"test_{name}": i for i, name in enumerate(LONGEST_FIRST)}
    forgetful = {item.path for item in items if FORGETTING & {*item.fixturenames}}

    def key(item):
        return item.path not in forgetful, place.get(item.path.stem, len(place))

    items.sort(key=key)


# These fixtures clear what has been compiled.
FORGETTING = {"unoptimised", "as_in_a_new_process"}


class FilesAndPages(LoadScopeScheduling):
    """Tests of a file share fixtures and programs, so one worker runs them; pages share nothing."""

    def __init__(self, config, log):
        config.option.loadscopereorder = False  # by number of tests, which says little of time
        super().__init__(config, log)

    def _split_scope(self, nodeid):
        return nodeid if "test_docs.py" in nodeid else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return FilesAndPages(config, log)


LEAST_SECONDS = 0.1  # of a compilation, for a program to be kept; JAX's default is 1


def keeping(folder: str | os.PathLike | None = None) -> dict[str, str]:
    """Variables of programs that keep in a folder what they compile, and find it there.

    The default is what all tests share; whoever kills programs gives them a folder of their own.
    Some releases of JAX would log a page for each program that they find.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder or os.environ["E3JAX_CACHE_DIR"] + "/compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(LEAST_SECONDS),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A fresh cache folder, so that nothing depends on what the machine had.

    All workers share it: what one has compiled serves the others, and programs they start with
    the variables of ``keeping``.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    before = os.environ.get("E3JAX_CACHE_DIR")
    os.environ["E3JAX_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    yield folder
    if before is None:
        del os.environ["E3JAX_CACHE_DIR"]
    else:
        os.environ["E3JAX_CACHE_DIR"] = before


@pytest.fixture
def kept(monkeypatch):
    """Programs that are started in a test have the variables of ``keeping``."""
    for name, value in keeping().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def unoptimised():
    """Programs compile faster; for files whose tests compare with an independent computation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # tests of other files run what users run


@pytest.fixture(scope="session")
def mnist(cache) -> datasets.Dataset:
    """5,000 real digits."""
    return datasets.load("mnist", source="embedded", announce=lambda line: None)


@pytest.fixture(scope="session")
def digits(mnist) -> np.ndarray:
    """60 images uint8 [60, 32, 32, 1], 54 fours and 6 others."""
    return contamination.contaminate(mnist.images, mnist.labels, 4, 0.1, 0, max_images=60).images


# Of a plug-in's devices, as GPUs and TPUs are, JAX knows less than of a CPU's.
AS_PLUGIN = f"""
import os, runpy, sys
import jax._src.xla_bridge

sys.path[0] = {str(ROOT / "tests")!r}
import tiny

jax._src.xla_bridge.using_pjrt_c_api = lambda backend=None: True
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def run_script():
    """Runs a script of the repository as a user would; returns the finished process.

    With ``plugin=True`` as if the CPU devices were a plug-in's, and with the network "tiny-8".
    """

    def run(script: str, *arguments, plugin=False, **options) -> subprocess.CompletedProcess:
        how = ["-c", AS_PLUGIN] if plugin else []
        command = [sys.executable, *how, str(ROOT / script), *map(str, arguments)]
        options = {"env": os.environ | keeping(), "cwd": ROOT, "timeout": 600} | options
        options = {"capture_output": True, "text": True} | options
        return subprocess.run(command, **options)

    return run

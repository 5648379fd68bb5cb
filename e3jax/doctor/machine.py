"""What there is: versions, optional packages, devices and their memory, compiled programs."""

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from e3jax.devices import runtime
from e3jax.doctor.finding import Finding
from e3jax.version import VERSION

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")
# What only some commands need, by the extra that brings it.
_OPTIONAL = {
    "pyarrow": "large",
    "onnxruntime": "features",
    "matplotlib": "report",
    "tensorflow-datasets": "datasets",
    "tensorboard": "tensorboard",
    "ray": "ray",
}


def versions() -> Iterator[Finding]:
    """Of e3jax, Python and libraries."""
    yield Finding("e3jax", VERSION)
    yield Finding("Python", platform.python_version())
    yield Finding("system", f"{platform.system()} {platform.machine()}")
    for name in _LIBRARIES:
        yield Finding(name, importlib.metadata.version(name))


def packages() -> Iterator[Finding]:
    """Of what only some commands need."""
    for name, extra in _OPTIONAL.items():
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, f"not installed: pip install e3jax[{extra}]")


def devices() -> Iterator[Finding]:
    """What JAX computes on; wrong if an accelerator's package is there and JAX is on the CPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        everything = runtime.devices()
    wrong = str(caught[0].message) if caught else ""
    yield Finding("devices", runtime.describe_devices(), wrong=wrong)
    yield Finding("cores", runtime.cores())
    limit = runtime.memory_limit(everything[0])
    if limit:
        yield Finding("memory of a device that JAX may use", limit / 2**30, "GiB")
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("memory of this machine", memory / 2**30, "GiB")


def cache() -> Iterator[Finding]:
    """Compiled programs that are kept."""
    folder = jax.config.values.get("jax_compilation_cache_dir")
    if not folder:
        yield Finding("compiled programs", "not kept, so every start compiles")
        return
    yield Finding("folder", folder)
    sizes = [path.stat().st_size for path in Path(folder).glob("*") if path.is_file()]
    yield Finding("files", len(sizes))
    yield Finding("size", sum(sizes) / 2**20, "MiB")

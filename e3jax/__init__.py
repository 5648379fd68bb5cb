"""e3jax finds the images that do not belong in an unlabelled collection (E3Outlier in JAX)."""

import importlib
import os
import pkgutil

from e3jax.version import VERSION

__version__ = VERSION

# Where the names of the package are; imported on the first use, for JAX takes seconds.
_HOMES = {
    "E3Outlier": "detector.estimator",
    "E3OutlierDetector": "detector.adapter",
    "InputError": "errors",
    "Operation": "operations",
    "TrainConfig": "training",
    "all_views": "operations",
    "auroc": "metrics",
    "contaminate": "datasets.contamination",
    "fit": "training.fitting",
    "load": "detector.saving",
    "operation_set": "operations",
    "paper_config": "training",
    "quick_config": "training",
    "save": "detector.saving",
    "score": "training.fitting",
    "write_gallery": "report.gallery",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
_WINGS = {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"e3jax.{_HOMES[name]}"), name)
    if name in _WINGS:
        return importlib.import_module(f"e3jax.{name}")
    raise AttributeError(f"module 'e3jax' has no attribute {name!r}")


if os.environ.get("EAGER_IMPORT"):  # as other packages have it, for tools that look into modules
    globals().update({name: __getattr__(name) for name in __all__})


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_WINGS})

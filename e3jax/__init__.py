"""e3jax finds the images that do not belong in an unlabelled collection (E3Outlier in JAX)."""

from e3jax.checkpoint import load, save
from e3jax.contamination import contaminate
from e3jax.errors import InputError
from e3jax.estimator import E3Outlier
from e3jax.fitting import fit, score
from e3jax.gallery import write_gallery
from e3jax.images import ImageBank
from e3jax.metrics import auroc
from e3jax.operations import Operation, all_views, operation_set
from e3jax.sklearn_adapter import E3OutlierDetector
from e3jax.training import TrainConfig, paper_config, quick_config
from e3jax.version import VERSION

__version__ = VERSION

__all__ = [
    "E3Outlier",
    "E3OutlierDetector",
    "ImageBank",
    "InputError",
    "Operation",
    "TrainConfig",
    "all_views",
    "auroc",
    "contaminate",
    "fit",
    "load",
    "operation_set",
    "paper_config",
    "quick_config",
    "save",
    "score",
    "write_gallery",
]

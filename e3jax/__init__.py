"""e3jax finds the images that do not belong in an unlabelled collection (E3Outlier in JAX)."""

from e3jax.checkpoint import load, save
from e3jax.contamination import contaminate
from e3jax.devices import device_mesh
from e3jax.estimator import E3Outlier, E3OutlierDetector
from e3jax.gallery import write_gallery
from e3jax.images import ImageBank, InputError
from e3jax.metrics import aupr_in, aupr_out, auroc
from e3jax.operations import Operation, OperationSet, all_views, apply_operation, operation_set
from e3jax.scoring import Scorer, Scores
from e3jax.training import (
    TrainConfig,
    make_trainer,
    paper_config,
    place_bank,
    quick_config,
    train,
)

__version__ = "0.1.0"

__all__ = [
    "E3Outlier",
    "E3OutlierDetector",
    "ImageBank",
    "InputError",
    "Operation",
    "OperationSet",
    "Scorer",
    "Scores",
    "TrainConfig",
    "all_views",
    "apply_operation",
    "aupr_in",
    "aupr_out",
    "auroc",
    "contaminate",
    "device_mesh",
    "load",
    "make_trainer",
    "operation_set",
    "paper_config",
    "place_bank",
    "quick_config",
    "save",
    "train",
    "write_gallery",
]

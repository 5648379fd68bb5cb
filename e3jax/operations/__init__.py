"""Operations that turn an image into its views, compiled to tables of data."""

from e3jax.operations.families import FAMILIES, Family, Operation, paper_operations
from e3jax.operations.tables import (
    FILLS,
    OperationSet,
    compile_operations,
    evenly,
    operation_set,
    subset,
)
from e3jax.operations.views import all_views, apply_operation, views_of

__all__ = [
    "FAMILIES",
    "FILLS",
    "Family",
    "Operation",
    "OperationSet",
    "all_views",
    "apply_operation",
    "evenly",
    "operation_set",
    "paper_operations",
    "subset",
    "compile_operations",
    "views_of",
]

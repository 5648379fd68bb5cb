"""Operations that turn an image into its views, compiled to tables of data."""

from e3jax.operations.families import (
    FAMILIES as FAMILIES,
    Family as Family,
    Operation as Operation,
    paper_operations as paper_operations,
)
from e3jax.operations.tables import (
    FILLS as FILLS,
    OperationSet as OperationSet,
    compile_operations as compile_operations,
    evenly as evenly,
    operation_set as operation_set,
    subset as subset,
)
from e3jax.operations.views import (
    all_views as all_views,
    apply_operation as apply_operation,
    views_of as views_of,
)

"""Annotations of arrays by their types and shapes, such as ``UInt8[np.ndarray, "n h w c"]``.

They are jaxtyping's where that is loaded already, as in the tests, which check every call. Nothing
else needs jaxtyping: elsewhere an annotation is the type of the array.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import (
        Bool as Bool,
        Float as Float,
        Float32 as Float32,
        Float64 as Float64,
        Int as Int,
        Int32 as Int32,
        Int64 as Int64,
        Num as Num,
        Shaped as Shaped,
        UInt8 as UInt8,
        UInt32 as UInt32,
    )
else:

    class _Unchecked:
        def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
            return array_and_shape[0]

    Bool = Float = Float32 = Float64 = Int = Int32 = Int64 = Num = Shaped = _Unchecked
    UInt8 = UInt32 = _Unchecked

"""Collections in all forms that people have them in, as one array or as one list of sources."""

import contextlib
import os
from collections.abc import Iterable

import numpy as np

from e3jax.errors import InputError

# What the column or the entry of images is called; and the entries of a file in tables of images.
_IMAGE_NAMES, _FILE = ("image", "img", "images"), {"bytes", "path"}


def collect(X) -> np.ndarray | list:
    """A collection as an array of images, or as a list of sources that are read one by one.

    Args:
      X: an array or tensor of images; an iterable of files (paths, open files, their bytes, or
        dictionaries of bytes and path, as tables of images have them) or of images (arrays,
        tensors, Pillow's) of any sizes, also with labels, which are not used, as pairs or
        dictionaries; or a data set or a table, of pandas or Arrow, with a column of images.

    Returns:
      An array; or a list of paths, bytes, Pillow's images and arrays [h, w] or [h, w, c].

    Raises:
      InputError: it is none of these; names the position of the element.
    """
    X = _column(X)
    if isinstance(X, (dict, bytes, bytearray, memoryview)) or _is_picture(X):
        raise InputError(
            f"a {type(X).__name__} is not a collection: give a list of images or files"
        )
    if (array := _array(X)) is not None and array.dtype.kind not in "OUS":
        return array
    try:
        items = sorted(X, key=str) if isinstance(X, (set, frozenset)) else list(X)
    except TypeError as error:
        raise InputError(
            f"a {type(X).__name__} is not a collection: give a folder, a list of files or an array"
        ) from error
    items = [_source(i, item) for i, item in enumerate(items)]
    arrays = [item for item in items if isinstance(item, np.ndarray)]
    if len(arrays) == len(items) and len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return items


def _column(X):
    """A table's column of images, else X itself; what is Arrow's becomes a list."""
    if hasattr(X, "iloc") and X.ndim == 2:
        if set(_IMAGE_NAMES).isdisjoint(X.columns):
            raise InputError(
                f"a DataFrame without a column {' or '.join(_IMAGE_NAMES)} holds no images: give "
                "its column of paths, or flattened rows to e3jax.E3OutlierDetector"
            )
        X = X[_image_name(X.columns, "")]
    elif columns := getattr(X, "column_names", None):
        X = X[_image_name(columns, "the data set's columns are")]
    return X.to_pylist() if hasattr(X, "to_pylist") else X


def is_path(source) -> bool:
    """Whether an element is the name of a file."""
    return isinstance(source, (str, os.PathLike))


def _source(i: int, item):
    """Element i as `collect` returns it."""
    item = item.as_py() if hasattr(item, "as_py") else item  # Arrow's
    if isinstance(item, tuple) and len(item) == 2:
        label = _array(item[1])
        item = item[0] if label is None or label.ndim < 2 else item
    if isinstance(item, dict) and not _is_file(item):
        item = item[_image_name(item, f"element {i} has the keys")]
    if isinstance(item, dict) and _is_file(item):
        item = item.get("path") if item.get("bytes") is None else item["bytes"]
        if item is None:
            raise InputError(f"element {i} has neither bytes nor a path: leave it out")
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    if is_path(item) or isinstance(item, bytes) or _is_picture(item):
        return item
    if hasattr(item, "read"):
        return _content(i, item)
    array = _array(item)
    if array is None or array.dtype.kind not in "biuf" or not array.ndim:
        value = f" ({array})" if array is not None and not array.ndim else ""
        raise InputError(
            f"element {i} is a {type(item).__name__}{value}, expected a file or an image: leave "
            "it out"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise InputError(
            f"element {i} has shape {array.shape}, expected [h, w] or [h, w, c] with c from 1 to "
            "4: move channels last"
        )
    return array


def _content(i: int, file) -> bytes:
    """What is left to read of element i, an open file."""
    try:
        return file.read()
    except (OSError, ValueError) as error:  # closed, or open for writing or as text
        raise InputError(
            f"element {i} cannot be read ({error}): open it in mode 'rb', or give its path"
        ) from error


def _is_file(item: dict) -> bool:
    return not _FILE.isdisjoint(item) and set(_IMAGE_NAMES).isdisjoint(item)


def _image_name(names: Iterable[str], what: str) -> str:
    for name in _IMAGE_NAMES:
        if name in names:
            return name
    raise InputError(f"{what} {', '.join(map(str, names))}, expected one of {_IMAGE_NAMES}")


def _is_picture(item) -> bool:
    from PIL import Image

    return isinstance(item, Image.Image)


def _array(item) -> np.ndarray | None:
    """An array of what says that it is one, or of nested lists of numbers; else None."""
    if hasattr(item, "detach"):  # a tensor of PyTorch, perhaps on another device
        item = item.detach().cpu()
        if str(item.dtype) == "torch.bfloat16":  # which NumPy does not have
            item = item.float()
    if isinstance(item, (np.generic, np.ndarray, int, float)) or hasattr(item, "__array__"):
        array = np.asarray(item)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], (list, tuple, int, float)):
        with contextlib.suppress(ValueError):  # they differ in their shapes
            return np.asarray(item)
    return None

"""Features: vectors of images that a user has, or that a model of the user's makes."""

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3jax.collection.collecting import is_path
from e3jax.collection.collection import Collection
from e3jax.collection.reader import Reader
from e3jax.collection.threads import in_threads, reason
from e3jax.errors import InputError
from e3jax.images import decoding, high_depth, to_picture, to_square
from e3jax.images.high_depth import HighDepthImage
from e3jax.work.progress import Progress
from e3jax.work.store import Store, work_key

_FORMATS = (".npy", ".npz", ".parquet", ".onnx")
_BLOCK, _BATCH = 256, 32  # images that are kept together, and that a model takes at once
# Of images in [0, 1], where a model does not say: ImageNet's (Krizhevsky et al. 2012).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def with_features(
    collection: Collection, source: Any, folder: Path | None, on_progress: Progress
) -> tuple[Collection, list[Store]]:
    """A collection with the user's features.

    Args:
      collection: of n images.
      source: float [n, d], in the order of the collection; vectors by path; or a file:
        ``.npy`` with such an array; ``.npz`` with ``paths`` str [m] and ``features`` float [m, d];
        ``.parquet`` with a column ``path`` and a column ``features`` of lists, or columns of
        numbers; or ``.onnx``, a model of images, see :class:`Encoder`.
      folder: where the model's features are kept until the work is finished; None: in memory.
      on_progress: called as ("encoding", images done, of how many).

    Returns:
      The collection, and the stores that keep the model's features.

    Raises:
      InputError: features are missing, not finite or of another shape; a package is missing.
    """
    stores = []
    if is_path(source) and Path(source).suffix.lower() == ".onnx":
        model = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        key = work_key(work="features", model=model, of=collection.input_digests)
        stores.append(Store(folder, key))
        features = Encoder(source).encode(collection, stores[0], on_progress)
    else:
        features = _given(source, collection)
    name = source if is_path(source) else "features"
    if features.ndim != 2 or len(features) != len(collection.images) or not features.shape[1]:
        raise InputError(
            f"{name} has shape {features.shape}, expected a vector for each of the "
            f"{len(collection.images)} images that can be read: give [images, numbers], or vectors "
            "by path"
        )
    if not np.isfinite(features).all():
        raise InputError(f"{name} has numbers that are not finite: replace them")
    return collection._replace(features=features), stores


def check_source(source: Any) -> None:
    """Raises an InputError, in one sentence, for a file that features cannot be read from."""
    if not is_path(source):
        return
    if Path(source).suffix.lower() not in _FORMATS:
        raise InputError(f"{source} is not of a format of features: give {', '.join(_FORMATS)}")
    if not Path(source).is_file():
        raise InputError(f"{source} does not exist or is not a file: give a file of features")


# --- Vectors that there are -----------------------------------------------------------------------


def _given(source: Any, collection: Collection) -> np.ndarray:
    if isinstance(source, Mapping):
        paths = [os.fspath(path) for path in source]
        return _by_path("features", paths, np.array(list(source.values())), collection, Path())
    if not is_path(source):
        return np.asarray(source, np.float32)
    path = Path(source)
    try:
        if read := {".npz": _of_npz, ".parquet": _of_parquet}.get(path.suffix.lower()):
            paths, vectors = read(path)
            return _by_path(str(path), paths, vectors, collection, path.parent)
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (ValueError, KeyError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} holds no features ({error}): expected .npy, .npz with paths and features, "
            ".parquet with path and features, or .onnx"
        ) from error


def _of_npz(path: Path) -> tuple[list[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["paths"].astype(str).tolist(), arrays["features"]


def _of_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path} needs pyarrow: pip install e3jax[large]")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    paths, others = table["path"].to_pylist(), table.drop_columns(["path"])
    if "features" in others.column_names:
        return paths, np.array(others["features"].to_pylist(), np.float32)
    return paths, np.stack([column.to_numpy() for column in others.columns], axis=1)


def _by_path(
    name: str, paths: list[str], vectors: np.ndarray, collection: Collection, folder: Path
) -> np.ndarray:
    """The vectors of a collection's files.

    Paths are as they are seen from here, or from the folder of their table; what is left is found
    by the name of the file, if no two have it.
    """
    rows, names = {}, {}
    for row, path in enumerate(paths):
        rows[os.path.abspath(folder / path)] = rows[os.path.abspath(path)] = row
        file = os.path.basename(path)
        names[file] = None if file in names else row
    order, missing = [], []
    for path in map(str, collection.ids):
        row = rows.get(os.path.abspath(path), names.get(os.path.basename(path)))
        (missing if row is None else order).append(path if row is None else row)
    if missing:
        raise InputError(
            f"{name} has no features of {missing[0]}, one of {len(missing)} such files: give those "
            "of all images"
        )
    return np.asarray(vectors, np.float32)[order]


# --- A model of the user's ------------------------------------------------------------------------


class _Input(NamedTuple):
    """What a model takes."""

    name: str
    dtype: Any
    batch: int | None
    side: int
    channels_first: bool


class Encoder:
    """A model of images in ONNX, which ONNX Runtime computes.

    Its first input is a batch of square RGB images, [n, 3, h, w] or [n, h, w, 3]: uint8 in
    [0, 255], or float in [0, 1] minus ``mean``, divided by ``std``. Both, three numbers each, and
    ``size`` are read from the model's metadata; default: ImageNet's, and 224 where the model leaves
    its side open. Its first output is [n, d]; means of [n, d, h, w] over pixels are taken.

    Args:
      path: of the model, beside which large ones have their weights.

    Raises:
      InputError: it is not such a model, or ONNX Runtime is missing.
    """

    def __init__(self, path: str | os.PathLike):
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(f"{path} needs ONNX Runtime: pip install e3jax[features]")
        import onnxruntime

        self.path = path
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path))
        except Exception as error:  # of ONNX Runtime's own types
            line = (str(error).strip() or "no message").splitlines()[0]
            raise InputError(f"{path} is not a model that ONNX Runtime reads: {line}") from error
        about = self._session.get_modelmeta().custom_metadata_map
        self.input = self._described(int(about.get("size", 224)))
        self._mean, self._std = (
            np.array(about[name].split() if name in about else usual, np.float32)
            for name, usual in (("mean", _MEAN), ("std", _STD))
        )

    def _described(self, side: int) -> _Input:
        first = self._session.get_inputs()[0]
        batch, *shape = first.shape
        channels_first = len(shape) == 3 and shape[0] == 3
        if len(shape) != 3 or 3 not in (shape[0], shape[2]) or first.type not in _TYPES:
            raise InputError(
                f"{self.path} takes {first.type} {first.shape}, expected a batch of RGB images, "
                "[n, 3, h, w] or [n, h, w, 3], float or uint8: export such a model"
            )
        fixed = shape[1] if isinstance(shape[1], int) else side
        batch = batch if isinstance(batch, int) else None
        return _Input(first.name, _TYPES[first.type], batch, fixed, channels_first)

    def encode(self, collection: Collection, store: Store, on_progress: Progress) -> np.ndarray:
        """Features float32 [n, d] of a collection, kept block by block; files are read again."""
        n, blocks = len(collection.images), []
        for start in range(0, n, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, n))

            def compute(rows: np.ndarray = rows) -> dict[str, np.ndarray]:
                return {"features": self._of_images(self._squares(collection, rows))}

            on_progress("encoding", start, n)
            blocks.append(store.get_or_compute(f"features{start:09d}", compute)["features"])
        on_progress("encoding", n, n)
        return store.as_memmap("features", np.concatenate(blocks))

    def _squares(self, collection: Collection, rows: np.ndarray) -> np.ndarray:
        """Images uint8 [m, h, w, 3] of the model's size."""
        side, resize = self.input.side, collection.reader.resize or Reader().resize
        is_file = collection.states is not None
        sources = (collection.ids if is_file else collection.images)[rows]

        def square(source: Any) -> np.ndarray:
            picture = to_picture(source) if isinstance(source, np.ndarray) else source
            [made] = decoding.decode(picture, (side, lambda p: to_square(p, side, resize)))
            if isinstance(made, HighDepthImage):
                made = made.to_uint8(high_depth.common_range([made], collection.reader.file_range))
            return np.broadcast_to(np.asarray(made).reshape(side, side, -1), (side, side, 3))

        squares = in_threads(square, list(sources), lambda done: None)
        for row, made in zip(rows, squares, strict=True):
            if isinstance(made, Exception):
                raise InputError(
                    f"{collection.ids[row]} can no longer be read ({reason(made)}): leave it out"
                )
        return np.stack(squares)

    def _of_images(self, images: np.ndarray) -> np.ndarray:
        size, features = self.input.batch or _BATCH, []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            count = len(batch)
            if self.input.batch:  # a model of a fixed batch gets the last image again
                batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
            if self.input.dtype != np.uint8:
                batch = (batch.astype(np.float32) / 255 - self._mean) / self._std
            if self.input.channels_first:
                batch = np.moveaxis(batch, -1, 1)
            [values, *_] = self._session.run(
                None, {self.input.name: np.ascontiguousarray(batch, self.input.dtype)}
            )
            values = np.asarray(values, np.float32)
            features.append(values.mean((2, 3))[:count] if values.ndim == 4 else values[:count])
        if features[0].ndim != 2:
            raise InputError(
                f"{self.path} gives {features[0].shape}, expected [images, numbers]: export the "
                "model's pooled features"
            )
        return np.concatenate(features)

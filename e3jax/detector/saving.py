"""Saving and loading fitted detectors.

A file is written whole or not at all, and holds numbers and text only: loading one runs no code.
"""

import importlib.metadata
import json
import numbers
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from e3jax.collection import Collection, Reader
from e3jax.collection.collection import Unreadable
from e3jax.detector.estimator import E3Outlier
from e3jax.errors import InputError
from e3jax.evidence import registered
from e3jax.evidence.fusion import Distribution
from e3jax.evidence.health import Health
from e3jax.evidence.model import Model
from e3jax.evidence.thresholds import Frequent
from e3jax.images.high_depth import ValueRange
from e3jax.operations import Operation
from e3jax.version import VERSION
from e3jax.work import files, tensors
from e3jax.work.store import flat, nested

# Raised when what a file holds changes its meaning.
_FORMAT = 9
_MARK = r'"e3jax":"{\"format\":'  # near the start of a file


def save(detector: E3Outlier, path: str | os.PathLike) -> None:
    """Writes a fitted detector to one file (safetensors); an older one of that name is replaced.

    It holds the model, the collection's scores and file names, parameters and the versions it was
    made with. Of parameters ``on_progress`` is left out, and so is a ``random_state`` that is not
    an integer: neither changes what a fitted detector says. An object as ``contamination`` becomes
    the share that it found; the threshold stays.

    Raises:
      sklearn.exceptions.NotFittedError: before ``fit``.
      ValueError: ``network`` is a function; or the file is another program's.
      OSError: the file cannot be written; nothing of it is left then.
    """
    check_is_fitted(detector, "decision_scores_")
    if callable(detector.model_.network.network):
        raise ValueError(
            "network is a function, which cannot be saved: keep the variables of model_.network "
            "and the program that has the function"
        )
    parameters = dict(detector.parameters_)
    if not isinstance(parameters["random_state"], (int, np.integer)):
        parameters["random_state"] = None
    if parameters["features"] is not None:  # vectors are of the collection
        is_file = isinstance(parameters["features"], (str, os.PathLike))
        parameters["features"] = os.fspath(parameters["features"]) if is_file else None
    if not isinstance(parameters["contamination"], (numbers.Real, str)):
        # Of an object of PyThresh its result is kept, as the share that it found.
        share = float(detector.labels_.mean())
        parameters["contamination"] = share if 0 < share <= 0.5 else "auto"
    check_target(path)
    leaves = flat(
        {
            "model": _plain_tree(detector.model_),
            "scores": detector.decision_scores_,
            "remoteness": detector.remoteness_,
            "copy_of": detector.copy_of_,
            "decisions": detector.decisions_,
        }
    )
    arrays = {name: np.asarray(a, order="C") for name, a in leaves.items() if _is_array(a)}
    arrays |= _packed_paths(detector.paths_)
    about = {
        "format": _FORMAT,
        "parameters": parameters,
        "values": {name: value for name, value in leaves.items() if not _is_array(value)},
        "threshold": detector.threshold_,
        "health": detector.health_._asdict(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
        | {"e3jax": VERSION, "python": platform.python_version()},
    }
    tensors.write(path, arrays, json.loads(json.dumps(about, default=_json_value)))


def check_target(path: str | os.PathLike) -> None:
    """Raises an InputError, in one sentence, if :func:`save` could not write there or ought not."""
    path = Path(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path} cannot be written, {path.parent} is not a writable folder: "
            "choose another place for the detector"
        )
    files.check_output(path, _MARK)


def load(path: str | os.PathLike) -> E3Outlier:
    """The detector that :func:`save` wrote: it gives the same scores.

    Raises:
      InputError: the file is damaged, of another program, or of a later version.
      OSError: there is no such file, or it may not be read.
    """
    try:
        arrays, about = tensors.read(path)
    except ValueError as error:
        raise InputError(
            f"{path} is damaged or not an e3jax detector: fit and save it again"
        ) from error
    if "format" not in about:
        raise InputError(f"{path} is not an e3jax detector: give a file that e3jax saved")
    if about["format"] != _FORMAT:
        raise InputError(
            f"{path} has format {about['format']}, expected {_FORMAT}: it was written by e3jax "
            f"{about['versions']['e3jax']}, use that version, or fit and save again"
        )
    return _restore(about, arrays)


def _restore(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> E3Outlier:
    parameters = about["parameters"]
    parameters["operations"] = _operations(_tuples(parameters["operations"]))
    detector = E3Outlier(**parameters)
    detector.parameters_ = parameters
    paths = _paths(arrays)
    tree = nested(arrays | {name: _tuples(value) for name, value in about["values"].items()})
    detector.model_ = _model(tree["model"])
    detector.decision_scores_, detector.remoteness_ = tree["scores"], tree["remoteness"]
    detector.copy_of_, detector.threshold_ = tree["copy_of"], about["threshold"]
    detector.decisions_ = tree["decisions"]
    health = about["health"]
    unreadable = [Unreadable(*pair) for pair in health["unreadable"]]
    detector.health_ = Health(
        **health | {"outliers": tuple(health["outliers"]), "unreadable": unreadable}
    )
    nothing = detector.model_.frequent.images[:0], np.empty(0, np.uint64)
    detector.collection_ = Collection(
        nothing[0], paths, detector.model_.reader, unreadable, nothing[1]
    )
    return detector


def _model(tree: dict[str, Any]) -> Model:
    reader = Reader(**tree["reader"])
    network = tree["evidence"]["network"]
    network["operations"] = _operations(network["operations"])
    network["variables"] = {"batch_stats": {}} | network["variables"]
    return Model(
        reader=reader._replace(file_range=ValueRange(*reader.file_range)),
        evidence={name: registered(name).model(**p) for name, p in tree["evidence"].items()},
        weights=tree["weights"],
        distributions={n: Distribution(**d) for n, d in tree.get("distributions", {}).items()},
        frequent=Frequent(**tree["frequent"]),
    )


def _operations(names: str | tuple) -> str | tuple[Operation, ...]:
    """Operations of a detector's file."""
    return names if isinstance(names, str) else tuple(Operation(*values) for values in names)


def _tuples(value: Any) -> Any:
    """A value of JSON, which has only lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain_tree(value: Any) -> Any:
    """A model's NamedTuples as dictionaries; a kind's ranges and operations stay one value."""
    if isinstance(value, (ValueRange, Operation)):
        return value
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain_tree(item) for name, item in value.items()}
    return value


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _packed_paths(paths) -> dict[str, np.ndarray]:
    """Image numbers, or the bytes of all paths, each followed by one of 0."""
    if isinstance(paths, np.ndarray) and paths.dtype.kind == "i":
        return {"numbers": paths}
    packed = bytearray()
    for path in paths:
        packed += os.fsencode(path) + b"\0"
    return {"paths": np.frombuffer(packed, np.uint8)}


def _paths(arrays: dict[str, np.ndarray]) -> np.ndarray:
    if "numbers" in arrays:
        return arrays.pop("numbers")
    return np.array(list(map(os.fsdecode, arrays.pop("paths").tobytes().split(b"\0")[:-1])))


def _json_value(value: Any) -> Any:
    """NumPy's numbers and arrays for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be saved")

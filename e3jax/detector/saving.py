"""Saving and loading fitted detectors.

A file is written whole or not at all, and holds numbers and text only: loading one runs no code.
"""

import importlib.metadata
import json
import numbers
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from sklearn.utils.validation import check_is_fitted

from e3jax import operations
from e3jax.collection import collection
from e3jax.detector.estimator import E3Outlier
from e3jax.errors import InputError
from e3jax.evidence import descriptors, fusion
from e3jax.evidence.health import Health
from e3jax.images.high_depth import ValueRange
from e3jax.version import VERSION
from e3jax.work import files
from e3jax.work.store import digest_of, nested

# Raised when what a file holds changes its meaning.
_FORMAT = 7
_ARRAYS = (
    *("decision_scores_", "remoteness_", "median_entropies_", "view_weights_", "copy_of_"),
    *("frequent_", "frequent_limits_"),
)
_MARK = r'"e3jax":"{\"format\":'  # near the start of a file
# Dictionaries, and what their values are made of.
_TREES = {"variables_": dict, "references_": descriptors.References, "scales_": fusion.Scale}
_FITTED = (
    *("threshold_", "value_range_", "network_", "steps_", "precision_", "colour_", "file_scale_"),
    "score_operations_",
)


def save(detector: E3Outlier, path: str | os.PathLike) -> None:
    """Writes a fitted detector to one file (safetensors), an older one of that name is replaced.

    It holds the network, the collection's scores and file names, preprocessing, parameters and the
    versions it was made with. Of parameters ``on_progress`` is left out, and so is a
    ``random_state`` that is no integer: neither changes what a fitted detector says. An object as
    ``contamination`` becomes the share that it found; the threshold stays.

    Raises:
      sklearn.exceptions.NotFittedError: before ``fit``.
      ValueError: ``network`` is a function; or the file is another program's.
      OSError: the file cannot be written; nothing of it is left then.
    """
    check_is_fitted(detector, "decision_scores_")
    if callable(detector.network_):
        raise ValueError(
            "network is a function, which cannot be saved: keep variables_ and the program that "
            "has the function"
        )
    parameters = dict(detector.parameters_)
    if not isinstance(parameters["random_state"], (int, np.integer)):
        parameters["random_state"] = None
    if not isinstance(parameters["contamination"], (numbers.Real, str)):
        # Of an object of PyThresh its result is kept, as the share that it found.
        share = float(detector.labels_.mean())
        parameters["contamination"] = share if 0 < share <= 0.5 else "auto"
    check_target(path)
    tree = {name: getattr(detector, name) for name in (*_ARRAYS, *_TREES)}
    flat = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {
        jax.tree_util.keystr(at, simple=True, separator="/"): np.asarray(a, order="C")
        for at, a in flat
    }
    arrays |= _packed_paths(detector.paths_)
    about = {
        "format": _FORMAT,
        "parameters": parameters,
        "fitted": {name: getattr(detector, name) for name in _FITTED},
        "health": detector.health_._asdict(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
        | {"e3jax": VERSION, "python": platform.python_version()},
    }
    text = json.dumps(about, default=_plain)
    metadata = {"e3jax": text, "sha256": digest_of(arrays, text)}
    content = safetensors.numpy.save(arrays, metadata)
    files.write_atomically(path, lambda file: file.write(content))


def check_target(path: str | os.PathLike) -> None:
    """Raises an InputError, in one sentence, if :func:`save` could not write there or ought not."""
    path = Path(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"{path} cannot be written, {path.parent} is no folder that one may write to: choose "
            "another place for the detector"
        )
    files.check_output(path, _MARK)


def load(path: str | os.PathLike) -> E3Outlier:
    """The detector that :func:`save` wrote: it gives the same scores.

    Raises:
      InputError: the file is damaged, of another program, or of a later version.
      OSError: there is no such file, or it may not be read.
    """
    with open(path, "rb"):  # safetensors' own words for what fails here name no file
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged or no detector of e3jax ({error}): fit and save it again"
        ) from error
    if "e3jax" not in metadata:
        raise InputError(f"{path} is no detector of e3jax: give a file that it saved")
    if metadata.get("sha256") != digest_of(arrays, metadata["e3jax"]):
        raise InputError(f"{path} is damaged: fit and save it again")
    about = json.loads(metadata["e3jax"])
    if about["format"] != _FORMAT:
        raise InputError(
            f"{path} has format {about['format']}, expected {_FORMAT}: it was written by e3jax "
            f"{about['versions']['e3jax']}, use that version, or fit and save again"
        )
    return _restore(about, arrays)


def _restore(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> E3Outlier:
    parameters = about["parameters"]
    if not isinstance(parameters["operations"], str):
        # JSON has lists alone.
        parameters["operations"] = tuple(
            operations.Operation(flip, tuple(shift), turns, tuple(patches), angle)
            for flip, shift, turns, patches, angle in parameters["operations"]
        )
    detector = E3Outlier(**parameters)
    for name, value in about["fitted"].items():
        setattr(detector, name, value)
    detector.file_scale_ = ValueRange(*detector.file_scale_)
    detector.parameters_ = parameters
    detector.paths_ = _paths(arrays)
    tree = {name: {} for name in _TREES} | nested(arrays)  # which may be empty
    for name, kind in _TREES.items():
        tree[name] = {key: kind(**values) for key, values in tree[name].items()}
    for name, value in tree.items():
        setattr(detector, name, value)
    if unknown := detector.references_.keys() - descriptors.DESCRIPTORS.keys():
        raise InputError(
            f"the detector needs the descriptor {min(unknown)!r}: register it in "
            "e3jax.evidence.descriptors.DESCRIPTORS first"
        )
    health = about["health"]
    unreadable = [collection.Unreadable(*pair) for pair in health["unreadable"]]
    detector.health_ = Health(**health | {"unreadable": unreadable})
    return detector


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


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be saved")

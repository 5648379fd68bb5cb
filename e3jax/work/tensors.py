"""Files of arrays and of what they are (safetensors): numbers and text, so reading runs no code."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from e3jax.work import files


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping) -> None:
    """Writes arrays whole or not at all; the same arrays give the same bytes.

    Args:
      path: of the file.
      arrays: by name.
      about: what they are, in JSON's terms.
    """
    digest = _digest(arrays, json.dumps(about))
    # One entry, since safetensors writes several in any order.
    content = safetensors.numpy.save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()},
        {"e3jax": json.dumps({**about, "sha256": digest})},
    )
    files.write_atomically(path, lambda file: file.write(content))


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file that `write` wrote, and what they are.

    Raises:
      ValueError: the file is damaged, or another program's.
      OSError: it cannot be read.
    """
    with open(path, "rb"):  # safetensors' own words for what fails here name no file
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads(file.metadata()["e3jax"])
        digest = about.pop("sha256")
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("damaged or not written by e3jax") from error
    if digest != _digest(arrays, json.dumps(about)):
        raise ValueError("damaged or not written by e3jax")
    return arrays, about


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    """SHA-256 of named arrays, with their types and shapes, and of a text; hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()

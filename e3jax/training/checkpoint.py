"""The state of a training under way, in a file that holds numbers only and is written whole."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from e3jax import devices
from e3jax.errors import InputError
from e3jax.training.step import TrainState
from e3jax.work import files, tensors

_log = logging.getLogger(__name__)
FILE = "state.safetensors"
MARK = r'"e3jax":"{\"kind\": \"training\"'  # near the start of a file


class TrainCheckpoint:
    """The latest state of one training, in a folder of its own.

    A process killed while it saves leaves the state before it. Numbers come back bit for bit.

    Of several processes of a job only the first reads and writes, since the folder may be on a disk
    that only it sees; ``save`` does nothing in the others, ``restore`` must be called by all.

    Args:
      folder: is made with the first save. Its file ``state.safetensors`` is replaced by each save,
        its other files are left alone.
      save_seconds: between saves; a training shorter than that saves nothing.

    Raises:
      InputError: the file of that name was not written by e3jax.
    """

    def __init__(self, folder: str | os.PathLike, save_seconds: float = 180):
        self.folder, self.save_seconds = Path(folder).absolute(), save_seconds
        self._is_first = jax.process_index() == 0
        if self._is_first:
            files.check_output(self.folder / FILE, MARK)

    def save(self, state: TrainState, notes: Mapping[str, np.ndarray | np.generic]) -> None:
        """Saves a state and notes to it, arrays by name; returns when it is on disk."""
        if self._is_first:
            tensors.write(self.folder / FILE, _bits(state, notes), {"kind": "training"})

    def restore(
        self, like: TrainState, notes: Mapping[str, np.ndarray | np.generic]
    ) -> tuple[TrainState, dict[str, np.ndarray]] | None:
        """The saved state, placed as ``like`` is, and its notes.

        Args:
          like: a state of the same training, whose numbers do not matter.
          notes: of the names and shapes of those that were saved.

        Returns:
          None if nothing was saved, or if what was saved is damaged, which is logged.

        Raises:
          InputError: the state is of another training.
        """
        wanted = _bits(like, notes)
        saved = self._read() if self._is_first else None
        is_alike = saved is not None and _shapes(saved) == _shapes(wanted)
        # Every process of a job has to know, or the others would wait for the first.
        exists, is_alike = devices.broadcast_from_first(np.array([saved is not None, is_alike]))
        if not exists:
            return None
        if not is_alike:
            raise InputError(
                f"{self.folder / FILE} is the state of another training: choose another folder"
            )
        saved = devices.broadcast_from_first(saved if self._is_first else wanted)
        leaves, structure = jax.tree.flatten((like, dict(notes)))
        names = zip(wanted, leaves, strict=True)
        numbers = [saved[name].view(leaf.dtype) for name, leaf in names]
        state, saved_notes = structure.unflatten(numbers)
        return devices.place(like.step.sharding.mesh, state), saved_notes

    def _read(self) -> dict[str, np.ndarray] | None:
        try:
            return tensors.read(self.folder / FILE)[0]
        except FileNotFoundError:
            return None
        except ValueError:
            _log.warning(f"{self.folder / FILE} is damaged: the training starts anew")
            return None


def _bits(state: TrainState, notes: Mapping[str, np.ndarray | np.generic]) -> dict[str, np.ndarray]:
    """What is saved: unsigned integers by a name that has the place and the type of each array.

    So every type comes back as it was, bfloat16 too, and no devices are needed: any mesh can take
    the state up again.
    """
    leaves, _ = jax.tree.flatten_with_path(devices.fetched((state, dict(notes))))
    named = ((jax.tree_util.keystr(path), np.asarray(leaf, order="C")) for path, leaf in leaves)
    return {f"{name} {a.dtype}": a.view(f"u{a.dtype.itemsize}") for name, a in named}


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}

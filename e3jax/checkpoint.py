"""Saving and loading. Files are written whole or not at all."""

import os
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from e3jax import training

# Orbax numbers the operations of a process: two at once wait for each other's files for ever.
_one_at_a_time = threading.Lock()


class TrainCheckpoint:
    """The latest state of one running training, in a folder of its own (Orbax).

    A process killed while it saves leaves the state before it. Numbers come back bit for bit.

    Of several processes of a job the first alone reads and writes, since the folder may be on a
    disk that only it sees; ``save`` does nothing in the others, ``restore`` must be called by all.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self._manager = None
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1,
                cleanup_tmp_directories=True,
                create=False,
                enable_async_checkpointing=False,
                # Or Orbax would wait for the other processes.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix=self.folder.name
                ),
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: training.TrainState, notes: dict[str, np.ndarray]) -> None:
        """Saves a state and notes to it, arrays of 4-byte numbers; returns when it is on disk.

        Does nothing if this step is saved already.
        """
        if self._manager is None:
            return
        item = _to_host(state, notes)
        step = int(item["state"]["step"])
        if self._manager.latest_step() == step:
            return
        with _one_at_a_time:
            self._manager.save(step, args=ocp.args.StandardSave(item))

    def restore(
        self, like: training.TrainState, notes: dict[str, np.ndarray]
    ) -> tuple[training.TrainState, dict[str, np.ndarray]] | None:
        """The saved state, placed as ``like`` is, and its notes; None if nothing was saved.

        ``notes`` gives the names and shapes of those that were saved.
        """
        found = self._manager is not None and self._manager.latest_step() is not None
        if not _from_first(np.int32(found)):
            return None
        item = _to_host(like, notes)
        if self._manager is not None:
            with _one_at_a_time:
                item = self._manager.restore(None, args=ocp.args.StandardRestore(item))
        item = _from_first(item)
        state = training.TrainState(**training.place(like.step.sharding.mesh, item["state"]))
        return state, item["notes"]

    def close(self) -> None:
        """Lets go of the folder."""
        if self._manager is not None:
            self._manager.close()


def _to_host(state: training.TrainState, notes: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is saved: arrays that need no devices, so that any mesh can take them up again."""
    return {"state": jax.device_get(state)._asdict(), "notes": jax.tree.map(np.asarray, notes)}


def _from_first(tree: Any) -> Any:
    """Every process's tree of 4-byte numbers replaced by the first's."""
    if jax.process_count() == 1:
        return tree
    # As integers: what sums the processes' floats turns -0.0 into 0.0.
    bits = jax.tree.map(lambda a: np.asarray(a).view(np.uint32), tree)
    bits = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda a, b: b.view(np.asarray(a).dtype), tree, bits)

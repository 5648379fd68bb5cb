"""Saving and loading. Files are written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from e3jax import training


class TrainCheckpoint:
    """The latest state of one running training, in a folder of its own (Orbax).

    A process killed while it saves leaves the state before it. Numbers come back bit for bit.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, state: training.TrainState, seconds: float) -> None:
        """Saves a state and the seconds of training behind it; returns when it is on disk.

        Does nothing if this step is saved already.
        """
        if self._manager.latest_step() == int(state.step):
            return
        item = {"state": _plain(state), "seconds": seconds}
        self._manager.save(int(state.step), args=ocp.args.StandardSave(item))
        self._manager.wait_until_finished()

    def restore(self, like: training.TrainState) -> tuple[training.TrainState, float] | None:
        """The saved state, placed as ``like`` is, and its seconds; None if nothing was saved."""
        if self._manager.latest_step() is None:
            return None
        item = {
            "state": jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like)),
            "seconds": 0.0,
        }
        item = self._manager.restore(None, args=ocp.args.StandardRestore(item))
        state = training.TrainState(**item["state"])
        key = jax.random.wrap_key_data(state.order_key, impl=jax.random.key_impl(like.order_key))
        return state._replace(order_key=key), float(item["seconds"])

    def close(self) -> None:
        """Lets go of the folder."""
        self._manager.close()


def _plain(state: training.TrainState) -> dict[str, Any]:
    return state._replace(order_key=jax.random.key_data(state.order_key))._asdict()

"""Quarantine: moves the most outlying images aside and back; deletes and overwrites nothing.

A command may be killed at any moment. The list of moves is written before any file is moved; every
file is whole at its old or its new place at any time (at both, for a moment, if these are on two
file systems); and the next command on the same quarantine clears up. A lock keeps a second one out.

A file is moved only if it is the one that was ranked, see :class:`e3jax.work.files.FileState`.
"""

from e3jax.collection.finding import is_quarantine
from e3jax.quarantine.commands import FOLDER, Moved, NotMoved, PartlyMoved, move_aside, undo

__all__ = ["FOLDER", "Moved", "NotMoved", "PartlyMoved", "is_quarantine", "move_aside", "undo"]

"""How commands begin and end; each imports what it needs itself.

So ``e3jax --help`` imports no array library, and ``e3jax quarantine`` no JAX.
"""

import importlib
import traceback
from collections.abc import Sequence
from pathlib import Path

from e3jax.cli.arguments import parse_args
from e3jax.work import exits


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    options = vars(parse_args(arguments))
    name = options.pop("command")
    from e3jax import quarantine
    from e3jax.cli import console

    screen = console.start()
    try:
        with console.logged(screen):
            command = importlib.import_module(f"e3jax.cli.{name}")
            exits.started()
            return command.run(screen, **options)
    except KeyboardInterrupt:
        screen.print(
            "Interrupted. `e3jax quarantine REPORT --undo` restores any files already moved."
        )
        return exits.STOPPED
    except quarantine.PartlyMoved as error:
        console.list_files(screen, "moved", error.moved)
        screen.print(f"error: {error}", style="red")
        return exits.PARTLY
    except Exception as error:
        sentence, code = _explained(error)
        screen.print(f"error: {sentence}", style="red")
        return code


def _explained(error: Exception) -> tuple[str, int]:
    """An error in one sentence, and the exit code."""
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_of_input(error)):
        return str(error), exits.BAD_INPUT
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        text = "not enough memory: give fewer images, or a smaller --image-size or --network"
        return text, exits.BAD_INPUT
    return exits.crash(error)


def _is_of_input(error: ValueError) -> bool:
    """Whether e3jax raised it, not a library that was called in a way that it does not take."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parents[1] in Path(last[0].f_code.co_filename).parents

"""``e3jax views``: draws all views of an image."""

from pathlib import Path

from e3jax.cli import console
from e3jax.collection import read
from e3jax.errors import InputError
from e3jax.operations import operation_set
from e3jax.report import sheet


def run(screen: console.Console, image: Path, operations: str, out: Path) -> int:
    """Draws the views of an image; returns the exit code."""
    sheet.check_output(out, [image])
    [pixels] = read([image]).images
    known = operation_set(operations)
    try:
        sheet.plot_views(out, pixels, known)
    except ModuleNotFoundError as error:
        raise InputError(f"views needs {error.name}: pip install e3jax[report]") from error
    screen.print(f"{len(known)} views in {out}")
    return 0

"""``e3jax views``: draws all views of an image."""

import argparse

from e3jax import operations
from e3jax.cli import console
from e3jax.collection import read
from e3jax.errors import InputError
from e3jax.report import sheet


def run(args: argparse.Namespace, screen: console.Console) -> int:
    """Draws the views of an image; returns the exit code."""
    sheet.check_output(args.out, [args.image])
    [image] = read([args.image]).images
    operation_set = operations.operation_set(args.operations)
    try:
        sheet.plot_views(args.out, image, operation_set)
    except ModuleNotFoundError as error:
        raise InputError(f"views needs {error.name}: pip install e3jax[report]") from error
    screen.print(f"{len(operation_set)} views in {args.out}")
    return 0

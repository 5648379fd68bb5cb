"""``e3jax bank``: reads folders of images once, or joins banks, into a bank."""

import argparse

from e3jax.cli import console, source
from e3jax.collection import Reader, bank
from e3jax.errors import InputError


def run(args: argparse.Namespace, screen: console.Console) -> int:
    """Reads folders into a bank, or joins banks; returns the exit code."""
    if len(args.photos) > 1 and all(map(bank.is_bank, args.photos)):
        made = bank.join(args.out, args.photos)
    else:
        photos = source.find(args.photos)
        if photos.bank:
            raise InputError(f"{photos.bank} is a bank already: give folders of images")
        executor = source.executor(args.engine, args.ray_address)
        with console.bars(screen) as on_progress:
            made = bank.write(
                args.out,
                photos.files,
                Reader(args.image_size, args.resize),
                photos.left_out,
                on_progress,
                executor,
            )
    source.print_left_out(screen, made.unreadable, made.reader.file_range)
    screen.print(f"{len(made.images)} images in {args.out}: e3jax rank {args.out}")
    return 0

"""``e3jax bank``: reads folders of images once, or joins banks, into a bank."""

import argparse

from e3jax.cli import console, source
from e3jax.collection import bank
from e3jax.errors import InputError


def run(args: argparse.Namespace, screen: console.Console) -> int:
    if len(args.photos) > 1 and all(map(bank.is_bank, args.photos)):
        made = bank.join(args.out, args.photos)
    else:
        found = source.find(args)
        if found.is_bank:
            raise InputError(f"{found.X} is a bank already: give folders of images")
        with console.bars(screen) as on_progress:
            made = source.write_bank(
                args.out, found, args, args.image_size, args.resize, on_progress
            )
    source.say_left_out(screen, made.unreadable, made.reader.file_range)
    screen.print(f"{len(made.images)} images in {args.out}: e3jax rank {args.out}")
    return 0

"""``e3jax bank``: reads folders of images once, or joins banks, into a bank."""

from collections.abc import Sequence
from pathlib import Path

from e3jax.cli import console, source
from e3jax.collection import Reader, bank
from e3jax.errors import InputError


def run(
    screen: console.Console,
    paths: Sequence[Path],
    out: Path,
    image_size: int,
    resize: str,
    engine: str,
    ray_address: str | None,
) -> int:
    """Reads folders into a bank, or joins banks; returns the exit code."""
    if len(paths) > 1 and all(map(bank.is_bank, paths)):
        made = bank.join(out, paths)
    else:
        photos = source.find(paths)
        if photos.bank:
            raise InputError(f"{photos.bank} is a bank already: give folders of images")
        executor = source.decoding_engine(engine, ray_address)
        with console.bars(screen) as on_progress:
            made = bank.write(
                out,
                photos.files,
                Reader(image_size, resize),
                photos.left_out,
                on_progress,
                executor,
            )
    source.print_left_out(screen, made.unreadable, made.reader.file_range)
    screen.print(f"{len(made.images)} images in {out}: e3jax rank {out}")
    return 0

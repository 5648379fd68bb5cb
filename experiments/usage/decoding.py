"""How fast picture files are decoded, in turns with Pillow's own loop, by one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import command
import numpy as np
import pandas as pd
from PIL import Image
from sweep.provenance import provenance

from e3jax.collection import Reader, reading

# Format, size and how many times as many files as of the first.
_KINDS = (("jpg", (4000, 3000), 1), ("png", (256, 256), 10), ("png", (32, 32), 50))
_REFERENCE = "Pillow, draft"


def measure(folder: Path, count: int, rounds: int) -> Iterator[dict]:
    """Yields a row for each kind of files and each program.

    Args:
      folder: for the files.
      count: large files; of small ones there are more.
      rounds: turns of each program, after one that is not counted.
    """
    random = np.random.default_rng(0)
    for kind, size, factor in _KINDS:
        paths = [folder / f"{i}.{kind}" for i in range(factor * count)]
        for path in paths:
            small = random.integers(0, 256, (24, 32, 3), np.uint8)
            Image.fromarray(small).resize(size).save(path, quality=90)
        seconds = [
            {name: _processor_seconds(loop, paths) for name, loop in LOOPS.items()}
            for _ in command.progress(range(rounds + 1), kind)
        ]
        of_rounds = pd.DataFrame(seconds)[1:]
        for name in LOOPS:
            yield {
                "files": f"{size[0]} x {size[1]} {kind}",
                "program": name,
                "images_per_second_and_core": len(paths) / of_rounds[name].median(),
                "ratio": (of_rounds[_REFERENCE] / of_rounds[name]).median(),
            } | provenance()


def _processor_seconds(loop: Callable[[Sequence[Path]], None], paths: Sequence[Path]) -> float:
    began = time.process_time()
    loop(paths)
    return time.process_time() - began


def _pillow(paths: Sequence[Path], draft: bool) -> None:
    for file in paths:
        with Image.open(file) as picture:
            if draft:
                picture.draft("RGB", (64, 64))
            picture.convert("RGB").resize((32, 32))


def _ours(paths: Sequence[Path], thumbnails: int) -> None:
    reading.read_each(paths, Reader(), thumbnails=thumbnails, threads=1)


LOOPS = {
    "Pillow": lambda paths: _pillow(paths, False),
    _REFERENCE: lambda paths: _pillow(paths, True),
    "e3jax": lambda paths: _ours(paths, 0),
    "e3jax, with thumbnails": lambda paths: _ours(paths, 96),
}

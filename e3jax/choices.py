"""What parameters may be, for command lines, which import nothing else to know it."""

import argparse
import re

# How an image that is not square becomes square, see e3jax.images.to_square.
FITS = ("squash", "crop", "letterbox")
# What scores are made of, see e3jax.E3Outlier.
EVIDENCE = ("all", "network")
# Images of a large collection: of so many files a bank is made, fewer operations score them, and
# they are measured block by block.
LARGE = 20_000


def shard(text: str) -> tuple[int, int]:
    """For argparse: "1/3" as (1, 3), the first of three parts of the work."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"invalid shard {text!r}: use e.g. 1/3, 2/3 or 3/3")
    return int(match[1]), int(match[2])

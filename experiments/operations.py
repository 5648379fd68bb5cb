"""Draws all views of one image as a labelled sheet.

The image is a digit of the embedded MNIST, or a file of yours (made square and resized to 32 x 32).
"""

import argparse
import sys

import command
import numpy as np
from PIL import Image
from sweep import flags

from e3jax import datasets, operations, runtime, sheet


def main() -> int:
    parser = flags.parser(__doc__)
    parser.add_argument("--image", help="a picture file (default: a digit 7 of MNIST)")
    parser.add_argument("--operations", default="RA+IA+PR", help="families, e.g. RA or RA+IA")
    parser.add_argument("--fill", default="grey", choices=operations.FILLS, help="of rotations")
    parser.add_argument("--out", default="views.png", help="PNG or PDF to write")
    args = parser.parse_args()
    return command.run(lambda console: work(args), "Nothing was written.")


def work(args: argparse.Namespace) -> None:
    runtime.prepare()
    operation_set = operations.operation_set(args.operations, fill=args.fill)
    if args.image:
        with Image.open(args.image) as picture:
            image = np.asarray(picture.convert("RGB").resize((32, 32)))
    else:
        data = datasets.load("mnist", source="embedded")
        image = data.images[data.labels == 7][0]
    sheet.plot_views(args.out, image, operation_set)
    print(f"{len(operation_set)} views in {args.out}")


if __name__ == "__main__":
    sys.exit(main())

"""What parameters may be, for command lines, which import nothing else to know it."""

# How an image that is not square becomes square, see e3jax.images.to_square.
FITS = ("squash", "crop", "letterbox")
# What scores are made of, see e3jax.E3Outlier.
EVIDENCE = ("all", "network")
# Of products and convolutions, see e3jax.E3Outlier.
PRECISIONS = ("auto", "float32", "tensorfloat32", "bfloat16")
# Images of a large collection: of so many files a bank is made, fewer operations score them, and
# they are measured block by block.
LARGE = 20_000

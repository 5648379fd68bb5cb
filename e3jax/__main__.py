"""``python -m e3jax`` is the command ``e3jax``."""

import sys

from e3jax.cli import main

sys.exit(main())

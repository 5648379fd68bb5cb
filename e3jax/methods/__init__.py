"""The methods E3Outlier is compared with (paper, Sec. 4.1).

``METHODS`` holds those that are trained, by name: an autoencoder, its loss and its scores.
``rdae-as-published`` is what the authors' numbers for RDAE come from: their program's shrink always
gives 0, so it trains a plain autoencoder for RDAE's 20 epochs. ``cae-views`` and ``cae-64`` are the
paper's controls: CAE on all views, and with a code of 64. ``ssd-if`` is one of E3Outlier's own
scores, an isolation forest on its representations, and :mod:`pixels` knows pixels alone.
"""

import dataclasses

from e3jax.methods.cae import CAE, variant
from e3jax.methods.dagmm import DAGMM
from e3jax.methods.drae import DRAE
from e3jax.methods.rdae import RDAE

METHODS = {
    "cae": CAE,
    "drae": DRAE,
    "rdae": RDAE,
    "rdae-as-published": dataclasses.replace(
        variant("rdae-as-published"), paper_config=RDAE.paper_config
    ),
    "dagmm": DAGMM,
    "cae-views": variant("cae-views", operations="RA+IA+PR"),
    "cae-64": variant("cae-64", network="cae-64"),
}

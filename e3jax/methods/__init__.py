"""All methods that can be compared, by name, trained and untrained alike.

``e3outlier`` is the paper's, ``e3outlier+`` the one of ``e3jax rank``; ``cae``, ``drae``, ``rdae``
and ``dagmm`` are those that the paper compares with (Sec. 4.1). ``rdae-as-published`` is what the
authors' numbers for RDAE come from: their program's shrink always gives 0, so it trains a plain
autoencoder for RDAE's 20 epochs. ``cae-views`` and ``cae-64`` are the paper's controls: CAE on all
views, and with a code of 64. The others need no training.
"""

import dataclasses

from e3jax.methods.cae import CAE, variant
from e3jax.methods.dagmm import DAGMM
from e3jax.methods.drae import DRAE
from e3jax.methods.fused import DESCRIPTORS, E3OUTLIER_PLUS, HOG_KNN
from e3jax.methods.pixels import PIXELS
from e3jax.methods.rdae import RDAE
from e3jax.training.e3outlier import E3OUTLIER
from e3jax.training.method import Method

_PUBLISHED = dataclasses.replace(variant("rdae-as-published"), paper_config=RDAE.paper_config)
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        E3OUTLIER,
        CAE,
        DRAE,
        RDAE,
        _PUBLISHED,
        DAGMM,
        variant("cae-views", operations="RA+IA+PR"),
        variant("cae-64", network="cae-64"),
        E3OUTLIER_PLUS,
        *PIXELS,
        DESCRIPTORS,
        HOG_KNN,
    )
}

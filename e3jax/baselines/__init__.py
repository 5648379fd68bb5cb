"""The methods E3Outlier is compared with (paper, Sec. 4.1).

A method's ``score(key, images, config, mesh=None, on_progress=...)`` takes:

  key: of all randomness; the same key gives the same scores.
  images: uint8 [n, h, w, c], n >= 2, h and w multiples of 8.
  config: the method's ``paper_config()`` or ``quick_config()``, changed or not.
  mesh: devices to split each batch over (default: all).
  on_progress: ``(steps done, steps of the run, note)``, called every few steps; it may raise.

It returns ``({name: float [n]}, Info)``: scores, smaller = more outlying, under every name that its
one training serves; steps, last loss, and a warning unless the scores look sound.

``cae-views`` and ``cae-64`` are the paper's controls: CAE on all views, and with a code of 64.

Two are not trained here: ``ssd-if`` is :mod:`isolation_forest` on E3Outlier's representations, and
:mod:`pixels` knows pixels alone.
"""

from collections.abc import Callable
from typing import NamedTuple

from e3jax.baselines import cae, dagmm, drae, rdae
from e3jax.baselines.autoencoder import Config, Model


class Method(NamedTuple):
    """A method as above; ``make_model(config, images' shape, mesh)`` is what it trains."""

    score: Callable
    paper_config: Callable[[], Config]
    quick_config: Callable[[], Config]
    make_model: Callable[..., Model]


def _method(module, **changed) -> Method:
    return Method(
        **{name: getattr(module, name) for name in Method._fields if name not in changed}, **changed
    )


def _control(name: str, **changed) -> Method:
    """CAE with a changed config, under a name of its own."""

    def score(*args, **kwargs):
        scores, info = cae.score(*args, **kwargs)
        return {name: scores["cae"]}, info

    return _method(
        cae,
        score=score,
        paper_config=lambda: cae.paper_config()._replace(**changed),
        quick_config=lambda: cae.quick_config()._replace(**changed),
    )


METHODS = {
    "cae": _method(cae),
    "cae-if": _method(cae),
    "drae": _method(drae),
    "rdae": _method(rdae),
    "rdae-as-published": _method(rdae, score=rdae.score_as_published, make_model=cae.make_model),
    "dagmm": _method(dagmm),
    "cae-views": _control("cae-views", operations="RA+IA+PR"),
    "cae-64": _control("cae-64", latent=64),
}

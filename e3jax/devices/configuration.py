"""JAX's settings and keys, the same wherever the program runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.errors import InputError

_KEYS = "threefry2x32"
# What programs here are written for. Left out is what they do not depend on: arrays of different
# rank are never broadcast silently, and every program has a precision of its own.
_SETTINGS = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "default_prng_impl": _KEYS,
    "threefry_partitionable": True,
    "default_device": None,
    "disable_jit": False,
    "debug_nans": False,  # the log of a step that was not done is NaN
    "debug_infs": False,
    "transfer_guard_host_to_device": "allow",
    "transfer_guard_device_to_device": "allow",
    "transfer_guard_device_to_host": "allow",
}


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """A context, and a decorator, in which JAX has the settings that e3jax is written for.

    The program that e3jax is part of may have chosen others. They hold outside: in its callbacks,
    after an error, and in its other threads.
    """
    with contextlib.ExitStack() as stack:
        for name, value in _SETTINGS.items():
            if setting(name) not in (value, None):
                stack.enter_context(getattr(jax, name)(value))
        if _has_mesh():
            stack.enter_context(jax.set_mesh(None))
        yield


def setting(name: str) -> Any:
    """The value of a setting of JAX, whose name lacks its "jax_"."""
    return getattr(jax.config, f"jax_{name}")


def _has_mesh() -> bool:
    """Whether :func:`jax.set_mesh` chose a mesh, outside a program that is being traced."""
    try:
        return not jax.sharding.get_mesh().empty
    except ValueError:
        return False


def with_settings(jitted: Callable) -> Callable:
    """A jitted function that is called, traced and lowered in :func:`settings`."""
    run = settings()(jitted)
    run.trace, run.lower = settings()(jitted.trace), settings()(jitted.lower)
    return run


@settings()
def key(seed: Any) -> jax.Array:
    """The key of a seed, an integer: the same in every program that e3jax may be part of."""
    return jax.random.key(seed, impl=_KEYS)


@settings()
def fold_in(key: jax.Array, use: int) -> jax.Array:
    """The sub-key for a use."""
    return jax.random.fold_in(key, use)


def as_key(key: Any) -> jax.Array:
    """A key of any kind and age, on no particular device, as one that programs here take.

    Raises:
      InputError: it is not a single key.
    """
    try:
        with jax.transfer_guard("allow"):
            kind = jax.random.key_impl(key)  # of words without a type it is the host program's
        with settings():
            is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            words = np.asarray(jax.random.key_data(key) if is_typed else key)
            single = jax.random.wrap_key_data(jnp.asarray(words), impl=kind)
    except TypeError:
        single = None
    if single is None or single.shape:
        raise InputError("the key is not one of JAX's, or several: give jax.random.key(0), say")
    return single

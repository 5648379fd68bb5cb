"""Small programs that releases of JAX are known to have computed wrongly on some device.

Each follows an issue of jax-ml/jax; what is right is computed by NumPy.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import devices
from e3jax.doctor.finding import Finding

Pair = tuple[Any, Any]


def products_of_many_rows() -> Pair:
    """Issue 39103: wrong in jaxlib 0.10.2 on CPUs."""
    rows = np.zeros((32_769, 3), np.float32)
    rows[:, 0] = np.arange(len(rows))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return squares, rows[:, 0] ** 2


def single_operations() -> Pair:
    """Issue 40633: without ``jit``, wrong on NVIDIA's RTX A6000 from jax 0.11 on."""
    uniform = jax.random.uniform(devices.key(0), (100,))
    in_range = ((0 <= uniform) & (uniform < 1)).all()
    results = [jnp.sqrt(jnp.float32(512)), *(jnp.ones(4) + 1), jnp.float32(in_range)]
    return np.array([float(a) for a in results]), np.array([512**0.5, 2, 2, 2, 2, 1])


def scaled_sum_of_product_and_bias() -> Pair:
    """Issues 39336 and 40362: on GPUs only the product was scaled."""
    draw = np.random.RandomState(0).randn
    a, bias, b = (np.array(draw(*s), np.float32) for s in ((32, 15), (32,), (100, 15)))
    scaled = jax.jit(jax.vmap(lambda row: 0.1 * (a @ row + 100 * bias)))(b)
    return scaled, 0.1 * (b @ a.T + 100 * bias)


def scan_of_mapped_steps() -> Pair:
    """Issues 36958 and 40362: wrong on GPUs before jax 0.11.1."""
    draw = np.random.RandomState(0).randn
    x, weights, bias = (np.array(draw(*s), np.float32) for s in ((8, 4), (4, 4), (4,)))

    def step(row: Any, _: None) -> tuple[Any, None]:
        return row + (jnp.tanh(row) @ weights + 3 * bias) / 64, None

    moved = jax.jit(jax.vmap(lambda row: jax.lax.scan(step, row, length=64)[0]))(x)
    expected = np.float64(x)
    for _ in range(64):
        expected = expected + (np.tanh(expected) @ weights + 3 * bias) / 64
    return moved, expected


PATTERNS: dict[int, Callable[[], Pair]] = {
    39103: products_of_many_rows,
    40633: single_operations,
    39336: scaled_sum_of_product_and_bias,
    36958: scan_of_mapped_steps,
}
_LIMIT = 1e-4  # relative, of sums of few float32 numbers


def findings() -> Iterator[Finding]:
    """The largest relative error of each program."""
    for issue, compute in PATTERNS.items():
        with devices.settings(), devices.products("float32"):
            computed, expected = map(np.float64, compute())
        error = float(np.nan_to_num(np.abs(computed - expected), nan=np.inf).max())
        error /= np.abs(expected).max()
        name, wrong = compute.__name__.replace("_", " "), ""
        if error > _LIMIT:
            wrong = f"{name} are wrong by {error:.2g} as in jax-ml/jax issue {issue}: install "
            wrong += "another version of JAX"
        yield Finding(f"{name} (jax issue {issue})", error, "relative error", wrong)

"""An accelerator's numbers against a CPU's: views, logits, a training step, and scores."""

import functools

import jax
import jax.flatten_util
import numpy as np

from e3jax import datasets, devices, images, networks, operations, training
from e3jax.devices import runtime
from e3jax.training import fitting

# Differences from the CPU in float32: rounding alone, of sums in another order.
_LIMITS = {"views": 1e-5, "logits": 1e-3, "step": 1e-2, "scores": 1e-3}


def differences(
    precision: str, config: dict, count: int, data_dir: str | None, source: str
) -> list[dict]:
    """A row for each of ``_LIMITS``.

    Args:
      precision: of the accelerator's products.
      config: fields of a TrainConfig.
      count: images of MNIST.
      data_dir, source: of :func:`e3jax.datasets.load`.
    """
    runtime.prepare()
    known = training.TrainConfig(**config)._replace(batch_size=4 * count, learning_rate=0.01)
    digits, exact = _exact(known, count, data_dir, source)
    device, rows = runtime.devices()[-1], []
    numbers = _numbers(digits, known._replace(precision=precision), device)
    for quantity, limit in _LIMITS.items():
        difference = numbers[quantity] - exact[quantity]
        value, unit = np.abs(difference).max(), "absolute"
        if quantity == "step":  # relative to what the step changes
            value, unit = np.linalg.norm(difference) / np.linalg.norm(exact[quantity]), "share"
        row = {"what": f"{quantity}: difference from a CPU's float32", "precision": precision}
        row |= {"channels": 1, "device": device.device_kind, "value": float(value)}
        rows.append(row | {"limit": limit if precision == "float32" else "", "unit": unit})
    return rows


@functools.lru_cache(1)  # the same for every precision
def _exact(
    config: training.TrainConfig, count: int, data_dir: str | None, source: str
) -> tuple[np.ndarray, dict]:
    """The images, and a CPU's numbers of them."""
    digits = datasets.load("mnist", data_dir=data_dir, source=source).images[:count]
    return digits, _numbers(digits, config, jax.devices("cpu")[0])


def _numbers(digits: np.ndarray, config: training.TrainConfig, device: jax.Device) -> dict:
    """What a device computes, from the same weights."""
    key, mesh = jax.random.key(0), devices.device_mesh([device])
    on_cpu = devices.device_mesh(jax.devices("cpu")[:1])
    start = fitting.fit(key, digits, config=config, mesh=on_cpu, until=0)
    before = jax.device_get(start.state)
    start = start._replace(state=devices.place(mesh, before))
    network = networks.build(config.network, config.k, devices.dtype(config.precision))
    with jax.default_device(device), devices.products(config.precision):
        x = images.to_unit(jax.numpy.asarray(digits))
        views = operations.all_views(fitting.operation_set(config.operations, x.shape[1]), x)
        apply = jax.jit(functools.partial(network.apply, train=False))
        logits, _ = apply(before.variables, views[0])
    after = fitting.fit(key, digits, config=config, mesh=mesh, start=start, until=1).state
    step = jax.tree.map(np.subtract, jax.device_get(after).variables, before.variables)
    step, _ = jax.flatten_util.ravel_pytree(step["params"])
    scores = fitting.score(start, digits, mesh=mesh).mean()
    numbers = {"views": views, "logits": logits, "step": step, "scores": scores}
    return jax.tree.map(np.asarray, numbers)

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3jax.training import sampling


def shuffle_key(seed):
    return jax.random.bits(jax.random.key(seed), (sampling.ROUNDS,))


def orders(seed, n, k, batch_size, batches):
    """The pairs of some batches, [batches * batch_size] each."""
    draw = jax.jit(sampling.draw_batch, static_argnums=(2, 4))
    position, pairs = jnp.zeros(3, jnp.int32), []
    for _ in range(batches):
        image, operation, position = draw(shuffle_key(seed), position, batch_size, n, k)
        pairs.append((np.asarray(image), np.asarray(operation)))
    return [np.concatenate(p) for p in zip(*pairs, strict=True)]


@pytest.mark.parametrize(
    ("n", "k", "batch_size"),
    [
        (60, 111, 128),
        (7, 23, 64),
        (10, 4, 128),
        (101, 72, 32),
        (500, 1, 64),
        (2, 1, 2),
        (997, 1, 8),
    ],
)
def test_an_epoch_visits_every_view_once_and_batches_run_on_into_the_next(n, k, batch_size):
    batches = math.ceil(3 * n * k / batch_size)
    image, operation = orders(0, n, k, batch_size, batches)
    epochs = [(image * k + operation)[e * n * k : (e + 1) * n * k] for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n * k))
    if n * k > 20:
        assert np.mean(epochs[0] == epochs[1]) < 0.2
        other = orders(1, n, k, batch_size, batches)
        assert np.mean((other[0] == image) & (other[1] == operation)) < 0.2


def test_views_are_shuffled_one_by_one():
    n, k, batch_size = 600, 111, 128
    image, operation = (
        p.reshape(-1, batch_size) for p in orders(3, n, k, batch_size, n * k // batch_size)
    )
    # Draws of 128 of n = 600 images hit 115.2 different ones on average, of 111 operations 76.2.
    distinct = [np.mean([len(set(row)) for row in p]) for p in (image, operation)]
    assert abs(distinct[0] - 600 * (1 - (1 - 1 / 600) ** 128)) < 1
    assert abs(distinct[1] - 111 * (1 - (1 - 1 / 111) ** 128)) < 1
    # Neither neighbours in a batch nor image and operation go together.
    for a, b in ((image[:, 1:], image[:, :-1]), (operation[:, 1:], operation[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(image.ravel(), operation.ravel())[0, 1]) < 0.02


def test_images_alone_are_shuffled_too():
    """Neighbours in the order are no neighbours in the bank, nor at a fixed distance."""
    image, _ = orders(0, 5000, 1, 100, 50)
    steps = np.diff(image) % 5000
    assert len(set(steps)) > 2500 and abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("n", [1001, 10**5, 2 * 10**9])
def test_a_sample_is_of_different_images_from_all_over(n):
    sample = sampling.choose(jax.random.key(0), n, 1000)
    assert len(set(sample)) == 1000 and (np.diff(sample) > 0).all()
    assert 0 <= sample[0] and sample[-1] < n
    # As evenly as 1,000 random ones: a tenth of them has a standard deviation of 9.5.
    tenths, _ = np.histogram(sample, 10, (0, n))
    assert np.abs(tenths - 100).max() < 4 * 9.5
    assert not np.array_equal(sampling.choose(jax.random.key(1), n, 1000), sample)


def test_samples_of_collections_of_any_size_share_a_program():
    sampling._first_images.clear_cache()
    for n in (10**3, 10**5, 10**6):
        sampling.choose(jax.random.key(0), n, 20)
    assert sampling._first_images._cache_size() == 1


def test_an_order_may_be_longer_than_int32():
    n, k = 30_000_000, 111
    start = jnp.asarray([0, n - 2, 50], jnp.int32)
    image, operation, position = sampling.draw_batch(shuffle_key(0), start, 512, jnp.int32(n), k)
    assert 0 <= image.min() and image.max() < n and 0 <= operation.min() and operation.max() < k
    assert image.max() > n * 0.9 and image.min() < n * 0.1
    np.testing.assert_array_equal(position, [1, (50 + 512) // k - 2, (50 + 512) % k])

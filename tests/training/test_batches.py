"""Batches are what sampling draws, with the images of their bank, wherever that lies."""

import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainers import make_trainer

from e3jax import devices, training
from e3jax.collection.lazy import LazyArray
from e3jax.devices import mesh as mesh_module
from e3jax.training import batches, sampling

SHUFFLE_KEY = jax.random.bits(jax.random.key(7), (sampling.ROUNDS,))


@pytest.fixture(scope="module")
def trainer():
    return make_trainer()


def drawn_by_hand(n, k, batch_size, steps):
    """Pairs and positions of some steps, one after the other."""
    position, pairs, positions = jnp.zeros(3, jnp.int32), [], []
    for _ in range(steps):
        *pair, position = sampling.draw_batch(SHUFFLE_KEY, position, batch_size, jnp.int32(n), k)
        pairs.append(pair)
        positions.append(position)
    image, operation = (np.array(part) for part in zip(*pairs, strict=True))
    return image, operation, np.array(positions)


def test_pairs_of_several_steps_are_those_of_one_after_the_other():
    start = jnp.zeros(3, jnp.int32)
    drawn = batches.draw_pairs(SHUFFLE_KEY, start, jnp.int32(9), steps=5, batch_size=16, k=4)
    chex.assert_trees_all_equal(drawn, drawn_by_hand(9, 4, 16, 5))


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("k", [1, 4])
def test_batches_are_the_images_that_were_drawn(digits, on_host, k):
    mesh, images = devices.device_mesh(), digits[:9]
    loader = training.BatchLoader(mesh, 16, k, steps=3)
    bank = training.place_bank(mesh, images, on_host)
    # Of the first time's three steps two are done.
    first, second = loader.batches(SHUFFLE_KEY, jnp.zeros(3, jnp.int32), bank, 9, [2, 3])
    image, operation, positions = drawn_by_hand(9, k, 16, 5)
    for loaded, steps in ((first, slice(0, 3)), (second, slice(2, 5))):
        np.testing.assert_array_equal(loaded.image_index, image[steps])
        np.testing.assert_array_equal(loaded.all_image_index, image[steps])
        np.testing.assert_array_equal(loaded.operation_index, operation[steps])
        np.testing.assert_array_equal(loaded.epoch_position, positions[steps])
        np.testing.assert_array_equal(loaded.images, images[image[steps]].reshape(3, 16, -1))
        for of_step, spec in zip(loaded, batches.SPECS, strict=True):
            assert of_step.sharding.spec == spec
        assert {part.data.shape for part in loaded.images.addressable_shards} == {(3, 8, 32 * 32)}


def test_drawing_leaves_the_state_to_be_donated(digits):
    mesh, position = devices.device_mesh(), jnp.zeros(3, jnp.int32)
    loader = training.BatchLoader(mesh, 16, 4, steps=3)
    drawn = loader.batches(SHUFFLE_KEY.copy(), position, digits, len(digits), [3, 3])
    next(drawn)
    position.delete()
    assert next(drawn).image_index.shape == (3, 16)


def test_what_draws_can_be_compiled_before_there_is_a_bank(digits):
    mesh, start = devices.device_mesh(), jnp.zeros(3, jnp.int32)
    loader = training.BatchLoader(mesh, 16, 4, steps=3)
    program = loader.program(SHUFFLE_KEY, start, n=9, pixels=32 * 32)
    bank = training.place_bank(mesh, digits[:9], on_host=False)
    assert program.arguments[-1].shape == bank.shape == (10, 32 * 32)
    numbers = (batches.place_number(mesh, 9), batches.place_number(mesh, 2))
    start, key = devices.place(mesh, (start, SHUFFLE_KEY))
    compiled = program.function.lower(*program.arguments).compile()
    loaded, position = compiled(key, start, *numbers, bank)
    image, _, positions = drawn_by_hand(9, 4, 16, 3)
    np.testing.assert_array_equal(loaded.image_index, image)
    np.testing.assert_array_equal(position, positions[1])


def test_a_number_is_put_on_the_devices_once():
    mesh = devices.device_mesh()
    assert batches.place_number(mesh, 17) is batches.place_number(mesh, 17)
    number = batches.place_number(mesh, 18)
    assert number == 18 and number.dtype == np.int32 and len(number.addressable_shards) == 2


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_items_are_made_two_ahead_and_no_more(taken):
    made = []

    def make():
        for item in range(5):
            made.append(item)
            yield item

    ahead = batches.made_ahead(make())
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    for _ in range(200):  # the thread needs a moment
        if len(made) < (most := min(taken + 2, 5) if taken else 0):
            time.sleep(0.01)
    ahead.close()
    assert made == list(range(most))


def test_an_error_while_making_ahead_comes_in_its_turn():
    def make():
        yield 1
        raise OSError("the disk is gone")

    ahead = batches.made_ahead(make())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_a_bank_stays_on_a_cpus_host_and_is_split_over_other_devices(trainer, digits):
    """Each trains the same, whatever the bank's size."""
    assert training.place_bank(trainer.mesh, digits) is digits
    states = []
    for images in (digits[:59], digits):
        for on_host in (True, False):
            bank = training.place_bank(trainer.mesh, images, on_host)
            if not on_host:
                parts = [part.data.shape for part in bank.addressable_shards]
                assert parts == [(30, 32 * 32)] * 2
            state = trainer.init(jax.random.key(0), 1)
            for drawn in trainer.batches(state, bank, len(images), (2, 1, 3)):
                state, _ = trainer.run_steps(state, drawn, 8)
            states.append(state)
        chex.assert_trees_all_equal(*states[-2:])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(states[0], states[2])


def test_a_bank_on_a_disk_is_split_a_block_at_a_time(monkeypatch, digits):
    monkeypatch.setattr(mesh_module, "_BLOCK", 7)
    asked, mesh = [], devices.device_mesh()

    def load(block):
        asked.append(block)
        return digits[20 * block : 20 * block + 20]

    lazy = LazyArray(load, [20, 20, 19], digits[:0])
    bank = training.place_bank(mesh, lazy, on_host=False)
    whole = np.pad(digits[:59].reshape(59, -1), ((0, 1), (0, 0)))
    np.testing.assert_array_equal(bank, whole)
    assert len(asked) >= 9 and {len(p.data) for p in bank.addressable_shards} == {30}


def test_a_bank_of_at_most_a_quarter_of_the_memory_lives_on_accelerators(monkeypatch, digits):
    mesh = devices.device_mesh()
    monkeypatch.setattr(mesh_module, "_UNKNOWN_MEMORY", 4 * digits[:10].nbytes)
    assert devices.fits(mesh, digits[:20].nbytes) and not devices.fits(mesh, digits[:21].nbytes)
    monkeypatch.setattr(devices, "is_cpu", lambda mesh: False)
    assert isinstance(training.place_bank(mesh, digits[:20]), jax.Array)
    assert training.place_bank(mesh, digits[:21]).base is digits


def test_no_device_of_a_cpu_holds_the_images(trainer, mnist):
    state, n = trainer.init(jax.random.key(0), 1), len(mnist.images)
    bank = training.place_bank(trainer.mesh, mnist.images)
    before = {id(a) for a in jax.live_arrays()}
    for drawn in trainer.batches(state, bank, n, (4, 4)):
        state, _ = trainer.run_steps(state, drawn, 8)
        pixels = [a for a in jax.live_arrays() if id(a) not in before and a.dtype == np.uint8]
        # What this call trains on, and what the next two will.
        assert sum(a.nbytes for a in pixels) <= 3 * 4 * 32 * 32 * 32 < mnist.images.nbytes / 8


def test_what_fetches_images_ahead_stops_with_the_training(trainer, digits):
    asked = []

    class Bank:
        def __getitem__(self, index):
            asked.append(len(index))
            return digits[index]

    state = trainer.init(jax.random.key(0), 1)
    drawn = trainer.batches(state, Bank(), len(digits), [1] * 50)
    next(drawn), next(drawn)
    drawn.close()
    assert 2 <= len(asked) <= 4

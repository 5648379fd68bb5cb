"""A state comes back bit for bit or is refused; test_fitting.py has whole runs that continue."""

import functools
import logging
import resource

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from e3jax import E3Outlier, InputError, devices, training
from e3jax.evidence.health import HealthWarning
from e3jax.training.checkpoint import FILE, TrainCheckpoint

NOTES = {"seconds": np.float32(7.5), "row": np.arange(3, dtype=np.int64)}


def a_state(seed=0, size=5) -> training.TrainState:
    """Random bits of every type, which includes NaN of all kinds and -0.0."""
    random = np.random.default_rng(seed)

    def bits(dtype, *shape):
        itemsize = np.dtype(dtype).itemsize
        return np.frombuffer(random.bytes(int(np.prod(shape)) * itemsize), dtype).reshape(shape)

    variables = {
        "params": {"a": bits(np.float32, 3, size), "b/c": {"d": bits(ml_dtypes.bfloat16, 7)}},
        "batch_stats": {},
    }
    extra = {"seen": bits(np.int8, 3), "is_in": np.array([True, False]), "none": bits(np.int32, 0)}
    state = training.TrainState(
        variables=variables,
        opt_state=(bits(np.float16, 3), (), {"count": np.int32(4)}),
        step=np.int32(seed),
        epoch_position=bits(np.int32, 3),
        shuffle_key=jax.random.key_data(jax.random.key(seed, impl="rbg")),
        extra=extra,
    )
    return devices.place(devices.device_mesh(), state)


def bits_of(tree):
    return [(a.dtype, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def test_every_type_comes_back_bit_for_bit_where_it_was(tmp_path):
    saved, state = TrainCheckpoint(tmp_path / "a" / "b"), a_state()
    assert saved.restore(state, NOTES) is None
    saved.save(state, NOTES)
    assert [path.name for path in saved.folder.iterdir()] == [FILE]
    blank = {"seconds": np.float32(0), "row": np.zeros(3, np.int64)}
    state_again, notes = TrainCheckpoint(saved.folder).restore(a_state(1), blank)
    assert bits_of(state_again) == bits_of(state) and bits_of(notes) == bits_of(NOTES)
    assert jax.tree.structure(state_again) == jax.tree.structure(state)
    one_device = devices.place(devices.device_mesh(jax.devices()[:1]), a_state(1))
    for ours, wanted in ((state_again, state), (saved.restore(one_device, NOTES)[0], one_device)):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
            assert a.sharding == b.sharding


def test_a_save_replaces_the_one_before_it(tmp_path):
    saved = TrainCheckpoint(tmp_path)
    for seed in (3, 2):
        saved.save(a_state(seed), NOTES | {"seconds": np.float32(seed)})
    state, notes = saved.restore(a_state(), NOTES)
    assert state.step == notes["seconds"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("damage", ["cut", "a bit", "the end"])
def test_a_damaged_state_counts_as_none_and_is_replaced(tmp_path, damage, caplog):
    saved, path = TrainCheckpoint(tmp_path), tmp_path / FILE
    saved.save(a_state(), NOTES)
    content = bytearray(path.read_bytes())
    content[-1] ^= damage == "a bit"
    content += b"x" * (damage == "the end")
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    saved = TrainCheckpoint(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert saved.restore(a_state(), NOTES) is None
    assert caplog.messages == [f"{path} is damaged: the training starts anew"]
    saved.save(a_state(), NOTES)
    assert saved.restore(a_state(), NOTES)[0].step == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"years of work", safetensors.numpy.save({"a": np.zeros(3)}, {"e3jax": '{"format": 7}'})],
)
def test_a_file_of_others_is_refused_and_stays(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match="state.safetensors exists and was not written by e3jax"):
        TrainCheckpoint(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_the_state_of_another_training_is_refused(tmp_path):
    saved = TrainCheckpoint(tmp_path)
    saved.save(a_state(), NOTES)
    sixteen = a_state()._replace(step=jnp.int16(0))
    fewer = a_state()._replace(extra=())
    for other in (a_state(size=6), sixteen, fewer):
        with pytest.raises(InputError, match="is the state of another training: choose another"):
            saved.restore(other, NOTES)
    with pytest.raises(InputError, match="is the state of another training"):
        saved.restore(a_state(), {"seconds": np.float32(0)})


def test_a_full_disk_leaves_the_state_before(tmp_path):
    saved = TrainCheckpoint(tmp_path)
    saved.save(a_state(1), NOTES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            saved.save(a_state(2), NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.restore(a_state(), NOTES)[0].step == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.filterwarnings("ignore", category=HealthWarning)
def test_a_detector_goes_on_within_its_training_and_leaves_nothing(digits, tmp_path):
    checkpoint, seen = functools.partial(TrainCheckpoint, save_seconds=0), []

    def on_progress(stage, done, total):
        seen.append(done if stage == "training" else stage)
        if seen == [10, 20]:
            raise KeyboardInterrupt

    settings = {"network": "tiny-8", "operations": "PR", "steps": 24, "image_size": 8}
    settings |= {"random_state": 0, "evidence": "network"}
    whole = E3Outlier(**settings).fit(digits)
    detector = E3Outlier(**settings, on_progress=on_progress)
    with pytest.raises(KeyboardInterrupt):
        detector.fit_in(tmp_path / "work", digits, checkpoint=checkpoint)
    assert len([*tmp_path.glob(f"work/*/training/{FILE}")]) == 1
    assert detector.fit_in(tmp_path / "work", digits, checkpoint=checkpoint)
    assert [done for done in seen if isinstance(done, int)] == [10, 20, 20, 24]
    np.testing.assert_array_equal(detector.decision_scores_, whole.decision_scores_)
    detector.forget_work()
    assert [*tmp_path.iterdir()] == []

"""e3jax in programs that have set JAX otherwise: the same numbers, and settings stay theirs."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Counted, Tiny, TinyAutoencoder, TinyMixture

from e3jax import (
    E3Outlier,
    InputError,
    devices,
    images,
    methods,
    networks,
    operations,
    priority,
    training,
)
from e3jax.detector import saving
from e3jax.evidence import EVIDENCE, Context
from e3jax.training import e3outlier, fitting, sampling
from e3jax.training.method import Evaluated

CONFIG = training.quick_config()._replace(network="tiny-8", operations="PR", steps=12)
SMALL = {"network": "tiny-8", "operations": "PR", "steps": 12, "image_size": 8, "random_state": 0}
# What a program may have set, each unlike what e3jax is written for.
SETTINGS = {
    "64 bits": (jax.enable_x64, True),
    "strict promotion": (jax.numpy_dtype_promotion, "strict"),
    "NaNs are errors": (jax.debug_nans, True),
    "infinities are errors": (jax.debug_infs, True),
    "nothing is compiled": (jax.disable_jit, True),
    "other keys": (jax.default_prng_impl, "rbg"),
    "other random numbers": (jax.threefry_partitionable, False),
    "another device": (jax.default_device, "the last"),
    "less precise products": (jax.default_matmul_precision, "bfloat16"),
    "nothing moves by itself": (jax.transfer_guard, "disallow"),
    "nothing moves": (jax.transfer_guard, "disallow_explicit"),
    "a mesh": (jax.set_mesh, "its own"),
}
PASSIVE = {
    "no old keys": (jax.legacy_prng_key, "error"),
    "no key twice": (jax.debug_key_reuse, True),
    "leaks are errors": (jax.check_tracer_leaks, True),
    "more checks": (jax.enable_checks, True),
}

pytestmark = pytest.mark.filterwarnings("ignore:pretext accuracy", "ignore:float images")


@contextlib.contextmanager
def settings(*names):
    """The settings of these names together."""
    with contextlib.ExitStack() as stack:
        for name in names:
            setting, value = (SETTINGS | PASSIVE)[name]
            value = jax.devices()[-1] if value == "the last" else value
            value = jax.make_mesh((2,), ("host",)) if value == "its own" else value
            stack.enter_context(setting(value))
        yield


def scores_of_a_detector(digits, folder):
    """Of a collection and of new images, also by a detector that was saved."""
    detector = E3Outlier(**SMALL).fit(digits)
    saving.save(detector, folder / "model")
    again = saving.load(folder / "model").decision_function(digits[:7])
    return detector.decision_scores_, detector.decision_function(digits[:7]), again


def scores_of_methods(digits):
    """Of the compared methods, of which one has random layers and a score of JAX's."""
    scores = {}
    for name, method in methods.METHODS.items():
        if method.loss is None or name.startswith("e3outlier"):
            continue
        network = TinyMixture if name == "dagmm" else TinyAutoencoder
        config = method.quick_config()._replace(network=network, steps=20, batch_size=16)
        key = devices.key(3)
        evaluation = fitting.score(fitting.fit(key, digits, method, config), digits)
        evaluated = Evaluated(key, digits, evaluation)
        scores |= {n: np.asarray(score(evaluated)) for n, score in method.scores.items()}
    return scores


@pytest.fixture(scope="module")
def usual(digits, tmp_path_factory):
    return scores_of_a_detector(digits, tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def usual_of_methods(digits):
    return scores_of_methods(digits)


@pytest.fixture
def as_in_a_new_process():
    """Nothing is traced yet, so that it is traced with a test's settings."""
    jax.clear_caches()


@pytest.mark.usefixtures("as_in_a_new_process")
def test_a_detector_gives_the_same_scores_whatever_is_set(digits, usual, tmp_path):
    """All settings at once; the nightly lane takes them one by one."""
    with settings(*SETTINGS):
        scores = scores_of_a_detector(digits, tmp_path)
    for a, b in zip(scores, usual, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.nightly
@pytest.mark.usefixtures("as_in_a_new_process")
def test_methods_give_the_same_scores_whatever_is_set(digits, usual_of_methods):
    with settings(*SETTINGS):
        scores = scores_of_methods(digits)
    jax.tree.map(np.testing.assert_array_equal, scores, usual_of_methods)


@pytest.mark.nightly
@pytest.mark.usefixtures("as_in_a_new_process")
@pytest.mark.parametrize(
    "names", [[name] for name in [*SETTINGS, *PASSIVE]], ids=lambda names: names[0]
)
def test_no_setting_changes_a_score(digits, usual, usual_of_methods, tmp_path, names):
    with settings(*names):
        scores = scores_of_a_detector(digits, tmp_path), scores_of_methods(digits)
    jax.tree.map(np.testing.assert_array_equal, scores, (usual, usual_of_methods))


def test_programs_are_traced_once_whatever_is_set(digits):
    config, traces = CONFIG._replace(network=Counted), []
    # Others are part of what JAX knows a program by, so they have one of their own.
    for name in ("64 bits", "strict promotion", "NaNs are errors", "other keys", "nothing moves"):
        for names in ([name], []):
            with settings(*names):
                fitting.score(fitting.fit(devices.key(0), digits, config=config), digits)
            traces.append(len(Counted.traced))
    assert traces[0] > 0 and len(set(traces)) == 1


def test_a_second_call_traces_nothing_whatever_is_set(digits):
    config, traces = CONFIG._replace(network=Counted), []
    with settings(*SETTINGS):
        for _ in range(2):
            fitting.score(fitting.fit(devices.key(0), digits, config=config), digits)
            traces.append(len(Counted.traced))
    assert traces[0] == traces[1] > 0


def test_settings_stay_the_programs_own_in_callbacks_and_after_an_error(digits):
    def see(*_):
        seen.append((jax.config.jax_enable_x64, jnp.zeros(1).dtype))
        if len(seen) == 4:
            raise RuntimeError("enough")

    seen, config = [], CONFIG._replace(steps=30)
    with settings("64 bits"):
        with pytest.raises(RuntimeError, match="enough"):
            fitting.fit(
                devices.key(0),
                digits,
                config=config,
                on_progress=see,
                observer=fitting.Observer(see),
            )
        assert seen == [(True, np.float64)] * 4
        assert jnp.zeros(1).dtype == np.float64
    assert jnp.zeros(1).dtype == np.float32


def _distances(images, digits):
    kind = EVIDENCE["shape"]
    return kind.measure(kind.fit(devices.key(0), images, Context()).model, digits, Context())


def test_the_same_sample_is_drawn_whatever_is_set(digits):
    many = np.resize(digits, (1200, *digits.shape[1:]))
    expected = sampling.choose(devices.key(0), 10**5, 20)
    distances = _distances(many, digits)
    for name in SETTINGS:
        with settings(name):
            np.testing.assert_array_equal(sampling.choose(devices.key(0), 10**5, 20), expected)
    with settings(*SETTINGS):
        again = _distances(many, digits)
    jax.tree.map(np.testing.assert_array_equal, again, distances)


# --- Keys ----------------------------------------------------------------------------------------


def test_keys_of_any_kind_do(digits):
    def scores(key):
        fitted = fitting.fit(key, digits, config=CONFIG._replace(steps=3))
        return fitting.score(fitted, digits).mean()

    typed = scores(jax.random.key(5))
    for same in (
        devices.key(5),
        jax.random.PRNGKey(5),
        np.uint32([0, 5]),
        jax.device_put(jax.random.key(5), jax.devices()[-1]),
    ):
        np.testing.assert_array_equal(scores(same), typed)
    other = scores(jax.random.key(5, impl="rbg"))
    assert np.isfinite(other).all() and not np.array_equal(other, typed)
    with settings("other keys"):
        np.testing.assert_array_equal(scores(jax.random.PRNGKey(5)), other)


@pytest.mark.parametrize("key", [0, None, "a", np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32)])
def test_what_is_not_a_key_is_one_sentence(digits, key):
    for use in (fitting.fit, EVIDENCE["shape"].fit):
        options = () if use is fitting.fit else (Context(),)
        with pytest.raises(InputError, match="^the key is not one of JAX's, or several: .*$"):
            use(key, np.resize(digits, (1001, *digits.shape[1:])), *options)


# --- Functions that a program calls in its own programs, which keep its settings -----------------


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("name", ["64 bits", "strict promotion", "nothing is compiled"])
def test_views_are_the_same_and_of_their_images_dtype(digits, dtype, name):
    unit = images.to_unit(jnp.asarray(digits[:2, ::4, ::4])).astype(dtype)
    labels = np.int32([3, 30])

    def views():
        tables = operations.operation_set("PR+IA", 8)
        return operations.all_views(tables, unit), operations.views_of(tables, unit, labels)

    expected = views()
    with settings(name):
        others = views()
    # Without a compiler, each product is rounded before it is added.
    atol = {jnp.float32: 1e-6, jnp.bfloat16: 0.05}[dtype] if name == "nothing is compiled" else 0
    for a, b in zip(others, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=0, atol=atol)


def test_views_of_64_bits_have_64_bits(digits):
    with settings("64 bits"):
        unit = np.float64(images.to_unit(digits[:1, ::4, ::4]))
        views = operations.all_views(operations.operation_set("IA", 8), unit)
        assert views.dtype == np.float64


@pytest.mark.parametrize("name", ["64 bits", "strict promotion"])
@pytest.mark.parametrize("wrt", [None, ("params", "head")])
def test_priority_of_32_bits_is_the_same(digits, name, wrt):
    network = Tiny(23)
    unit = images.to_unit(digits[:6, ::4, ::4])
    variables = network.init(jax.random.key(0), unit, train=False)

    def apply(variables, x):
        return network.apply(variables, x, train=False)

    def measured():
        labels, groups = np.arange(6) % 3, np.arange(12).reshape(2, 6) % 2 == 0
        views = (unit.reshape(3, 2, *unit.shape[1:]), labels.reshape(3, 2))
        magnitude = priority.gradient_magnitude(apply, variables, unit, labels, groups, wrt=wrt)
        return magnitude, *priority.de_facto_update(apply, variables, *views, wrt=wrt, block=4)

    expected = measured()
    with settings(name):
        others = measured()
    for a, b in zip(others, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["wrn-10-1", "densenet-10"])
def test_operations_of_a_network_are_counted_whatever_is_set(name):
    network = networks.build(name, 23)
    expected = networks.forward_flops(network, (32, 32, 1))
    with settings(*SETTINGS):
        assert networks.forward_flops(network, (32, 32, 1)) == expected


def test_methods_scores_are_the_same_whatever_is_set(digits):
    fitted = fitting.fit(devices.key(0), digits, config=CONFIG)
    evaluated = Evaluated(devices.key(1), digits, fitting.score(fitted, digits))
    for score in e3outlier.E3OUTLIER.scores.values():
        expected = score(evaluated)
        with settings(*SETTINGS):
            np.testing.assert_array_equal(score(evaluated), expected)

"""Every operation against SciPy and NumPy, the algebra of the set, and its complaints."""

import itertools

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import strategies

from e3jax.operations import (
    FAMILIES,
    FILLS,
    Family,
    Operation,
    all_views,
    apply_operation,
    operation_set,
    paper_operations,
    views_of,
)
from e3jax.operations.views import _all_views_by_products, _views_by_products

ANGLES = (30, 60, 120, 150, 210, 240, 300, 330)
RA, IA, PR = slice(0, 72), slice(72, 88), slice(88, 111)
SIDE = 8  # of the tests that hold for any side


def random_images(n, side, channels, seed=0):
    shape = (n, side, side, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# --- The reference: SciPy and NumPy in float64, in the order of PROTOCOL.md -------------------


def shifted(x, t_row, t_col):
    side, pad = len(x), max(abs(t_row), abs(t_col))
    x = np.pad(x, [(pad, pad), (pad, pad), (0, 0)], mode="symmetric")
    return x[pad + t_row :, pad + t_col :][:side, :side]


def window(canvas, side):
    row, column = ((size - side) // 2 for size in canvas.shape[:2])
    return canvas[row : row + side, column : column + side]


def rotated(x, angle, **options):
    return window(scipy.ndimage.rotate(x, angle, **options), len(x))


def rearranged(x, p):
    half = len(x) // 2
    quarters = [x[:half, :half], x[:half, half:], x[half:, :half], x[half:, half:]]
    upper = np.concatenate([quarters[p[0]], quarters[p[1]]], axis=1)
    lower = np.concatenate([quarters[p[2]], quarters[p[3]]], axis=1)
    return np.concatenate([upper, lower])


def reference_views(x):
    """float [h, w, c] -> float64 [111, h, w, c]."""
    x = x.astype(np.float64)
    step, views = len(x) // 4, []
    for flip in (False, True):
        flipped = x[:, ::-1] if flip else x
        for t_row in (0, -step, step):
            for t_col in (0, -step, step):
                moved = shifted(flipped, t_row, t_col)
                views += [np.rot90(moved, turns) for turns in (0, 1, 2, 3)]
    for flip in (False, True):
        views += [rotated(x[:, ::-1] if flip else x, angle) for angle in ANGLES]
    views += [rearranged(x, p) for p in itertools.permutations(range(4)) if p != (0, 1, 2, 3)]
    return np.stack(views)


def sampled_points(side, angle):
    """float64 [2, h, w]: where in the image a rotated view looks, by turning the plane.

    The canvas, and so the window, has the size that SciPy gives it.
    """
    canvas = np.array(scipy.ndimage.rotate(np.zeros((side, side)), angle).shape)
    corner = (canvas - side) // 2
    row, column = np.indices((side, side)) + (corner - (canvas - 1) / 2)[:, None, None]
    # With rows downwards, looking an angle back is a multiplication by exp(-i angle).
    point = (row + 1j * column) * np.exp(-1j * np.deg2rad(angle)) + (side - 1) / 2 * (1 + 1j)
    return np.stack([point.real, point.imag])


# --- Parity ----------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=list(
        itertools.product(((8, 1), (8, 3), (28, 1), (32, 3), (48, 1)), ("gathers", "products"))
    ),
    ids=lambda p: "side{}-channels{}-by-{}".format(*p[0], p[1]),
)
def parity(request):
    """(views by e3jax, views by the reference) of one noise image, the hardest for a spline.

    Views are made by the gathers of CPUs and GPUs and by the matrix products of TPUs.
    """
    (side, channels), way = request.param
    image = random_images(1, side, channels, side + channels)[0]
    operations = operation_set(side=side)
    views = all_views(operations, image[None])[0]
    if way == "products":
        views = jax.jit(_all_views_by_products)(operations, image[None])[0]
    assert views.shape == (111, side, side, channels) and views.dtype == jnp.float32
    return np.asarray(views), reference_views(image)


@pytest.mark.parametrize("labels", [RA, PR], ids=["RA", "PR"])
def test_regular_affine_and_patches_are_gathers_to_the_last_bit(parity, labels):
    ours, reference = parity
    np.testing.assert_array_equal(ours[labels], reference[labels].astype(np.float32))


def test_irregular_affine_is_scipys_rotation_cut_to_the_middle(parity):
    ours, reference = parity
    np.testing.assert_allclose(ours[IA], reference[IA], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def paper_set():
    return operation_set("RA+IA+PR", SIDE)


@pytest.fixture(scope="module")
def linear_map(paper_set):
    """float32 [K, out pixel, in pixel]: all operations, column by column from the unit images."""
    unit_images = np.eye(SIDE**2, dtype=np.float32).reshape(-1, SIDE, SIDE, 1)
    views = np.asarray(all_views(paper_set, unit_images))
    return views.reshape(SIDE**2, len(paper_set), SIDE**2).transpose(1, 2, 0)


def test_every_entry_of_every_linear_map_is_the_references(linear_map):
    unit_images = np.eye(SIDE**2).reshape(-1, SIDE, SIDE, 1)
    reference = np.stack([reference_views(image).reshape(111, -1) for image in unit_images], -1)
    np.testing.assert_allclose(linear_map, reference, rtol=0, atol=1e-5)


by_gathers, by_products = jax.jit(views_of), jax.jit(_views_by_products)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("side", [4, 6, 14])
def test_matrix_products_make_the_views_that_gathers_make(side, fill):
    everything = Operation(True, (1, -2), 3, (3, 0, 1, 2), 22.5)
    for some in ("RA+IA+PR", [everything, everything._replace(quarter_turns=2), Operation()]):
        arguments = operation_set(some, side, fill), random_images(111, side, 3)
        labels = np.arange(111) % len(arguments[0])
        gathered, multiplied = (make(*arguments, labels) for make in (by_gathers, by_products))
        np.testing.assert_allclose(gathered, multiplied, rtol=0, atol=2e-6)


# --- What the set is -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("RA", ["RA"] * 72),
        ("RA+IA", ["RA"] * 72 + ["IA"] * 16),
        ("RA+IA+PR", ["RA"] * 72 + ["IA"] * 16 + ["PR"] * 23),
        ("PR+IA", ["PR"] * 23 + ["IA"] * 16),
    ],
)
def test_sets_have_the_papers_sizes_and_unique_names_in_the_order_asked(name, families):
    operations = operation_set(name, SIDE)
    assert len(operations) == len(families) == len(operations.gather)
    assert list(operations.families) == families
    assert len(set(operations.names)) == len(families)


def test_names_tell_people_what_is_done_and_in_which_order():
    names = operation_set().names
    assert names[0] == "identity" and names.count("identity") == 1
    assert names[1] == "turn90"
    assert names[4 * 3 + 1] == "shift(-8,0)·turn90"
    assert names[36 + 4 * 3 + 1] == "flip·shift(-8,0)·turn90"
    assert names[72] == "rotate30" and names[87] == "flip·rotate330"
    assert names[88] == "patches0132" and names[110] == "patches3210"
    everything = Operation(True, (1, -2), 3, (3, 2, 1, 0), 22.5)
    assert everything.name == "flip·shift(1,-2)·turn270·patches3210·rotate22.5"
    assert Operation(quarter_turns=4, angle=360).name == "identity"


@pytest.mark.parametrize("side", [4, 32])
def test_the_identity_is_label_0_alone_and_the_95_gathers_all_differ(side):
    tables = np.asarray(operation_set("RA+PR", side).gather)
    assert tables.shape == (95, side**2)
    assert len(np.unique(tables, axis=0)) == 95
    is_identity = (tables == np.arange(side**2)).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(is_identity), [0])


def test_all_111_views_of_a_random_image_differ(linear_map):
    views = linear_map @ random_images(1, SIDE, 1).ravel()
    gaps = np.abs(views[:, None] - views[None]).max(-1)
    assert gaps[~np.eye(111, dtype=bool)].min() > 0.1


def test_a_family_is_added_by_registering_one_value(monkeypatch):
    turns = [Operation(quarter_turns=turns) for turns in range(4)]
    monkeypatch.setitem(FAMILIES, "QT", Family("quarter turns", lambda side: turns))
    operations = operation_set("PR+QT", SIDE)
    assert operations.families == ("PR",) * 23 + ("QT",) * 4
    assert operations.names[23:] == ("identity", "turn90", "turn180", "turn270")
    with pytest.raises(ValueError, match="expected families from RA, IA, PR, QT joined"):
        operation_set("XY", SIDE)


def test_the_papers_families_say_what_they_do():
    assert list(FAMILIES) == ["RA", "IA", "PR"]
    assert all(family.description for family in FAMILIES.values())


@pytest.mark.parametrize("side", [6, 28, 48])
def test_shifts_are_a_quarter_of_the_side(side):
    rows = {operation.shift[0] for operation in paper_operations("RA", side)}
    assert rows == {0, -(side // 4), side // 4}


# --- Use under transformations ---------------------------------------------------------------


def test_a_set_is_a_pytree_and_passes_through_jit_as_an_argument(paper_set):
    leaves, structure = jax.tree.flatten(paper_set)
    assert len(leaves) == 11 and all(isinstance(leaf, jax.Array) for leaf in leaves)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert (rebuilt.names, rebuilt.families) == (paper_set.names, paper_set.families)
    assert rebuilt.side == SIDE
    doubled = jax.jit(lambda operations: jax.tree.map(lambda leaf: 2 * leaf, operations))(paper_set)
    assert len(doubled) == 111 and doubled.names == paper_set.names
    np.testing.assert_array_equal(doubled.gather, 2 * np.asarray(paper_set.gather))


def test_all_views_compiles_once_for_all_images_and_fills_of_one_shape():
    sets = [operation_set("RA+IA", SIDE, fill=fill) for fill in ("grey", "border", "mirror")]
    before = all_views._cache_size()
    for operations, seed in itertools.product(sets, range(2)):
        all_views(operations, random_images(2, SIDE, 1, seed))
    assert all_views._cache_size() == before + 1


def test_mixed_batches_are_the_same_views_as_all_views(paper_set):
    images = random_images(3, SIDE, 1)
    labels = np.array([110, 0, 75])
    views = jax.jit(views_of)(paper_set, images, labels)
    expected = np.asarray(all_views(paper_set, images))[np.arange(3), labels]
    np.testing.assert_allclose(views, expected, rtol=0, atol=1e-6)


def test_gradients_are_the_transposed_map_and_finite_for_every_operation(paper_set, linear_map):
    image = random_images(1, SIDE, 1)[0]
    weights = random_images(111, SIDE, 1, seed=1)

    def product(image, label, weight):
        return jnp.sum(apply_operation(paper_set, image, label) * weight)

    gradient = jax.jit(jax.vmap(jax.grad(product), in_axes=(None, 0, 0)))
    gradients = np.asarray(gradient(image, np.arange(111), weights)).reshape(111, -1)
    assert np.isfinite(gradients).all()
    expected = np.einsum("kij,ki->kj", linear_map, weights.reshape(111, -1))
    np.testing.assert_allclose(gradients, expected, rtol=0, atol=1e-5)


# --- Algebra, on images that hypothesis draws ------------------------------------------------

drawn_images = hypothesis.extra.numpy.arrays(
    np.float32,
    (SIDE, SIDE, 1),
    # XLA flushes subnormal numbers to 0.
    elements=strategies.floats(-1, 1, width=32, allow_subnormal=False),
)
few_examples = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
one_view = jax.jit(apply_operation)


@pytest.fixture(scope="module")
def view(paper_set):
    """(image, name) -> one view."""
    return lambda image, name: np.asarray(one_view(paper_set, image, paper_set.names.index(name)))


@few_examples
@hypothesis.given(image=drawn_images)
def test_four_quarter_turns_are_the_identity_and_two_are_a_half_turn(view, image):
    turned = view(view(image, "turn90"), "turn90")
    np.testing.assert_array_equal(turned, view(image, "turn180"))
    np.testing.assert_array_equal(view(view(turned, "turn90"), "turn90"), image)


@few_examples
@hypothesis.given(image=drawn_images)
def test_a_double_flip_is_the_identity_and_a_flip_turns_the_other_way_round(view, image):
    np.testing.assert_array_equal(view(view(image, "flip"), "flip"), image)
    turned_back = view(view(view(image, "flip"), "turn90"), "flip")
    np.testing.assert_array_equal(turned_back, view(image, "turn270"))


@few_examples
@hypothesis.given(image=drawn_images, p=strategies.permutations(range(4)).map(tuple))
def test_patches_keep_the_multiset_of_pixels_and_undo_each_other(view, image, p):
    inverse = tuple(int(j) for j in np.argsort(p))
    names = [Operation(patches=q).name for q in (p, inverse)]
    moved = view(image, names[0])
    np.testing.assert_array_equal(np.sort(moved, axis=None), np.sort(image, axis=None))
    np.testing.assert_array_equal(view(moved, names[1]), image)


@few_examples
@hypothesis.given(
    x=drawn_images, y=drawn_images, a=strategies.floats(-2, 2), b=strategies.floats(-2, 2)
)
def test_every_operation_is_linear_in_the_image(paper_set, x, y, a, b):
    a, b = np.float32(a), np.float32(b)
    of_x, of_y, of_sum = np.asarray(all_views(paper_set, np.stack([x, y, a * x + b * y])))
    np.testing.assert_allclose(of_sum, a * of_x + b * of_y, rtol=0, atol=1e-5)


@few_examples
@hypothesis.given(image=drawn_images, label=strategies.integers(0, 110))
def test_all_views_are_apply_operation_one_by_one(paper_set, image, label):
    views = all_views(paper_set, np.stack([image] * 3))
    np.testing.assert_allclose(
        views[1, label], one_view(paper_set, image, label), rtol=0, atol=1e-6
    )


def test_shifts_read_mirrored_rows_and_columns_even_beyond_the_side():
    side = 4
    mirrored = [0, 1, 2, 3, 3, 2, 1, 0]  # the law, m(i) for i modulo 8
    shifts = list(itertools.product(range(-5, 3), repeat=2))  # 8 repeats 0
    operations = operation_set([Operation(shift=shift) for shift in shifts], side)
    image = np.arange(16, dtype=np.float32).reshape(1, side, side, 1)
    views = np.asarray(all_views(operations, image))[0]
    for (t_row, t_col), shifted_image in zip(shifts, views, strict=True):
        for r, c in itertools.product(range(side), repeat=2):
            source = image[0, mirrored[(r + t_row) % 8], mirrored[(c + t_col) % 8]]
            assert shifted_image[r, c] == source, (t_row, t_col, r, c)


# --- What a rotation shows outside the image -------------------------------------------------


@pytest.fixture(scope="module")
def rotations():
    """{fill: views [16, 32, 32, 3]} of one noise image, and the image."""
    image = random_images(1, 32, 3, seed=7)
    return image[0], {
        fill: np.asarray(all_views(operation_set("IA", 32, fill=fill), image))[0]
        for fill in ("grey", "border", "mirror")
    }


def flipped_and_angles():
    return list(itertools.product((False, True), ANGLES))


def test_grey_leaves_exactly_0_outside_and_fills_agree_inside(rotations):
    _, views = rotations
    for label, (_, angle) in enumerate(flipped_and_angles()):
        points = sampled_points(32, angle)
        outside = ((points < 0) | (points > 31)).any(axis=0)
        assert outside.sum() > 100
        assert (views["grey"][label][outside] == 0).all()
        for fill in ("border", "mirror"):
            np.testing.assert_array_equal(
                views[fill][label][~outside], views["grey"][label][~outside]
            )
            assert np.abs(views[fill][label][outside]).mean() > 0.1


def test_grey_corners_are_18_percent_of_a_rotated_view(rotations):
    _, views = rotations
    grey = (views["grey"] == 0).all(-1).mean(axis=(1, 2))
    assert grey.mean() == pytest.approx(0.18, abs=0.01)
    assert grey.min() > 0.15 and grey.max() < 0.21


def test_border_is_the_spline_at_the_nearest_point_of_the_image(rotations):
    image, views = rotations
    for label, (flip, angle) in enumerate(flipped_and_angles()):
        source = (image[:, ::-1] if flip else image).astype(np.float64)
        points = np.clip(sampled_points(32, angle), 0, 31)
        for channel in range(3):
            expected = scipy.ndimage.map_coordinates(
                source[..., channel], points, order=3, mode="mirror"
            )
            np.testing.assert_allclose(
                views["border"][label][..., channel], expected, rtol=0, atol=1e-5
            )


def test_mirror_is_scipys_mirror_mode(rotations):
    image, views = rotations
    for label, (flip, angle) in enumerate(flipped_and_angles()):
        source = (image[:, ::-1] if flip else image).astype(np.float64)
        expected = rotated(source, angle, mode="mirror")
        np.testing.assert_allclose(views["mirror"][label], expected, rtol=0, atol=1e-5)


# --- Sets of one's own -----------------------------------------------------------------------


def test_a_combined_operation_flips_shifts_turns_rearranges_and_rotates_in_this_order():
    side, image = 12, random_images(1, 12, 1, seed=3)
    combined = Operation(
        flip=True, shift=(2, -5), quarter_turns=3, patches=(2, 0, 3, 1), angle=-17.5
    )
    operations = operation_set([combined, Operation()], side)
    assert operations.families == ("PR", "RA")
    expected = np.rot90(shifted(image[0].astype(np.float64)[:, ::-1], 2, -5), 3)
    expected = rotated(rearranged(expected, (2, 0, 3, 1)), -17.5)
    views = np.asarray(all_views(operations, image))[0]
    np.testing.assert_allclose(views[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(views[1], image[0])


# --- Complaints ------------------------------------------------------------------------------

TWO = (Operation(), Operation(flip=True))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"side": 31}, "side must be even and at least 4, got 31: resize or pad"),
        ({"side": 2}, "side must be even and at least 4, got 2"),
        ({"name": "RA+XY"}, r"'RA\+XY': expected families from RA, IA, PR"),
        ({"name": ""}, "operation set '': expected families"),
        ({"name": "RA+RA"}, r"'RA\+RA'.* each once"),
        ({"fill": "black"}, "fill must be one of grey, border, mirror, got 'black'"),
        ({"name": [Operation(), Operation(patches=(0, 1, 2, 2))]}, "must be a permutation"),
        ({"name": [Operation(), Operation(patches=(1, 2, 3, 4))]}, r"got \(1, 2, 3, 4\)"),
        ({"name": [*TWO, Operation(flip=True)]}, "at least two operations, all different"),
        ({"name": [Operation()]}, "at least two operations"),
        ({"name": []}, "at least two operations"),
    ],
)
def test_every_complaint_about_a_set_says_what_was_expected(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        operation_set(**({"side": SIDE} | arguments))


@pytest.mark.parametrize(
    ("operations", "sentence"),
    [
        ([Operation(angle=30), Operation(angle=390)], "all different"),
        ([Operation(), Operation(shift=(2 * SIDE, 0))], "all different"),
        ([Operation(quarter_turns=2), Operation(angle=180)], "set quarter_turns instead"),
        ([Operation(), Operation(patches=(0, 1, 2))], "must be a permutation"),
    ],
)
def test_operations_that_do_the_same_under_two_names_are_refused(operations, sentence):
    with pytest.raises(ValueError, match=sentence):
        operation_set(operations, SIDE)


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE + 2, 1), (1, SIDE, SIDE), (6, 6, 3)])
def test_images_of_another_shape_than_the_sets_are_refused(paper_set, shape):
    with pytest.raises(ValueError, match=r"expected an image \[8, 8, c\]"):
        apply_operation(paper_set, np.zeros(shape, np.float32), 0)
    with pytest.raises(ValueError, match=r"expected an image \[8, 8, c\]"):
        all_views(paper_set, jnp.zeros((2, *shape)))

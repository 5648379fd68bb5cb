"""What one picture or one file is made of: its ground, its scale, and pixels without data."""

import io

import numpy as np
import pytest
from pictures import png16, write_tiff
from PIL import Image, ImageDraw

from e3jax.collection import Reader, read
from e3jax.collection.reading import read_each, thumbnails
from e3jax.images import opaque, to_uint8
from e3jax.images.high_depth import ValueRange, common_range


def drawings(n=12, side=40):
    """Rings of different places and sizes, float [n, side, side] from 0.1 to 0.9."""
    rng, shapes = np.random.default_rng(0), []
    for _ in range(n):
        picture, at, size = (
            Image.new("L", (side, side), 25),
            rng.uniform(5, 11),
            rng.uniform(18, 24),
        )
        ImageDraw.Draw(picture).ellipse((at, at, at + size, at + size), outline=230, width=3)
        shapes.append(np.asarray(picture) / 255)
    return np.stack(shapes)


# --- One scale ---------------------------------------------------------------------------------

# Name: from 0 to 1 to the values of a file; a value far from all of these.
RANGES = {
    "12 bits": (lambda x: np.uint16(x * 4095), 65535),
    "14 bits": (lambda x: np.uint16(x * 16383), 65535),
    "slices of a CT": (lambda x: np.int32(x * 2000 - 1024), -32768),
    "floats to 1": (lambda x: np.float32(x), -9999),
    "floats to 255": (lambda x: np.float32(255 * x), 1e30),
    "heights": (lambda x: np.float32(300 + 500 * x), -9999),
}


def spoilt_pixels(values, far):
    values[0, :3] = far


def spoilt_areas(values, far):
    values[:20, :20] = far


def spoilt_files(values, far):
    values[:] = values * (far / np.abs(values.astype(float)).max())


def read_values(folder, arrays):
    paths = []
    for i, array in enumerate(arrays):
        paths.append(folder / f"{i:02}.tif")
        write_tiff(paths[-1], array)
    return read(paths)


@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize(
    ("spoil", "count"),
    [(spoilt_pixels, 1), (spoilt_pixels, 12), (spoilt_areas, 3), (spoilt_files, 1)],
)
def test_files_of_far_values_leave_all_others_as_they_are(tmp_path, range_, spoil, count):
    convert, far = RANGES[range_]
    arrays = list(map(convert, drawings()))
    before = read_values(tmp_path, arrays)
    for array in arrays[:count]:
        spoil(array, far)
    after = read_values(tmp_path, arrays)
    if count == 12:  # in all files the pixels themselves are other ones
        assert after.images[:, 10:].std() > 0.9 * before.images[:, 10:].std()
    else:
        np.testing.assert_array_equal(after.images[count:], before.images[count:])
    assert after.reader.file_range[:2] == before.reader.file_range[:2]
    assert not before.reader.file_range.clipped[0]
    said = f"and values beyond are clipped, in {count} file{'s' * (count > 1)}"
    assert [note.endswith(said) for note in after.reader.file_range.notes] == [True]


# The largest value of a depth, and one that the next depth alone holds.
NEAR = [(255, 256), (255, 400), (1023, 1500), (4095, 4100), (4095, 7000), (16383, 20000)]


def spoilt_brightness(values, near):
    values[:] = values * (near / values.max())


@pytest.mark.parametrize(("top", "near"), NEAR)
@pytest.mark.parametrize(
    ("spoil", "n", "count"),
    [
        (spoilt_pixels, 12, 1),
        (spoilt_pixels, 12, 12),
        (spoilt_pixels, 3, 1),
        (spoilt_brightness, 5, 1),
        (spoilt_brightness, 12, 3),
    ],
)
def test_a_few_values_of_the_next_depth_do_not_set_it(tmp_path, top, near, spoil, n, count):
    arrays = list(np.uint16(top * drawings(n)))
    for array in arrays[:count]:
        spoil(array, near)
    assert read_values(tmp_path, arrays).reader.file_range == ValueRange(
        (0, top), clipped=(count, 0)
    )


@pytest.mark.parametrize(("top", "near"), NEAR)
@pytest.mark.parametrize(
    ("spoil", "n", "count"),
    [
        (spoilt_areas, 12, 4),
        (spoilt_areas, 4, 1),
        (spoilt_brightness, 12, 4),
        (spoilt_brightness, 1, 1),
    ],
)
def test_what_many_files_or_pixels_use_sets_the_depth(tmp_path, top, near, spoil, n, count):
    arrays = list(np.uint16(top * drawings(n)))
    for array in arrays[:count]:
        spoil(array, near)
    next_top = {255: 1023, 1023: 4095, 4095: 16383, 16383: 65535}[top]
    assert read_values(tmp_path, arrays).reader.file_range == ValueRange((0, next_top))


def test_files_of_a_single_value_set_no_scale_while_three_others_are_left(tmp_path):
    arrays = [*np.uint16(4095 * drawings(3)), *np.full((4, 40, 40), 65535, np.uint16)]
    assert read_values(tmp_path, arrays).reader.file_range == ValueRange((0, 4095), clipped=(4, 0))
    flat = [np.full((40, 40), value, np.uint16) for value in [100] * 9 + [300] * 3]
    assert read_values(tmp_path, flat).reader.file_range == ValueRange((0, 1023))


def test_of_values_without_a_gap_all_are_seen(tmp_path):
    """A few bright spots on a dark ground are what such pictures are of."""
    rng, arrays = np.random.default_rng(0), []
    y, x = np.mgrid[:200, :200]
    for _ in range(8):
        array = rng.normal(100, 8, (200, 200))
        for peak in rng.uniform(500, 3000, 20):
            distance = np.hypot(y - rng.uniform(20, 180), x - rng.uniform(20, 180))
            array += peak * np.exp(-((distance / 2) ** 2))
        arrays.append(np.float32(array))
    seen = read_values(tmp_path, arrays)
    ends = min(map(np.min, arrays)), max(map(np.max, arrays))
    assert (
        seen.reader.file_range == ValueRange(None, ends) and len(seen.reader.file_range.notes) == 1
    )


def test_files_that_are_all_different_share_the_scale_of_all(tmp_path):
    tops = [0, 0, 0, 0, 0, 500, 900, 4000]  # black ones say nothing of the others
    arrays = [np.linspace(0, top, 1600).reshape(40, 40).astype(np.float32) for top in tops]
    seen = read_values(tmp_path, arrays)
    assert seen.reader.file_range == ValueRange(None, (0, 4000))


def test_a_known_scale_clips_new_files_and_says_how_many(tmp_path):
    known = ValueRange((0, 1023), (0, 1), clipped=(7, 7), lacking=(7, 7))
    arrays = [np.full((8, 8), value, "u2") for value in (3, 1024, 4000)]
    paths = [tmp_path / f"{i}.tif" for i in range(4)]
    for path, array in zip(paths, [*arrays, np.full((8, 8), 1.0005, "f4")], strict=True):
        write_tiff(path, array)
    seen = read(paths, Reader(file_range=known))
    assert seen.reader.file_range == ValueRange((0, 1023), (0, 1), clipped=(2, 0))
    assert seen.images[:, 0, 0, 0].tolist() == [1, 255, 255, 255]


def test_scales_of_two_collections_are_joined_and_their_files_added_up():
    one, two = ValueRange((0, 255), None, (1, 0), (2, 3)), ValueRange(None, [0, 1], [1, 4], [0, 1])
    assert one.filled(two) == ValueRange((0, 255), [0, 1], (2, 4), (2, 4))
    assert not one.conflicts(two) and not one.conflicts(one._replace(clipped=(9, 9)))
    assert two.filled(one).notes == [
        "integer files of more than 8 bits are read from 0 (black) to 255 (white), and values "
        "beyond are clipped, in 2 files",
        "pixels without data of integer files are black, in 2 files",
        "float files of more than 8 bits are read from 0 (black) to 1 (white), and values beyond "
        "are clipped, in 4 files",
        "pixels without data of float files are black, in 4 files",
    ]


def test_transparent_pixels_set_no_scale(tmp_path):
    array = np.full((20, 20, 2), 65535, np.uint16)
    array[..., 0], array[:10, :, 1] = 900, 0
    before = png16(array)
    array[:10, :, 0] = 65535
    seen = read([before, png16(array)])
    assert seen.reader.file_range == ValueRange((0, 1023))
    np.testing.assert_array_equal(*seen.images)
    array[..., 1] = 0
    assert (read([png16(array)]).images == 255).all()


# --- Pixels without data -------------------------------------------------------------------------


def gdal(value: str) -> tuple:
    """GDAL's tag for the value of pixels without data, of at most four bytes."""
    return 42113, 2, len(value) + 1, value.encode().ljust(4, b"\0")


@pytest.mark.parametrize(
    ("dtype", "absent", "tag"),
    [
        ("f4", np.nan, None),
        ("f4", np.inf, None),
        ("f8", -np.inf, None),
        ("f4", np.finfo("f4").min, None),
        ("f4", -3.4e38, None),
        ("f4", -99, "-99"),
        ("f8", 0.1, "0.1"),
        ("u2", 999, "999"),
        ("i2", -99, "-99"),
        ("u2", 0, "0 "),
    ],
)
def test_pixels_without_data_are_black_and_set_no_scale(tmp_path, dtype, absent, tag):
    shapes = drawings(6) if dtype[0] == "f" else 250 * drawings(6)
    before = read_values(tmp_path, shapes.astype(dtype))
    holed = shapes.astype(dtype)
    holed[:3, :20] = absent
    paths = sorted(tmp_path.iterdir())
    for path, array in zip(paths, holed, strict=True):
        write_tiff(path, array, more=[gdal(tag)] if tag else [])
    after = read(paths)
    assert not after.unreadable
    np.testing.assert_array_equal(after.images[3:], before.images[3:])
    np.testing.assert_array_equal(after.images[:3, 18:], before.images[:3, 18:])
    assert (after.images[:3, :14] == 0).all()
    assert after.reader.file_range[:3] == before.reader.file_range[:3]
    assert sum(after.reader.file_range.lacking) == 3
    assert after.reader.file_range.notes[-1].endswith("are black, in 3 files")


def test_a_file_without_any_data_is_left_out_with_its_reason(tmp_path):
    arrays = np.full((3, 8, 8), 7, "u2")
    arrays[0, 0] = 8
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        write_tiff(path, array, more=[gdal("7")] if path != paths[2] else [])
    seen = read(paths)
    assert seen.unreadable == [(str(paths[1]), "all pixels are not finite or without data")]
    assert seen.reader.file_range.lacking == (1, 0)


def test_a_file_of_damaged_metadata_keeps_its_pixels_without_data(tmp_path):
    array = np.full((8, 8), 200, "u2")
    array[0] = 999
    write_tiff(tmp_path / "x.tif", array, more=[gdal("999"), (282, 2, 4, b"AAAA")])
    seen = read([tmp_path / "x.tif"])
    assert seen.reader.file_range == ValueRange((0, 255), lacking=(1, 0))


def test_a_tag_that_is_no_number_says_nothing(tmp_path):
    write_tiff(tmp_path / "x.tif", np.full((8, 8), 7, "u2"), more=[gdal("no")])
    assert read([tmp_path / "x.tif"]).reader.file_range == ValueRange((0, 255))


def test_isolated_values_of_large_files_are_looked_for_in_a_sample(tmp_path):
    array = np.float32(np.random.default_rng(0).random((700, 900)))
    array[333, 444] = 1e6
    write_tiff(tmp_path / "x.tif", array)
    [(deep, *_)] = read_each([tmp_path / "x.tif"], Reader())
    assert deep.lowest == array.min() and 0.999 < deep.highest < 1
    assert deep.outermost.tolist() == [array.min(), 1e6]
    assert common_range([deep]) == ValueRange(None, (0, 1), clipped=(0, 1))


# --- Grounds -------------------------------------------------------------------------------------


def logo(colour, opacity=255):
    """A ring on a transparent ground, uint8 [40, 40, 4]."""
    [shape] = drawings(1) > 0.5
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[shape] = *colour, opacity
    return picture


def png(image, **options) -> bytes:
    image.save(content := io.BytesIO(), "PNG", **options)
    return content.getvalue()


def palette(picture) -> bytes:
    """A file with a palette, one of whose colours is transparent."""
    image = Image.fromarray(np.uint8(picture[..., 3] > 0), "P")
    image.putpalette([9, 9, 9, *picture[picture[..., 3] > 0].max(axis=0, initial=0)[:3]])
    return png(image, transparency=0)


FORMS = {
    "colours": lambda picture: png(Image.fromarray(picture)),
    "grey": lambda picture: png(Image.fromarray(picture).convert("LA")),
    "palette": palette,
    "16 bits": lambda picture: png16(picture.astype(np.uint16) * 257),
    "an image of Pillow's": Image.fromarray,
    "an array": lambda picture: picture,
    "an array of grey": lambda picture: picture[..., 2:],
    "an array of floats": lambda picture: to_uint8(np.float32(picture[None] / 255), (0, 1))[0],
}


@pytest.mark.parametrize(
    ("colour", "opacity", "is_black"),
    [
        ((255, 255, 255), 255, True),
        ((255, 255, 255), 100, True),
        ((245, 250, 240), 255, True),
        ((200, 200, 200), 255, False),
        ((255, 255, 0), 255, False),
        ((255, 230, 60), 255, False),
        ((40, 40, 40), 255, False),
        ((0, 0, 0), 100, False),
        ((255, 255, 255), 0, False),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_drawing_that_vanishes_on_white_is_seen_on_black(form, colour, opacity, is_black):
    if form == "palette" and opacity < 255:
        pytest.skip("is transparent or opaque")
    source, scale = FORMS[form](logo(colour, opacity)), ValueRange((0, 65535))
    [pixels] = read([source], Reader(40, colour=True, file_range=scale)).images
    [shape] = drawings(1) > 0.5
    assert (pixels[~shape] == (0 if is_black else 255)).all()
    assert (np.ptp(pixels, axis=(0, 1)).max() > 20) == (opacity > 0)
    if isinstance(source, bytes):
        [small] = thumbnails([source], 40, file_range=scale)
        np.testing.assert_array_equal(Image.open(io.BytesIO(small)).convert("RGB"), pixels)


def accented(part, colour):
    """A white ring with an accent in the same place, uint8 [40, 40, 4]."""
    picture = logo((255, 255, 255))
    picture[part] = *colour, 255
    return picture


@pytest.mark.parametrize("form", sorted({*FORMS} - {"palette"}))
@pytest.mark.parametrize("colour", [(0, 0, 0), (220, 0, 0), (90, 90, 90)])
@pytest.mark.parametrize("part", [np.s_[18:20, 18:20], np.s_[18:24, 18:24], np.s_[[0, -1], :30]])
def test_a_small_dark_part_keeps_no_white_drawing_on_white(form, colour, part):
    source, scale = FORMS[form](accented(part, colour)), ValueRange((0, 65535))
    [pixels] = read([source], Reader(40, colour=True, file_range=scale)).images
    assert (pixels[1:4] == 0).all() and (pixels.min(axis=-1) > 250).sum() > 150


def test_what_shows_on_white_stays_there():
    dark = logo((40, 40, 40))
    dark[18:20, 18:20] = 255
    mixed = accented(np.s_[15:25, 15:25], (0, 0, 0))  # a third is dark
    page = np.full((40, 40, 4), 255, np.uint8)  # with a transparent corner
    page[10:30:4, 10:30, :3], page[:4, :4, 3] = 0, 0
    sources = [
        form(picture)
        for form in (FORMS["colours"], FORMS["16 bits"])
        for picture in (dark, mixed, page)
    ]
    scale = ValueRange((0, 65535))
    seen = read(sources, Reader(40, colour=False, file_range=scale)).images
    assert (seen[:, 0, 0] == 255).all()


def test_the_ground_is_the_same_at_every_size_and_fit():
    large = Image.fromarray(logo((255, 255, 255))).resize((900, 1200))
    for fit in ("squash", "crop", "letterbox"):
        [(pixels, _, small)] = read_each([large], Reader(resize=fit), thumbnails=96)
        assert pixels[0, 0].max() == 0 and pixels.max() > 200
        assert np.asarray(Image.open(io.BytesIO(small)))[0, 0].max() < 9


def test_a_ground_is_put_strip_by_strip_as_in_one_piece(monkeypatch):
    picture = Image.fromarray(logo((250, 250, 250), 200))
    whole = np.asarray(opaque(picture))
    monkeypatch.setattr("e3jax.images.grounds._STRIP", 120)
    np.testing.assert_array_equal(opaque(picture), whole)
    assert whole.min() == 0

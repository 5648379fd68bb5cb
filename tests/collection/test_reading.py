"""Files of every kind become images of a bank, or entries in the list of what is left out."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path

import fuzz_images
import numpy as np
import pytest
from conftest import ROOT
from pictures import png16, png_chunk, write_tiff
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from e3jax.choices import FITS
from e3jax.collection import Reader, Skipped, read
from e3jax.collection.finding import find_files
from e3jax.collection.reading import read_each, thumbnails
from e3jax.errors import InputError
from e3jax.images import decoding, formats, memory
from e3jax.images.high_depth import ValueRange
from e3jax.work import files


def noise(h=40, w=40, c=3, seed=0):
    shape = (h, w, c) if c > 1 else (h, w)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (
        array
        if isinstance(array, Image.Image)
        else Image.fromarray(noise() if array is None else array)
    )
    image.save(path, **options)
    return path


@pytest.fixture
def good(tmp_path):
    """Two intact colour files, to which a test adds its own."""
    return [save(tmp_path / f"good{i}.png", noise(32, 32, seed=i)) for i in (1, 2)]


def read_one(good, path, **options):
    """The image that a file among intact ones becomes."""
    collection = read([*good, path], Reader(**options))
    assert not collection.unreadable
    return collection.images[-1]


# --- Finding ---------------------------------------------------------------------------------


def test_files_are_found_below_and_in_natural_order(tmp_path):
    names = ["b/1.png", "10.png", "2.png", "a.JPG", "a1.webp", "a10.gif", "a2.tiff", "ünï\nx.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for other in (".hidden.png", ".folder/x.png", "notes.txt", "Thumbs.db"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    found, closed = find_files(tmp_path)
    relative = [str(path.relative_to(tmp_path)) for path in found]
    order = ["2.png", "10.png", "a1.webp", "a2.tiff", "a10.gif", "a.JPG", "b/1.png", "ünï\nx.png"]
    assert relative == order and closed == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("missing", "does not exist"), ("file", "is a file"), ("empty", "has no image files")],
)
def test_a_missing_or_empty_folder_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        find_files(tmp_path / name)


def reasons(folder):
    """What a search says about files that it does not look at."""
    _, left_out = find_files(folder)
    assert all(isinstance(entry, Skipped) and entry.path == str(folder) for entry in left_out)
    return [entry.reason for entry in left_out]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("x.jxl", "pip install pillow-jxl-plugin"),
        ("x.DNG", "export them as JPEG or PNG"),
        ("x.cr2", "export them as JPEG or PNG"),
        ("x.svg", "export them as JPEG or PNG"),
        ("x.exr", "export them as JPEG or PNG"),
        ("x.dcm", "export them as JPEG or PNG"),
        ("x.eps", "export them as JPEG or PNG"),
        ("x.mov", "save frames of them as images"),
        ("x.zip", "unpack them"),
    ],
)
def test_endings_that_are_not_read_are_named_with_what_would_read_them(
    good, tmp_path, name, remedy
):
    if remedy.startswith("pip") and not formats.remedy("JPEG XL"):
        pytest.skip("the plug-in is installed")
    ending = name[1:].lower()
    (tmp_path / name).touch()
    assert reasons(tmp_path) == [f"1 {ending} file was not looked at: {remedy}"]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / name).touch()
    assert reasons(tmp_path) == [f"2 {ending} files were not looked at: {remedy}"]


def test_each_ending_has_a_line_and_other_files_none(good, tmp_path):
    for name in ("a.svg", "b.pdf", "c.svg", "notes.txt", "notes.json", "data.bin", "a.xmp"):
        (tmp_path / name).write_text("I am a letter")
    assert [line.split(" not ")[0] for line in reasons(tmp_path)] == [
        "1 .pdf file was",
        "2 .svg files were",
    ]


def test_a_folder_of_such_files_alone_says_so(tmp_path):
    (tmp_path / "a.svg").touch()
    with pytest.raises(InputError, match=r"no image files \(1 .svg file was not looked at: export"):
        find_files(tmp_path)


def test_files_without_an_ending_are_images_if_they_start_as_such(good, tmp_path):
    named = [save(tmp_path / f"image{i}", noise(seed=i), format="PNG") for i in range(2)]
    numbered = save(tmp_path / "1.2.840.10008", noise(), format="JPEG")
    (tmp_path / "LICENSE").write_text("BM, II and so on")
    (tmp_path / "scan").write_bytes(bytes(128) + b"DICM" + bytes(99))
    (tmp_path / "drawing").write_text('<?xml version="1.0"?>\n<svg>')
    found, [note] = find_files(tmp_path)
    assert set(found) == {*good, *named, numbered}
    assert note.reason.startswith("2 files without an ending were not looked at: export")
    assert not read(found).unreadable


def test_images_of_unknown_endings_are_named(good, tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.jpg_large", noise(seed=i), format="JPEG")
    [line] = reasons(tmp_path)
    assert line == "5 .jpg_large files were not looked at: they hold images (JPEG), rename them"


def test_linked_folders_are_named_unless_their_files_are_found_anyway(good, tmp_path):
    photos, other = tmp_path / "photos", tmp_path / "other"
    save(photos / "below" / "a.png"), save(other / "b.png")
    (photos / "loop").symlink_to(photos)
    (photos / "same.png").symlink_to(photos / "below")
    assert find_files(photos) == ([photos / "below" / "a.png"], [])
    (photos / "away").symlink_to(other)
    [line] = reasons(photos)
    assert line.startswith("1 linked folder was not followed") and "photos/away" in line


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", ".thumbnails"])
def test_other_programs_folders_are_skipped_in_silence(good, tmp_path, name):
    save(tmp_path / "below" / name / "SYNOPHOTO_THUMB_M.jpg")
    (tmp_path / "below" / name / "a.heic").touch()
    assert find_files(tmp_path) == (good, [])


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_a_photo_of_a_phone_names_its_package_also_under_another_name(good, tmp_path):
    (tmp_path / "a.heic").write_bytes(HEIC)
    (tmp_path / "b.jpg").write_bytes(HEIC)
    (tmp_path / "c").write_bytes(HEIC)
    (tmp_path / "d.png").write_bytes(HEIC.replace(b"heic", b"mif1"))
    if not formats.remedy("HEIC"):
        pytest.skip("pillow-heif is installed")
    assert reasons(tmp_path) == [
        "1 file without an ending was not looked at: pip install pillow-heif",
        "1 .heic file was not looked at: pip install pillow-heif",
    ]
    collection = read([*good, tmp_path / "b.jpg", tmp_path / "d.png"])
    assert [reason for _, reason in collection.unreadable] == 2 * ["HEIC: pip install pillow-heif"]


PLUGIN = """
import sys, warnings
import numpy as np
from pathlib import Path
from PIL import Image
import {package}
{register}
from e3jax.collection import read
from e3jax.collection.finding import find_files
folder = Path(sys.argv[1])
a = np.full((40, 60, 3), 90, np.uint8)
for name in ("a{ending}", "b{ending}"):
    Image.fromarray(a).save(folder / name, format="{format}")
(folder / "c.jpg").write_bytes((folder / "a{ending}").read_bytes())
found, left_out = find_files(folder)
assert len(found) == 3 and not left_out, (found, left_out)
collection = read(found)
assert not collection.unreadable and np.abs(collection.images - 90.0).max() < 3
"""


@pytest.mark.parametrize(
    ("package", "format", "ending", "register"),
    [
        ("pillow_heif", "HEIF", ".heic", "pillow_heif.register_heif_opener()"),
        ("pillow_jxl", "JXL", ".jxl", ""),
    ],
)
def test_with_its_package_a_format_is_read(tmp_path, package, format, ending, register):
    pytest.importorskip(package)
    code = PLUGIN.format(package=package, format=format, ending=ending, register=register)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


# --- Modes -----------------------------------------------------------------------------------


def test_images_of_the_right_size_come_back_as_they_are(good):
    collection = read(good)
    np.testing.assert_array_equal(collection.images[0], noise(32, 32, seed=1))
    assert list(collection.ids) == [str(path) for path in good]


def test_grey_images_alone_are_grey_and_among_colours_are_not(tmp_path, good):
    paths = [save(tmp_path / f"grey{i}.png", noise(32, 32, 1, i)) for i in (1, 2)]
    grey = read(paths).images
    assert grey.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(grey[0, ..., 0], noise(32, 32, 1, 1))
    both = read([*good, *paths]).images
    assert both.shape == (4, 32, 32, 3) and (both[2] == both[2, ..., :1]).all()
    assert read(paths, Reader(colour=True)).images.shape == (2, 32, 32, 3)
    luma = np.asarray(Image.open(good[0]).convert("L"))
    ours = read(good, Reader(colour=False)).images[0, ..., 0]
    assert np.abs(ours - luma.astype(int)).max() <= 1


def flat(mode, value, size=(32, 32)):
    return Image.new(mode, size, value)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("rgba.png", flat("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        ("half.png", flat("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
        ("la.png", flat("LA", (0, 255)), (0, 0, 0)),
        ("cmyk.jpg", flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        ("palette.gif", flat("RGB", (0, 0, 255)).convert("P"), (0, 0, 255)),
        ("bits.png", flat("1", 1), (255, 255, 255)),
        ("deep.png", Image.fromarray(np.full((32, 32), 128 * 257, np.uint16)), (128,) * 3),
        ("float.tiff", Image.fromarray(np.float32(np.linspace(-3, 5, 1024).reshape(32, 32))), None),
    ],
)
def test_every_mode_is_read(good, tmp_path, name, image, expected):
    seen = read_one(good, save(tmp_path / name, image))
    if expected is None:
        assert seen[0, 0, 0] == 0 and seen[-1, -1, 0] == 255
    else:
        assert np.abs(seen.astype(int) - expected).max() <= 2


def test_transparency_of_a_palette_is_white(good, tmp_path):
    image = flat("P", 0)
    image.putpalette([255, 0, 0])
    assert (read_one(good, save(tmp_path / "p.png", image, transparency=0)) == 255).all()


def test_exif_turns_the_image(good, tmp_path):
    array = noise(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = read_one(good, save(tmp_path / "turned.png", array, exif=exif))
    np.testing.assert_array_equal(seen, np.rot90(array, -1))


def test_the_first_frame_of_an_animation_is_used(good, tmp_path):
    frames = [flat("L", 0), flat("L", 255)]
    path = save(tmp_path / "moves.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_one(good, path) == 0).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(good, tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.bin", noise(32, 32), format=format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    np.testing.assert_array_equal(read_one(good, path), np.asarray(upright))


# --- Metadata --------------------------------------------------------------------------------


def exif_of(*tags) -> bytes:
    """EXIF data of (tag, type, count, value) entries, the value in the entry itself."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


TURN = (0x0112, 3, 1, 6)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "tag",
    [
        (0x011A, 2, 4, 0x00323237),  # XResolution as text
        (0x011B, 7, 4, 1),
        (0x8769, 2, 4, 0x41414141),  # a link to more tags as text
        (0x8825, 5, 1, 0xFFFFFFFF),
        (0x010F, 2, 0x7FFFFFFF, 0xFFFFFF00),  # the maker's name, beyond the end
        (0x0128, 99, 1, 2),
    ],
)
def test_a_wrong_tag_leaves_no_photo_out_and_the_others_are_kept(good, tmp_path, format, tag):
    plain = save(tmp_path / "plain.bin", noise(32, 32), format=format)
    path = save(tmp_path / "x.bin", noise(32, 32), format=format, exif=exif_of(TURN, tag))
    np.testing.assert_array_equal(read_one(good, path), np.rot90(read_one(good, plain), -1))


@pytest.mark.parametrize("tag", [(0x0112, 2, 2, 0x36), (0x0112, 3, 1, 77), (0x0112, 5, 9, 1 << 30)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_whose_orientation_cannot_be_read_is_taken_as_it_is(good, tmp_path, format, tag):
    plain = save(tmp_path / "plain.bin", noise(32, 32), format=format)
    for exif in (exif_of(tag), b"Exif\0\0garbage", b"Exif\0\0"):
        path = save(tmp_path / "x.bin", noise(32, 32), format=format, exif=exif)
        np.testing.assert_array_equal(read_one(good, path), read_one(good, plain))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("tag", "kind"), [(282, 2), (283, 7), (296, 12), (305, 5), (700, 4), (34665, 2)]
)
def test_tags_of_a_wrong_type_leave_no_tiff_out(good, tmp_path, order, tag, kind, zipped):
    turn = (274, 3, 1, struct.pack(order + "HH", 6, 0))
    path, wrong = tmp_path / "x.tif", (tag, kind, 4, b"AAAA")
    write_tiff(path, noise(32, 32), order, zipped=zipped, more=[turn, wrong])
    np.testing.assert_array_equal(read_one(good, path), np.rot90(noise(32, 32), -1))


@pytest.mark.parametrize("zip", [True, False])
def test_a_png_with_much_text_is_read(good, tmp_path, zip):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", "ten thousand words " * 120_000, zip=zip)
    for after in (False, True):
        info.chunks = [(*chunk[:2], after) for chunk in info.chunks]
        path = save(tmp_path / "x.png", noise(32, 32), pnginfo=info)
        np.testing.assert_array_equal(read_one(good, path), noise(32, 32))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_large_colour_profile_leaves_no_image_out(good, tmp_path, format):
    how = {"format": format} | ({"lossless": True} if format == "WEBP" else {})
    plain = save(tmp_path / "plain.bin", noise(32, 32), **how)
    path = save(tmp_path / "x.bin", noise(32, 32), icc_profile=bytes(3_000_000), **how)
    np.testing.assert_array_equal(read_one(good, path), read_one(good, plain))


def test_damaged_chunks_that_pixels_do_not_need_leave_no_png_out(good, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "words")
    path = save(tmp_path / "x.png", noise(32, 32), pnginfo=info, exif=exif, dpi=(72, 72))
    content = path.read_bytes()
    for name in (b"tEXt", b"pHYs"):
        at = content.index(name)
        damaged = content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :]
        path.write_bytes(damaged)
        np.testing.assert_array_equal(read_one(good, path), np.rot90(noise(32, 32), -1))
    for cut in (4, 12, 14):  # the end, and the checksums before it
        path.write_bytes(content[:-cut])
        np.testing.assert_array_equal(read_one(good, path), np.rot90(noise(32, 32), -1))


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xed\0\x1bPhotoshop 3.0\x008BIM\x04\x04\xff",
        b"\xff\xe0\0\x07JFIF\0",
        b"\xff\xe2\0\x10ICC_PROFILE\0\0\0",
        b"\xff\xe2\0\x0aMPF\0II*\0",
        b"\xff\xee\0\x07Adobe",
    ],
)
def test_damaged_segments_of_applications_leave_no_photo_out(good, tmp_path, segment):
    segment = segment[:2] + struct.pack(">H", len(segment) - 2) + segment[4:]
    plain = save(tmp_path / "plain.jpg", noise(32, 32))
    path = save(tmp_path / "x.jpg", noise(32, 32), exif=exif_of(TURN))
    content = path.read_bytes()
    path.write_bytes(content[:2] + segment + content[2:])
    np.testing.assert_array_equal(read_one(good, path), np.rot90(read_one(good, plain), -1))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photo_that_lacks_its_end_alone_is_read_and_one_that_lacks_pixels_is_not(
    good, tmp_path, progressive
):
    path = save(tmp_path / "x.jpg", noise(64, 64), progressive=progressive)
    whole, content = read_one(good, path), path.read_bytes()
    for cut in (1, 2):
        path.write_bytes(content[:-cut])
        np.testing.assert_array_equal(read_one(good, path), whole)
    path.write_bytes(content[: len(content) // 3 * 2])
    [left_out] = read([*good, path]).unreadable
    assert "truncated" in left_out.reason


@pytest.mark.parametrize("name", ["VP8 ", "VP8L"])
def test_a_webp_of_damaged_metadata_is_read(good, tmp_path, name):
    array = np.dstack([noise(32, 32), np.full((32, 32), 255, np.uint8)])
    for mode in ("RGB", "RGBA"):
        image = Image.fromarray(array).convert(mode)
        how = {"lossless": name == "VP8L", "exif": exif_of(TURN)}
        path = save(tmp_path / "x.webp", image, **how)
        whole, content = read_one(good, path), path.read_bytes()
        path.write_bytes(content[:-9])  # in the EXIF data
        seen = read_one(good, path)
        turned = any((seen == np.rot90(whole, turns)).all() for turns in (0, 1))
        assert turned


# --- More than 8 bits ------------------------------------------------------------------------


def grey(good, *paths, **options):
    """The grey images that files become, by themselves."""
    collection = read(paths, Reader(**options))
    assert not collection.unreadable and collection.images.shape[-1] == 1
    return collection.images[..., 0]


def ramp(top, dtype):
    """[32, 32], from 0 to the largest value."""
    return np.linspace(0, top, 1024).reshape(32, 32).astype(dtype)


RAMP = np.linspace(0, 255, 1024).reshape(32, 32)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("dtype", "top", "known"),
    [
        ("u2", 255, (0, 255)),
        ("u2", 1023, (0, 1023)),
        ("u2", 4095, (0, 4095)),
        ("u2", 16383, (0, 16383)),
        ("u2", 65535, (0, 65535)),
        ("u4", 255, (0, 255)),
        ("u4", 4095, (0, 4095)),
        ("u4", 2**32 - 1, (0, 2**32 - 1)),
        ("i4", 255, (0, 255)),
        ("i4", 1_000_000, (0, 1_000_000)),
        ("i2", 4095, (0, 4095)),
        ("f4", 1, (0, 1)),
        ("f4", 1 + 1e-6, (0, 1)),
        ("f4", 255, (0, 255)),
        ("f4", 16, (0, 16)),
        ("f8", 1, (0, 1)),
        ("f8", 70_000, (0, 70_000)),
    ],
)
def test_values_are_seen_in_containers_of_any_size(
    good, tmp_path, order, zipped, dtype, top, known
):
    for white in (False, True):
        path = tmp_path / f"{white}.tif"
        write_tiff(path, ramp(top, dtype), order, white, zipped)
        collection = read([path])
        assert not collection.unreadable
        seen = collection.images[0, ..., 0]
        expected = 255 - RAMP if white else RAMP
        assert np.abs(seen - expected).max() <= 1
        black, white = collection.reader.file_range.floats or collection.reader.file_range.integers
        assert (black, white) == pytest.approx(known)


@pytest.mark.parametrize(
    ("dtype", "top"), [("u2", 4095), ("f4", 1.0), ("f4", 900.0), ("i4", 90_000)]
)
def test_a_collection_shares_one_scale_so_that_a_dark_image_stays_dark(good, tmp_path, dtype, top):
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path, share in zip(paths, (1, 0.5, 0.05), strict=True):
        write_tiff(path, ramp(top * share, dtype))
    bright, half, dark = grey(good, *paths)
    assert [image.max() for image in (bright, half, dark)] == pytest.approx([255, 128, 13], abs=1)
    small = thumbnails(paths, file_range=read(paths).reader.file_range)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(small[2])))[..., 0], dark)


def test_the_scale_is_stated_and_serves_new_files(good, tmp_path):
    write_tiff(tmp_path / "a.tif", ramp(4095, "u2"))
    write_tiff(tmp_path / "b.tif", ramp(100, "u2"))
    scale = read([tmp_path / "a.tif"]).reader.file_range
    assert scale == ValueRange((0, 4095), None)
    assert scale.notes == [
        "integer files of more than 8 bits are read from 0 (black) to 4095 (white)"
    ]
    assert grey(good, tmp_path / "b.tif", file_range=scale).max() == 6
    assert not ValueRange((0, 65535), (0, 1)).notes and not read(good).reader.file_range.notes


@pytest.mark.parametrize("fit", FITS)
def test_borders_are_black_whatever_the_scale(good, tmp_path, fit):
    for white in (False, True):
        values = np.full((16, 32), -300, np.float32)
        values[:, 16:] = 100
        write_tiff(tmp_path / "x.tif", values, white=white)
        [seen] = grey(good, tmp_path / "x.tif", resize=fit)
        assert {seen[16, 2], seen[16, 30]} == {0, 255}
        assert (seen[16, 30] == 0) == white
        if fit == "letterbox":
            assert (seen[:8] == 0).all() and (seen[-8:] == 0).all()


@pytest.mark.parametrize(
    "name",
    ["x.png", "x.tif", "big.tif", "planes.tif", "big-planes.tif", "zipped.tif", "big-zipped.tif"],
)
@pytest.mark.parametrize("top", [4095, 65535])
def test_colours_of_12_bits_in_16_are_seen(good, tmp_path, name, top):
    array = np.dstack([ramp(top, "u2"), ramp(top, "u2")[::-1], np.full((32, 32), top // 2, "u2")])
    path = tmp_path / name
    if name == "x.png":
        path.write_bytes(png16(array))
    else:
        order = ">" if name.startswith("big") else "<"
        write_tiff(path, array, order, zipped="zipped" in name, planes="planes" in name)
    collection = read([path])
    assert np.abs(collection.images[0] - array * (255 / top)).max() <= 1
    assert collection.reader.file_range.integers == (0, top)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_pixels_of_16_bits_are_white(good, tmp_path, channels):
    array = np.zeros((32, 32, channels), np.uint16)
    array[..., 0] = 4095
    array[:16, ..., -1] = 65535
    array[:6] = 65535 if channels == 4 else (2048, 65535)
    (tmp_path / "x.png").write_bytes(png16(array))
    scale = ValueRange((0, 4095))
    seen = read([tmp_path / "x.png"], Reader(colour=True, file_range=scale)).images[0]
    middle = (255,) * 3 if channels == 2 else (255, 0, 0)
    assert (seen[7:15] == middle).all() and (seen[17:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_white(good, tmp_path, channels):
    array = np.full((32, 32, channels), 7, np.uint16)
    array[:16] = 4095
    hidden = png_chunk(b"tRNS", struct.pack(">H", 7) * channels)
    (tmp_path / "x.png").write_bytes(png16(array, hidden))
    seen = read([tmp_path / "x.png"]).images[0]
    assert (seen[:15] == 255).all() and (seen[17:] == 0).all()  # white alone is seen on black
    array[:16] = 2048
    (tmp_path / "x.png").write_bytes(png16(array, hidden))
    seen = read([tmp_path / "x.png"]).images[0]
    assert (seen[:15] == 128).all() and (seen[17:] == 255).all()


def test_lab_images_are_read(good, tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(flat("RGB", (200, 60, 30)), srgb, lab, outputMode="LAB")
    seen = read_one(good, save(tmp_path / "x.tif", image))
    assert np.abs(seen - np.float64([200, 60, 30])).max() <= 4


# --- States ----------------------------------------------------------------------------------


def test_the_state_of_each_readable_file_is_that_before_it_was_read(good, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("x")
    before = [files.state_of(path) for path in good]

    def change(stage, done, total):
        for path in good[: 2 * (done == 3)]:
            path.write_bytes(b"another one")

    seen = read([good[0], text, str(good[1])], on_progress=change)
    assert seen.states.dtype == np.int64 and seen.states.tolist() == list(map(list, before))
    assert all(
        files.FileState(*state).is_same(b) for state, b in zip(seen.states, before, strict=True)
    )
    assert not any(files.state_of(path).is_same(b) for path, b in zip(good, before, strict=True))
    assert read([noise(), noise(seed=1)]).states is None


# --- Warnings --------------------------------------------------------------------------------


@pytest.fixture
def large(good, monkeypatch):
    """Files of which Pillow warns, since they have more pixels than it thinks right."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(good[0]).close()
    return good


def test_decoders_warnings_are_not_shown_and_the_programs_are(large):
    def on_file(done):
        warnings.warn("of the program", stacklevel=1)

    for threads in (1, None):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            before = list(warnings.filters)
            read_each(large, Reader(), on_file, threads=threads)
            assert warnings.filters == before
        assert [str(warning.message) for warning in shown] == ["of the program"] * 2


def test_threads_that_read_at_once_leave_the_programs_filters_as_they_are(large):
    """Also where the program replaces them meanwhile, and its own warnings are shown."""
    before = list(warnings.filters)

    def read_slowly(seconds):
        read(large, on_progress=lambda *_: time.sleep(seconds))

    threads = [
        threading.Thread(target=read_slowly, args=(seconds,)) for seconds in (0.1, 0.2, 0.02)
    ]
    for thread in threads[:2]:
        thread.start()
        time.sleep(0.05)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        threads[2].start()
        warnings.warn("of the program", stacklevel=1)
        with pytest.warns(Image.DecompressionBombWarning):
            Image.open(large[0]).close()
        for thread in threads:
            thread.join()
        within = list(warnings.filters)
    assert warnings.filters == before
    assert within[0][0] == "always" and within[1:] == before
    assert "of the program" in [str(warning.message) for warning in shown]


# --- Sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 5000), (5000, 3), (33, 31), (200, 100)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_every_size_becomes_square(good, tmp_path, fit, h, w, ending):
    image = np.full((h, w, 3), 200, np.uint8)
    seen = read_one(good, save(tmp_path / f"x.{ending}", image), resize=fit)
    assert seen.shape == (32, 32, 3)
    assert seen.max() >= 195
    assert (seen.min() < 100) == (fit == "letterbox" and h != w)


def test_crop_keeps_the_middle_and_squash_all(good, tmp_path):
    image = np.zeros((50, 150, 3), np.uint8)
    image[:, 50:100] = 255
    path = save(tmp_path / "x.png", image)
    assert read_one(good, path, resize="crop")[:, 2:-2].min() > 200
    assert read_one(good, path, resize="squash")[:, :8].max() == 0


def test_other_fits_and_sides_are_one_sentence(good):
    with pytest.raises(InputError, match="resize is 'stretch', expected one of squash, crop"):
        read(good, Reader(resize="stretch"))
    with pytest.raises(InputError, match="even side"):
        read(good, Reader(side=31))


# --- Thumbnails ------------------------------------------------------------------------------


def test_thumbnails_keep_proportions_and_small_images_their_pixels(tmp_path, good):
    wide = save(tmp_path / "wide.jpg", noise(300, 600))
    (tmp_path / "text.png").write_text("x")
    seen = []
    small = thumbnails([wide, good[0], tmp_path / "text.png"], 96, seen.append)
    assert Image.open(io.BytesIO(small[0])).size == (96, 48)
    np.testing.assert_array_equal(Image.open(io.BytesIO(small[1])), noise(32, 32, seed=1))
    assert small[2] == b"" and seen == [1, 2, 3]
    [grey] = thumbnails(noise(20, 20, 1)[None, ..., None])
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(grey)))[..., 0], noise(20, 20, 1)
    )


@pytest.mark.parametrize("side", [32, 128])
def test_one_pass_gives_the_same_images_and_thumbnails(tmp_path, good, side):
    """At several sizes, since a JPEG file is decoded at a size that depends on what it is for."""
    sizes = [(100, 90), (500, 600), (900, 800), (1600, 1700)]
    paths = [save(tmp_path / f"{h}.jpg", noise(h, w)) for h, w in sizes]
    (tmp_path / "text.png").write_text("x")
    sources = [*good, *paths, tmp_path / "text.png"]
    *apart, _ = read_each(sources, Reader(side))
    *both, error = read_each(sources, Reader(side), thumbnails=96)
    np.testing.assert_array_equal([a.pixels for a in both], [a.pixels for a in apart])
    assert [a.thumbnail for a in both] == thumbnails([*good, *paths])
    np.testing.assert_array_equal([a.facts for a in both], [a.facts for a in apart])
    assert isinstance(error, Exception)


# --- What cannot be read -----------------------------------------------------------------------


def bomb(path):
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"0"))
    body += png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncated(path):
    file = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(file, "JPEG")
    path.write_bytes(file.getvalue()[:3000])


BAD = {
    "bomb.png": (bomb, "exceeds limit of"),
    "truncated.jpg": (truncated, "truncated"),
    "empty.png": (lambda path: path.write_bytes(b""), "not an image"),
    "text.png": (lambda path: path.write_text("I am a letter"), "not an image"),
    "broken-link.png": (lambda path: path.symlink_to("nowhere.png"), "no such file"),
    "circle.png": (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
    "folder.png": (lambda path: path.mkdir(), "is a directory"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a regular file"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "terminal.jpg": (lambda path: path.symlink_to("/dev/tty"), "not a regular file"),
    "page.jpg": (lambda path: path.write_text("<!DOCTYPE html><p>404"), "starts as web page"),
    "drawing.jpg": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\\n"), "EPS: export"),
    "nan.tiff": (lambda path: save(path, np.full((9, 9), np.nan, np.float32)), "not finite"),
    "inf.tiff": (lambda path: save(path, np.full((9, 9), np.inf, np.float32)), "not finite"),
    "new\nline-ü.png": (lambda path: path.write_text("x"), "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_left_out_with_its_reason(good, tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    seen = []
    collection = read(
        [good[0], tmp_path / name, good[1]], on_progress=lambda *step: seen.append(step)
    )
    assert list(collection.ids) == [str(path) for path in good] and seen == [
        ("reading", i, 3) for i in (1, 2, 3)
    ]
    [left_out] = collection.unreadable
    assert left_out.path == str(tmp_path / name)
    assert reason in left_out.reason and "\n" not in left_out.reason


def test_the_first_reason_is_named_if_too_few_files_are_readable(good, tmp_path):
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(
        InputError, match=r"1 of 2 files are readable .*: not an image \(.*text.png"
    ):
        read([good[0], tmp_path / "text.png"], least=2)


def test_a_search_opens_no_pipe(good, tmp_path):
    for name in ("pipe", "pipe.txt", "pipe.heic"):
        os.mkfifo(tmp_path / name)
    began = time.monotonic()
    assert find_files(tmp_path)[0] == good and time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.eps", "x"])
def test_no_other_program_is_started(good, tmp_path, name, monkeypatch):
    """EPS is what Pillow gives to Ghostscript."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    save(tmp_path / name, noise(), format="EPS")
    [left_out] = read([*good, tmp_path / name]).unreadable
    assert left_out.reason.startswith("EPS: export")
    assert not (tmp_path / "started").exists()


def test_every_format_is_one_that_pillow_decodes_by_itself():
    assert not {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "PDF"} & set(
        formats.readable_formats()
    )
    assert {".jpg", ".png", ".tif", ".webp", ".gif", ".bmp", ".mpo"} <= formats.endings()
    assert not {".eps", ".ps", ".wmf", ".emf", ".mpg", ".pdf"} & formats.endings()


# --- Memory ----------------------------------------------------------------------------------


def test_threads_share_a_budget_of_pixels_and_a_larger_picture_is_alone():
    budget, now, most, alone = memory.Budget(100), [], [0], []
    lock = threading.Lock()

    def work(size):
        with budget.hold(size):
            with lock:
                now.append(size)
                most[0] = max(most[0], sum(now) if size <= 100 else 0)
                alone.append(size <= 100 or len(now) == 1)
            time.sleep(0.002)
            with lock:
                now.remove(size)

    threads = [threading.Thread(target=work, args=(30 if i % 5 else 300,)) for i in range(40)]
    [thread.start() for thread in threads], [thread.join(10) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    assert most[0] == 90 and all(alone)


def test_what_fails_among_others_is_tried_again_alone(good, monkeypatch):
    """Several threads may lack memory that one has; which files fail would be chance."""
    real, running, failed = decoding.decode, [], []

    def decode(path, *wanted):
        running.append(path)
        try:
            if path not in failed:
                failed.append(path)
                raise MemoryError if path == good[0] else OSError("could not create decoder object")
            assert len(running) == 1
            return real(path, *wanted)
        finally:
            running.remove(path)

    monkeypatch.setattr(decoding, "decode", decode)
    collection = read(good)
    assert list(collection.ids) == [str(path) for path in good]
    assert not collection.unreadable


def test_a_file_for_which_memory_never_suffices_says_so(good, monkeypatch):
    real = decoding.decode

    def decode(path, *wanted):
        if path == good[0]:
            raise MemoryError
        return real(path, *wanted)

    monkeypatch.setattr(decoding, "decode", decode)
    assert read(good).unreadable == [(str(good[0]), "not enough memory")]


PEAK = """
import sys
from e3jax.collection import read
collection = read(sys.argv[1:])
assert not collection.unreadable
# Not getrusage's, which a process inherits from the one that started it.
status = open("/proc/self/status").read().split()
print(int(status[status.index("VmHWM:") + 1]) * 1024)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's resident set size")
def test_six_large_transparent_pictures_take_the_memory_of_one(tmp_path):
    array = np.full((9000, 9000, 4), 200, np.uint8)
    paths = [save(tmp_path / f"{i}.png", array, compress_level=1) for i in range(6)]
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.2e9


# --- Damaged files ---------------------------------------------------------------------------


@pytest.mark.parametrize("files", [30, pytest.param(300, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("format", fuzz_images.FORMATS)
def test_damaged_images_are_read_or_named(tmp_path, mnist, format, files):
    paths = []
    for i in range(files):
        rng = np.random.default_rng([FORMAT_SEED, i])
        content = fuzz_images.sound(mnist.images[i, ..., 0], format, rng)
        paths.append(tmp_path / f"{i}.{format.lower()}")
        paths[-1].write_bytes(fuzz_images.damaged(content, rng))
    began = time.monotonic()
    collection, _ = read(paths), thumbnails(paths)
    assert time.monotonic() - began < 60
    assert len(collection.ids) + len(collection.unreadable) == files
    assert all(reason and "\n" not in reason for _, reason in collection.unreadable)


FORMAT_SEED = 17


def test_photos_of_damaged_metadata_are_read_if_their_pixels_are(tmp_path, mnist):
    paths = []
    for i in range(100):
        rng = np.random.default_rng([FORMAT_SEED, i])
        content = fuzz_images.sound(mnist.images[i, ..., 0], "JPEG", rng)
        start, end = fuzz_images.metadata_of_jpeg(content)
        # The lengths of segments stay, or what follows is lost to every program.
        at = int(rng.integers(start + 30, end))
        while any(at in range(s, s + 4) for s in segments(content)):
            at += 1
        damaged = bytearray(content)
        damaged[at] = rng.integers(0, 255)
        paths.append(tmp_path / f"{i}.jpg")
        paths[-1].write_bytes(damaged)
    assert not read(paths).unreadable


def segments(content):
    """Where a JPEG file's segments start, up to its first table."""
    at = 2
    while content[at + 1] != 0xDB:
        yield at
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]
    yield at


@contextlib.contextmanager
def nobody():
    """Becomes another user for a while, since root may read everything."""
    Image.init()  # its imports might not be readable for the other user
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs users as POSIX has them")
def test_files_without_permission_are_left_out():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [save(folder / f"{i}.png", noise(seed=i)) for i in range(3)]
        closed = save(folder / "closed" / "x.png").parent
        folder.chmod(0o755), paths[2].chmod(0), closed.chmod(0)
        with nobody():
            found, [left_out] = find_files(folder)
            collection = read(found)
        closed.chmod(0o700)
    assert found == paths and left_out == (str(closed), "permission denied")
    assert len(collection.images) == 2
    assert collection.unreadable == [(str(paths[2]), "permission denied")]

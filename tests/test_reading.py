"""Files of every kind become images of a bank, or entries in the list of what is left out."""

import contextlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e3jax.images import InputError
from e3jax.reading import FITS, find_files, read_files, thumbnails


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
    collection = read_files([*good, path], **options)
    assert not collection.unreadable
    return collection.bank.images[-1]


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
    "name, sentence",
    [("missing", "does not exist"), ("file", "is a file"), ("empty", "has no image files")],
)
def test_a_missing_or_empty_folder_is_one_sentence(tmp_path, name, sentence):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=sentence):
        find_files(tmp_path / name)


# --- Modes -----------------------------------------------------------------------------------


def test_images_of_the_right_size_come_back_as_they_are(good):
    collection = read_files(good)
    np.testing.assert_array_equal(collection.bank.images[0], noise(32, 32, seed=1))
    assert list(collection.bank.ids) == [str(path) for path in good]


def test_grey_images_alone_are_grey_and_among_colours_are_not(tmp_path, good):
    paths = [save(tmp_path / f"grey{i}.png", noise(32, 32, 1, i)) for i in (1, 2)]
    grey = read_files(paths).bank.images
    assert grey.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(grey[0, ..., 0], noise(32, 32, 1, 1))
    both = read_files([*good, *paths]).bank.images
    assert both.shape == (4, 32, 32, 3) and (both[2] == both[2, ..., :1]).all()
    assert read_files(paths, colour=True).bank.images.shape == (2, 32, 32, 3)
    luma = np.asarray(Image.open(good[0]).convert("L"))
    ours = read_files(good, colour=False).bank.images[0, ..., 0]
    assert np.abs(ours - luma.astype(int)).max() <= 1


def flat(mode, value, size=(32, 32)):
    return Image.new(mode, size, value)


@pytest.mark.parametrize(
    "name, image, expected",
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


# --- Sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("h, w", [(1, 1), (1, 5000), (5000, 3), (33, 31), (200, 100)])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_every_size_becomes_square(good, tmp_path, fit, h, w, ending):
    image = np.full((h, w, 3), 200, np.uint8)
    seen = read_one(good, save(tmp_path / f"x.{ending}", image), fit=fit)
    assert seen.shape == (32, 32, 3)
    assert seen.max() >= 195
    assert (seen.min() < 100) == (fit == "letterbox" and h != w)


def test_crop_keeps_the_middle_and_squash_all(good, tmp_path):
    image = np.zeros((50, 150, 3), np.uint8)
    image[:, 50:100] = 255
    path = save(tmp_path / "x.png", image)
    assert read_one(good, path, fit="crop")[:, 2:-2].min() > 200
    assert read_one(good, path, fit="squash")[:, :8].max() == 0


def test_other_fits_and_sides_are_one_sentence(good):
    with pytest.raises(InputError, match="fit is 'stretch', expected one of squash, crop"):
        read_files(good, fit="stretch")
    with pytest.raises(InputError, match="even side"):
        read_files(good, side=31)


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
    apart = read_files([*good, *paths, tmp_path / "text.png"], side)
    both = read_files([*good, *paths, tmp_path / "text.png"], side, thumbnails=96)
    np.testing.assert_array_equal(both.bank.images, apart.bank.images)
    assert both.thumbnails == thumbnails([*good, *paths]) and not apart.thumbnails
    assert both.unreadable == apart.unreadable != []


# --- What cannot be read -----------------------------------------------------------------------


def bomb(path):
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
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
    "nan.tiff": (lambda path: save(path, np.full((9, 9), np.nan, np.float32)), "not finite"),
    "inf.tiff": (lambda path: save(path, np.full((9, 9), np.inf, np.float32)), "not finite"),
    "new\nline-ü.png": (lambda path: path.write_text("x"), "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_left_out_with_its_reason(good, tmp_path, name):
    make, reason = BAD[name]
    make(tmp_path / name)
    seen = []
    collection = read_files([good[0], tmp_path / name, good[1]], on_file=seen.append)
    assert list(collection.bank.ids) == [str(path) for path in good] and seen == [1, 2, 3]
    [left_out] = collection.unreadable
    assert left_out.path == str(tmp_path / name)
    assert reason in left_out.reason and "\n" not in left_out.reason


def test_the_first_reason_is_named_if_too_few_files_are_readable(good, tmp_path):
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(
        InputError, match=r"1 of 2 files are readable .*: not an image \(.*text.png"
    ):
        read_files([good[0], tmp_path / "text.png"])


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
            collection = read_files(found)
        closed.chmod(0o700)
    assert found == paths and left_out == (str(closed), "permission denied")
    assert len(collection.bank.images) == 2
    assert collection.unreadable == [(str(paths[2]), "permission denied")]

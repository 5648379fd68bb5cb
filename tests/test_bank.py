"""Banks on disk hold what reading into memory gives, survive stops, and notice what changed."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from e3jax import bank, copies, reading
from e3jax.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(bank, "_SHARD", 8)
    monkeypatch.setattr(bank, "_TASK", 3)


@pytest.fixture
def photos(tmp_path):
    """30 files: grey ones, two of colour, two of 16 bits, and one that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(RANDOM.integers(0, 256, (25, 20, 30), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    for name in ("red", "sea"):
        Image.fromarray(RANDOM.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{name}.jpg")
    for name, most in (("deep", 4095), ("deeper", 1023)):
        Image.fromarray(RANDOM.integers(0, most, (33, 33), np.uint16)).save(folder / f"{name}.png")
    (folder / "broken\n\udcff.png").write_bytes(b"no image")
    return folder


def write(folder, photos, **options):
    paths, left_out = reading.find_files(photos)
    options = {"each": map} | options
    return bank.write(folder, paths, left_out=left_out, **options)


def test_it_holds_what_reading_into_memory_gives(photos, tmp_path):
    paths, _ = reading.find_files(photos)
    for colour in (None, False, True):
        expected = reading.read_files(paths, colour=colour)
        write(tmp_path / "bank", photos)
        found = bank.open_bank(tmp_path / "bank", colour=colour)
        assert found.bank.images.shape == expected.bank.images.shape
        np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)
        assert found.bank.ids.tolist() == expected.bank.ids.tolist()
        assert (found.unreadable, found.scale) == (expected.unreadable, expected.scale)
    assert expected.scale.integers == (0, 4095)
    grey = bank.open_bank(tmp_path / "bank").bank.images
    np.testing.assert_array_equal(found.digests, copies.digests(grey[:]))
    # WebP files; those of more than 8 bits are made when they are asked for.
    has_none = [not content for content in found.thumbnails]
    assert [os.path.basename(path)[:4] for path in found.bank.ids[has_none]] == ["deep", "deep"]


def test_it_is_indexed_like_an_array():
    array = RANDOM.integers(0, 256, (20, 2, 2, 1), np.uint8)
    pieces = np.split(array, [3, 3, 11])
    found = bank.Joined(pieces.__getitem__, [3, 0, 8, 9], array[:0])
    assert (len(found), found.shape, found.dtype) == (20, array.shape, np.uint8)
    mask = np.arange(20) % 3 == 1
    for index in (5, -1, slice(None), slice(2, 13), slice(15, None, 2), [7, 7, 0, 19], [], mask):
        np.testing.assert_array_equal(found[index], array[index])
        np.testing.assert_array_equal(found.of(np.arange(20)[::-1])[index], array[::-1][index])
    np.testing.assert_array_equal(np.asarray(found), array)
    np.testing.assert_array_equal(list(found), array)
    with pytest.raises(IndexError):
        found[20]


def test_a_second_call_reads_only_what_changed(photos, tmp_path):
    read = []

    def each(function, tasks):
        for task in tasks:
            read.extend(os.path.basename(path) for path in task[0])
            yield function(task)

    write(tmp_path / "bank", photos, each=each)
    assert len(read) == 30
    write(tmp_path / "bank", photos, each=each)
    assert len(read) == 30
    Image.new("L", (9, 9), 77).save(photos / "12.png")
    found = write(tmp_path / "bank", photos, each=each)
    assert "12.png" in read[30:] and len(read) == 38
    paths = [os.path.basename(path) for path in found.bank.ids]
    assert (found.bank.images[paths.index("12.png")] == 77).all()
    (photos / "sea.jpg").unlink()
    found = write(tmp_path / "bank", photos, each=each)
    assert len(found.bank.images) == 28
    expected = reading.read_files(reading.find_files(photos)[0])
    np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)
    write(tmp_path / "bank", photos, each=each, side=16)
    assert bank.open_bank(tmp_path / "bank").bank.images.shape == (28, 16, 16, 3)


@pytest.mark.parametrize("after", range(0, 11, 2))
def test_what_was_finished_before_a_stop_is_not_read_again(photos, tmp_path, after):
    read, stops = [], [after]

    def each(function, tasks):
        for number, task in enumerate(tasks):
            if number in stops:
                stops.clear()
                raise KeyboardInterrupt
            read.append(task)
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "bank", photos, each=each)
    with pytest.raises(InputError, match="unfinished: give the command that made it once more"):
        bank.open_bank(tmp_path / "bank")
    found = write(tmp_path / "bank", photos, each=each)
    assert len(read) <= 11 + 2  # of 11 tasks those of one shard are done twice
    expected = reading.read_files(reading.find_files(photos)[0])
    np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)


def test_files_of_more_than_8_bits_share_a_scale_whenever_they_came(photos, tmp_path):
    write(tmp_path / "bank", photos)
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(photos / "deepest.png")
    found = write(tmp_path / "bank", photos)
    expected = reading.read_files(reading.find_files(photos)[0])
    assert found.scale == expected.scale and found.scale.integers == (0, 65535)
    np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)


def test_arrays_of_any_lengths_make_a_bank(tmp_path, mnist):
    images = mnist.images[:30]
    found = bank.write_arrays(tmp_path / "bank", [images[:5], images[5:25], images[25:]])
    np.testing.assert_array_equal(found.bank.images[:], images)
    np.testing.assert_array_equal(found.bank.ids, np.arange(30))
    with pytest.raises(InputError, match="images of several sides"):
        bank.write_arrays(tmp_path / "bank", [images, np.zeros((2, 16, 16, 1), np.uint8)])
    colour = RANDOM.integers(0, 256, (9, 32, 32, 3), np.uint8)
    found = bank.write_arrays(tmp_path / "bank", [images, colour])
    np.testing.assert_array_equal(found.bank.images[:30], images.repeat(3, axis=-1))
    np.testing.assert_array_equal(found.bank.images[30:], colour)


def test_banks_are_joined_without_a_copy(photos, tmp_path):
    paths = reading.find_files(photos)[0]
    deep = [path for path in paths if "deep" in path.name or "1" in path.name]
    others = [path for path in paths if path not in deep]
    for name, some in (("a", others[:9]), ("b", deep), ("c", others[9:])):
        bank.write(tmp_path / name, some, each=map)
    bank.join(tmp_path / "bc", [tmp_path / "b", tmp_path / "c"])
    joined = bank.join(tmp_path / "abc", [tmp_path / "a", tmp_path / "bc", tmp_path / "a"])
    assert os.listdir(tmp_path / "abc") == [bank.ABOUT]
    expected = reading.read_files([*others[:9], *deep, *others[9:]])
    for found in (joined, bank.open_bank(tmp_path / "abc"), pickle.loads(pickle.dumps(joined))):
        np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)
        assert found.bank.ids.tolist() == expected.bank.ids.tolist()
        assert (found.unreadable, found.scale) == (expected.unreadable, expected.scale)
        np.testing.assert_array_equal(found.digests, copies.digests(expected.bank.images))


def test_banks_that_do_not_fit_together_are_not_joined(photos, tmp_path):
    paths = [path for path in reading.find_files(photos)[0] if path.stem.isdecimal()]
    for name, some, side in (("a", paths[:9], 32), ("b", paths[8:], 32), ("small", paths[:3], 16)):
        bank.write(tmp_path / name, some, side, each=map)
    bank.write_arrays(tmp_path / "arrays", [np.zeros((3, 32, 32), np.uint8)])
    for other, wrong in (
        ("b", f"{paths[8]} is in two of the banks"),
        ("small", "differ in side: make one bank of their files"),
        ("arrays", "differ in fit, has_paths"),
        ("photos", "is no bank of this version"),
    ):
        with pytest.raises(InputError, match=wrong):
            bank.join(tmp_path / "joined", [tmp_path / "a", tmp_path / other])
    for name in ("deep", "deeper"):
        bank.write(tmp_path / name, [photos / "0.png", photos / f"{name}.png"], each=map)
    with pytest.raises(InputError, match="differ in scale: make one bank of their files"):
        bank.join(tmp_path / "joined", [tmp_path / "deep", tmp_path / "deeper"])
    with pytest.raises(InputError, match="is one of the banks to join"):
        bank.join(tmp_path / "a", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "joined").exists()


def test_what_is_wrong_is_one_sentence(photos, tmp_path):
    with pytest.raises(InputError, match="is no bank of this version: make one with e3jax bank"):
        bank.open_bank(photos)
    with pytest.raises(InputError, match="has other files, expected a new folder for the bank"):
        write(photos, photos)
    write(tmp_path / "bank", photos)
    with pytest.raises(InputError, match="was made with image size 32, not 64: use that"):
        bank.open_bank(tmp_path / "bank", side=64)
    with pytest.raises(InputError, match="was made with resize squash, not crop"):
        bank.open_bank(tmp_path / "bank", fit="crop")
    for name in ("0000001.npy", "0000002.arrow"):
        damaged = f"is damaged, shard {name[6]} is missing or not whole"
        (tmp_path / "bank" / name).write_bytes(b"")
        with pytest.raises(InputError, match=damaged):
            bank.open_bank(tmp_path / "bank")
        (tmp_path / "bank" / name).unlink()
        with pytest.raises(InputError, match=damaged):
            bank.open_bank(tmp_path / "bank")
        write(tmp_path / "bank", photos)
    with bank.locks.held(tmp_path / "bank", "bank"):
        with pytest.raises(InputError, match="another bank command is at work in"):
            write(tmp_path / "bank", photos)
    few = tmp_path / "few"
    few.mkdir()
    Image.new("L", (9, 9)).save(few / "1.png")
    with pytest.raises(InputError, match="1 of 1 files are readable images, expected at least 2"):
        write(tmp_path / "other", few)
    with pytest.raises(InputError, match="0 of 0 files are readable images"):
        bank.write(tmp_path / "none", [])
    with pytest.raises(InputError, match="no arrays of images, expected at least one"):
        bank.write_arrays(tmp_path / "none", [])


@pytest.mark.campaign
def test_files_are_decoded_in_processes(photos, tmp_path):
    found = bank.write(tmp_path / "bank", reading.find_files(photos)[0])
    expected = reading.read_files(reading.find_files(photos)[0])
    np.testing.assert_array_equal(found.bank.images[:], expected.bank.images)

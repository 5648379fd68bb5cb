"""Banks on disk hold what reading into memory gives, survive stops, and notice what changed."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import tempfile
from concurrent.futures import Executor, Future

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from PIL import Image

from e3jax.collection import Reader, Skipped, bank, copies, finding, lazy, read
from e3jax.collection.bank import opening, storage, writing
from e3jax.devices import engines
from e3jax.errors import InputError
from e3jax.work import files, locks

RANDOM, PROCESSES = np.random.default_rng(0), engines.local


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writing, "_SHARD", 8)
    monkeypatch.setattr(writing, "_BLOCK", 3)
    monkeypatch.setattr(engines, "local", lambda: None)


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
    paths, left_out = finding.find_files(photos)
    return bank.write(folder, paths, left_out=left_out, **options)


def content(folder):
    """What the files of a folder hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Counted(Executor):
    """Reads here, one block after the other, noting the names of files; stops before a block."""

    def __init__(self, names, stop_before=None):
        self.names, self.stop_before, self.count, self._max_workers = names, stop_before, 0, 1

    def submit(self, function, block):
        if self.count == self.stop_before:
            raise KeyboardInterrupt
        self.count += 1
        self.names += map(os.path.basename, block[0])
        future = Future()
        future.set_result(function(block))
        return future


def test_it_holds_what_reading_into_memory_gives(photos, tmp_path):
    paths, _ = finding.find_files(photos)
    for colour in (None, False, True):
        expected = read(paths, Reader(colour=colour))
        write(tmp_path / "bank", photos)
        found = read(tmp_path / "bank", Reader(colour=colour))
        assert found.images.shape == expected.images.shape
        np.testing.assert_array_equal(found.images[:], expected.images)
        assert found.ids.tolist() == expected.ids.tolist()
        np.testing.assert_array_equal(found.facts[:], expected.facts)
        np.testing.assert_array_equal(found.facts[[7, 2]], expected.facts[[7, 2]])
        assert found.input_digests[1:] == expected.input_digests[1:]
        assert (found.unreadable, found.reader) == (expected.unreadable, expected.reader)
    assert expected.reader.file_range.integers == (0, 4095)
    grey = bank.open_bank(tmp_path / "bank").images
    np.testing.assert_array_equal(found.digests, copies.digests(grey[:]))
    # WebP files; those of more than 8 bits are made when they are asked for.
    has_none = [not content for content in found.thumbnails]
    assert [os.path.basename(path)[:4] for path in found.ids[has_none]] == ["deep", "deep"]


def test_it_is_indexed_like_an_array():
    array = RANDOM.integers(0, 256, (20, 2, 2, 1), np.uint8)
    blocks = np.split(array, [3, 3, 11])
    found = lazy.LazyArray(blocks.__getitem__, [3, 0, 8, 9], array[:0])
    assert (len(found), found.shape, found.dtype) == (20, array.shape, np.uint8)
    mask = np.arange(20) % 3 == 1
    for index in (5, -1, slice(None), slice(2, 13), slice(15, None, 2), [7, 7, 0, 19], [], mask):
        np.testing.assert_array_equal(found[index], array[index])
        np.testing.assert_array_equal(found.take(np.arange(20)[::-1])[index], array[::-1][index])
    np.testing.assert_array_equal(np.asarray(found), array)
    np.testing.assert_array_equal(list(found), array)
    with pytest.raises(IndexError):
        found[20]


def test_a_second_call_reads_only_what_changed(photos, tmp_path):
    names = []
    executor = Counted(names)
    write(tmp_path / "bank", photos, executor=executor)
    assert len(names) == 30
    write(tmp_path / "bank", photos, executor=executor)
    assert len(names) == 30
    Image.new("L", (9, 9), 77).save(photos / "12.png")
    found = write(tmp_path / "bank", photos, executor=executor)
    assert "12.png" in names[30:] and len(names) == 38
    paths = [os.path.basename(path) for path in found.ids]
    assert (found.images[paths.index("12.png")] == 77).all()
    (photos / "sea.jpg").unlink()
    found = write(tmp_path / "bank", photos, executor=executor)
    assert len(found.images) == 28
    expected = read(finding.find_files(photos)[0])
    np.testing.assert_array_equal(found.images[:], expected.images)
    count = len(names)
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "link to the bank").symlink_to(tmp_path / "bank")
    found = write(tmp_path / "link to the bank", tmp_path / "link", executor=executor)
    assert len(names) == count  # the same files by other names, which they have from now on
    expected = read(finding.find_files(tmp_path / "link")[0])
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.unreadable == expected.unreadable


@pytest.mark.parametrize("after", range(0, 11, 2))
def test_what_was_finished_before_a_stop_is_not_read_again(photos, tmp_path, after):
    names = []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "bank", photos, executor=Counted(names, stop_before=after))
    with pytest.raises(InputError, match="unfinished: run the command that made it again"):
        bank.open_bank(tmp_path / "bank")
    again = Counted(names)
    found = write(tmp_path / "bank", photos, executor=again)
    assert after + again.count <= 11 + 3  # of 11 blocks those of one shard are read twice
    expected = read(finding.find_files(photos)[0])
    np.testing.assert_array_equal(found.images[:], expected.images)


def test_files_of_more_than_8_bits_share_a_scale_whenever_they_came(photos, tmp_path):
    write(tmp_path / "bank", photos)
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(photos / "deepest.png")
    found = write(tmp_path / "bank", photos)
    expected = read(finding.find_files(photos)[0])
    assert found.reader == expected.reader and found.reader.file_range.integers == (0, 65535)
    np.testing.assert_array_equal(found.images[:], expected.images)


def test_arrays_of_any_lengths_make_a_bank(tmp_path, mnist):
    images = mnist.images[:30]
    found = bank.write_arrays(tmp_path / "bank", [images[:5], images[5:25], images[25:]])
    np.testing.assert_array_equal(found.images[:], images)
    np.testing.assert_array_equal(found.ids, np.arange(30))
    assert found.states is None and found.inputs.keys() == {"images"}
    with pytest.raises(InputError, match="images of several sides"):
        bank.write_arrays(tmp_path / "other", [images, np.zeros((2, 16, 16, 1), np.uint8)])
    colour = RANDOM.integers(0, 256, (9, 32, 32, 3), np.uint8)
    found = bank.write_arrays(tmp_path / "other", [images, colour])
    np.testing.assert_array_equal(found.images[:30], images.repeat(3, axis=-1))
    np.testing.assert_array_equal(found.images[30:], colour)


def damage(path):
    """As a copy that was stopped leaves it."""
    path.write_bytes(path.read_bytes()[:5000])


def test_arrays_that_come_again_are_there_and_others_do_not_replace_them(tmp_path, mnist):
    images, folder = mnist.images[:30], tmp_path / "bank"
    bank.write_arrays(folder, [images])
    before = content(folder)
    bank.write_arrays(folder, [images[:11], images[11:]])
    assert content(folder) == before
    for others in (images[::-1], images[:29], images[:24], mnist.images[:31], mnist.images[:40]):
        with pytest.raises(InputError, match="is a finished bank of other arrays: name another"):
            bank.write_arrays(folder, [others])
        assert content(folder) == before
    damage(folder / "0000001.arrow")
    np.testing.assert_array_equal(bank.write_arrays(folder, [images]).images[:], images)


def test_each_file_is_known_by_its_state_as_it_was_read(photos, tmp_path):
    found = write(tmp_path / "bank", photos)
    expected = np.array([files.state_of(path) for path in found.ids])
    assert (found.states.dtype, found.states.shape) == (np.int64, (29, 4))
    for index in (slice(None), slice(3, 20, 2), [28, 0, 0], []):
        np.testing.assert_array_equal(found.states[index], expected[index])
    # Times of clocks that were not set.
    for year, path in zip((-500, 600), found.ids, strict=False):
        os.utime(path, ns=(0, year * 365 * 24 * 3600 * 10**9))
    write(tmp_path / "bank", photos)
    # Another photo of the same name, size and time is read again.
    names, (first, *_) = [], found.ids
    shutil.copy2(first, tmp_path / "new.png")
    os.replace(tmp_path / "new.png", first)
    write(tmp_path / "bank", photos, executor=Counted(names))
    assert os.path.basename(first) in names and len(names) == 8


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
def test_files_of_a_disk_that_was_mounted_again_are_not_read_again(photos, tmp_path):
    write(tmp_path / "bank", photos)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        shutil.copytree(photos, disk, dirs_exist_ok=True)
        shutil.rmtree(photos)
        photos.symlink_to(disk)
        names = []
        write(tmp_path / "bank", photos, executor=Counted(names))
        assert not names


def test_banks_are_joined_without_a_copy(photos, tmp_path):
    paths = finding.find_files(photos)[0]
    deep = [path for path in paths if "deep" in path.name or "1" in path.name]
    others = [path for path in paths if path not in deep]
    for name, some in (("a", others[:9]), ("b", deep), ("c", others[9:])):
        bank.write(tmp_path / name, some)
    bank.join(tmp_path / "bc", [tmp_path / "b", tmp_path / "c"])
    joined = bank.join(tmp_path / "abc", [tmp_path / "a", tmp_path / "bc", tmp_path / "a"])
    assert os.listdir(tmp_path / "abc") == [storage.ABOUT]
    expected = read([*others[:9], *deep, *others[9:]])
    for found in (joined, bank.open_bank(tmp_path / "abc"), pickle.loads(pickle.dumps(joined))):
        np.testing.assert_array_equal(found.images[:], expected.images)
        assert found.ids.tolist() == expected.ids.tolist()
        assert (found.unreadable, found.reader) == (expected.unreadable, expected.reader)
        np.testing.assert_array_equal(found.digests, copies.digests(expected.images))


def test_banks_that_do_not_fit_together_are_not_joined(photos, tmp_path):
    paths = [path for path in finding.find_files(photos)[0] if path.stem.isdecimal()]
    for name, some, side in (("a", paths[:9], 32), ("b", paths[8:], 32), ("small", paths[:3], 16)):
        bank.write(tmp_path / name, some, Reader(side))
    bank.write_arrays(tmp_path / "arrays", [np.zeros((3, 32, 32), np.uint8)])
    for other, wrong in (
        ("b", f"{paths[8]} is in two of the banks"),
        ("small", "differ in side: make one bank of their files"),
        ("arrays", "differ in resize, has_paths"),
        ("photos", "is not a bank of this version"),
    ):
        with pytest.raises(InputError, match=wrong):
            bank.join(tmp_path / "joined", [tmp_path / "a", tmp_path / other])
    for name in ("deep", "deeper"):
        bank.write(tmp_path / name, [photos / "0.png", photos / f"{name}.png"])
    with pytest.raises(InputError, match="differ in scale: make one bank of their files"):
        bank.join(tmp_path / "joined", [tmp_path / "deep", tmp_path / "deeper"])
    assert not (tmp_path / "joined").exists()
    # The same file by another name.
    (tmp_path / "link").symlink_to(photos)
    bank.write(tmp_path / "c", [tmp_path / "link" / path.name for path in paths[8:12]])
    with pytest.raises(InputError, match="is in two of the banks"):
        bank.join(tmp_path / "joined", [tmp_path / "b", tmp_path / "c"])


@pytest.fixture
def halves(photos, tmp_path):
    """Two banks, "a" and "b", and "ab", joined of them."""
    paths = [path for path in finding.find_files(photos)[0] if path.stem.isdecimal()]
    for name, half in zip("ab", (paths[:9], paths[9:]), strict=True):
        bank.write(tmp_path / name, half)
    bank.join(tmp_path / "ab", [tmp_path / "a", tmp_path / "b"])
    return [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("place", ["a", "x/../b", "link", "link/inside", "a/deep/inside", "ab"])
def test_no_bank_is_joined_into_one_of_its_own_banks(halves, tmp_path, monkeypatch, place):
    (tmp_path / "link").symlink_to("b")
    before = [content(folder) for folder in (*halves, tmp_path / "ab")]
    for folder in (tmp_path / place, place):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="is one of the banks to join, or in one: name a new"):
            bank.join(folder, [*halves, tmp_path / "ab"])
    assert [content(folder) for folder in (*halves, tmp_path / "ab")] == before


def test_a_bank_is_joined_once_however_it_is_spelled(halves, tmp_path):
    (tmp_path / "link").symlink_to("b")
    folders = [*halves, tmp_path / "link", tmp_path / "a" / ".." / "b", tmp_path / "ab"]
    assert len(bank.join(tmp_path / "joined", folders).images) == 25
    about = json.loads((tmp_path / "joined" / storage.ABOUT).read_text())
    assert about["banks"] == list(map(os.path.realpath, halves))
    (tmp_path / "link").unlink()
    assert len(bank.open_bank(tmp_path / "joined").images) == 25


def test_a_joined_bank_may_grow_and_is_not_replaced(halves, photos, tmp_path):
    bank.write(tmp_path / "c", [photos / "sea.jpg", photos / "red.jpg"])
    with pytest.raises(InputError, match=f"is a finished bank of other banks, e.g. {halves[1]}"):
        bank.join(tmp_path / "ab", [halves[0], tmp_path / "c"])
    assert len(bank.join(tmp_path / "ab", [*halves, tmp_path / "c"]).images) == 27
    shutil.rmtree(halves[1])
    assert len(bank.join(tmp_path / "ab", [halves[0], tmp_path / "c"]).images) == 11


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("side", "of files with image size 32 and resize squash, not of files with image size 16"),
        ("fit", "and resize squash, not of files with image size 32 and resize crop: name another"),
        ("arrays", "and resize squash, not of arrays with image size 32: name another folder"),
        ("banks", "and resize squash, not joined of banks: name another folder"),
        ("other files", "of other files, e.g. .*0.png: name another folder"),
        ("fewer files", "of other files, e.g. .*sea.jpg: name another folder"),
    ],
)
def test_a_finished_bank_is_not_made_into_another(halves, photos, tmp_path, kind, wrong):
    folder = tmp_path / "bank"
    write(folder, photos)
    before = content(folder)
    paths = finding.find_files(photos)[0]
    for name in "12":
        shutil.copy(photos / "1.png", tmp_path / f"{name}.png")
    do = {
        "side": lambda: write(folder, photos, reader=Reader(16)),
        "fit": lambda: write(folder, photos, reader=Reader(resize="crop")),
        "arrays": lambda: bank.write_arrays(folder, [np.zeros((3, 32, 32), np.uint8)]),
        "banks": lambda: bank.join(folder, halves),
        "other files": lambda: bank.write(folder, [tmp_path / "1.png", tmp_path / "2.png"]),
        "fewer files": lambda: bank.write(folder, paths[:-1]),
    }
    with pytest.raises(InputError, match=f"is a finished bank .*{wrong}"):
        do[kind]()
    assert content(folder) == before
    with pytest.raises(InputError, match="is a finished bank (joined of banks, not )?of "):
        bank.write_arrays(tmp_path / "ab", [np.zeros((3, 32, 32), np.uint8)])


def test_an_unfinished_bank_of_other_settings_is_made_anew(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "bank", photos, executor=Counted([], stop_before=4))
    assert write(tmp_path / "bank", photos, reader=Reader(16)).images.shape == (29, 16, 16, 3)


def test_another_programs_files_are_never_taken_for_a_banks(photos, tmp_path):
    for text in ('{"bank": 2, "finished": true}', '{"bank": "e3jax"}', "", "{", "[]"):
        (folder := tmp_path / "theirs").mkdir()
        (folder / storage.ABOUT).write_text(text)
        (folder / "0000000.arrow").write_bytes(b"mine")
        before = content(folder)
        assert not bank.is_bank(folder)
        for do in (
            lambda: write(folder, photos),
            lambda: bank.write_arrays(folder, [np.zeros((3, 32, 32), np.uint8)]),
        ):
            with pytest.raises(InputError, match="has other files, expected a new folder"):
                do()
        assert content(folder) == before
        shutil.rmtree(folder)
    # What is beside the shards of a bank stays.
    write(tmp_path / "bank", photos)
    for name in ("notes.txt", "12.arrow", "00000001.arrow"):
        (tmp_path / "bank" / name).write_text("mine")
    (photos / "sea.jpg").unlink()
    write(tmp_path / "bank", photos)
    assert [name for name, text in content(tmp_path / "bank").items() if text == b"mine"]
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match="a file is a file, expected a folder for the bank"):
        write(tmp_path / "a file", photos)


def test_what_a_kill_leaves_is_no_other_programs(photos, tmp_path):
    (folder := tmp_path / "bank").mkdir()
    (folder / locks.NAME).touch()
    files.partial(folder / storage.ABOUT).write_text("{")
    with locks.held(folder, "bank"):  # a command that has just begun
        with pytest.raises(InputError, match="another command is at work in"):
            write(folder, photos)
    write(folder, photos)
    whole = content(folder)
    for name in ("0000001.arrow", "0000099.arrow", storage.ABOUT):
        files.partial(folder / name).write_bytes(b"half")
    (folder / ".mine.e3jax.partial").touch()
    write(folder, photos)
    assert content(folder) == whole | {".mine.e3jax.partial": b""}


def test_files_with_names_of_shards_that_the_bank_did_not_write_stay(photos, tmp_path):
    folder = tmp_path / "bank"
    write(folder, photos)  # shards 0 to 3
    theirs = {"0000005.arrow": b"mine", "0000004.arrow": b"mine", "0000000.npy": b"mine"}
    pa.feather.write_feather(pa.table({"a": [1, 2]}), tmp_path / "numbers")
    theirs["0000006.arrow"] = (tmp_path / "numbers").read_bytes()
    for name, text in theirs.items():
        (folder / name).write_bytes(text)

    def check():
        assert content(folder).items() >= theirs.items()

    write(folder, photos)
    check()
    Image.new("L", (9, 9), 77).save(photos / "0.png")  # shard 0 is read again
    write(folder, photos)
    check()
    for path in sorted(photos.glob("1?.png")):  # a shard fewer or two
        path.unlink()
    assert len(write(folder, photos).images) == 19
    assert not (folder / "0000003.arrow").exists()
    check()
    for i in range(30):
        shutil.copy(photos / "1.png", photos / f"z{i}.png")
    before = content(folder)
    with pytest.raises(
        InputError, match="0000004.arrow exists and was not written by e3jax, .*: move it"
    ):
        write(folder, photos)
    assert content(folder) == before
    # A bank of arrays, begun and given up.
    folder, theirs = tmp_path / "arrays", {"0000001.arrow": b"mine"}

    def arrays():
        yield np.zeros((9, 32, 32), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bank.write_arrays(folder, arrays())
    (folder / "0000001.arrow").write_bytes(b"mine")
    with pytest.raises(InputError, match="0000001.arrow exists and was not written by"):
        bank.write_arrays(folder, [np.zeros((9, 32, 32), np.uint8)])
    check()
    assert len(bank.write_arrays(folder, [np.zeros((8, 32, 32), np.uint8)]).images) == 8
    check()


def test_values_of_more_than_8_bits_that_are_damaged_are_read_again(photos, tmp_path):
    paths = [photos / name for name in ("deep.png", *(f"{i}.png" for i in range(10, 17)))]
    folder, names = tmp_path / "bank", []
    before = bank.write(folder, paths).images[:]
    shard = folder / "0000000.arrow"
    whole = shard.read_bytes()
    at = whole.index(b"NUMPY") + 200  # in the values
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    paths.append(photos / "3.png")
    with pytest.raises(InputError, match="is damaged, shard 0 is missing or not whole: run the"):
        bank.write(folder, paths)
    assert (bank.write(folder, paths, executor=Counted(names)).images[:-1] == before).all()
    assert len(names) == 8


def test_a_file_that_comes_by_several_names_of_its_folder_is_read_once(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    names = ["1.png", "2.png"]
    paths = [os.path.join(photos, name) for name in names]
    others = [tmp_path / "link" / "1.png", f"{photos}/../photos/2.png", photos / "1.png"]
    read_names = []
    for _ in range(2):
        opened = bank.write(tmp_path / "bank", [*paths, *others], executor=Counted(read_names))
        assert opened.ids.tolist() == paths
        assert read_names == names
    identity = finding.identities()
    assert len(set(map(identity, map(str, [*paths, *others])))) == 2


def test_only_plain_files_are_taken_for_what_a_kill_left(photos, tmp_path):
    write(tmp_path / "bank", photos)
    (tmp_path / "mine").write_bytes(b"mine")
    linked, link, plain, folder = (
        files.partial(tmp_path / "bank" / f"000000{i}.arrow") for i in range(4)
    )
    os.link(tmp_path / "mine", linked)
    link.symlink_to(tmp_path / "mine")
    plain.write_bytes(b"half")
    folder.mkdir()
    write(tmp_path / "bank", photos)
    assert linked.read_bytes() == b"mine" and link.is_symlink() and folder.is_dir()
    assert not plain.exists()


def test_whoever_reads_a_bank_that_is_changed_is_told(photos, tmp_path):
    opened = write(tmp_path / "bank", photos)
    images = opened.images[:]
    write(tmp_path / "bank", photos)  # changes nothing
    again = bank.open_bank(tmp_path / "bank")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).images[:], images)
    Image.new("L", (9, 9), 77).save(photos / "12.png")
    write(tmp_path / "bank", photos)
    opening._mapped.cache_clear()  # as a process has that did not read before
    for each in (opened, again, pickle.loads(pickle.dumps(opened))):
        for column in (each.images, each.ids, each.thumbnails, each.states):
            with pytest.raises(InputError, match="changed, or removed, while it was being read"):
                column[[12]]
    opened = bank.open_bank(tmp_path / "bank")
    assert np.abs(np.int64(opened.images[:]) - images).max()
    shutil.rmtree(tmp_path / "bank")
    opening._mapped.cache_clear()
    with pytest.raises(InputError, match="changed, or removed, while it was being read"):
        opened.images[3]


def test_what_was_mapped_before_a_change_is_what_was_opened(photos, tmp_path):
    opened = write(tmp_path / "bank", photos)
    images, ids = opened.images[:], opened.ids.tolist()
    Image.new("L", (9, 9), 77).save(photos / "12.png")
    write(tmp_path / "bank", photos)
    np.testing.assert_array_equal(opened.images[:], images)
    assert opened.ids.tolist() == ids


# --- Moved ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(photos, tmp_path):
    """A folder of photos and banks, "banks/bank" and "joined", which have others from elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    photos.rename(disk / "photos")
    (tmp_path / "elsewhere").mkdir()
    for i in range(3):
        shutil.copy(disk / "photos" / "sea.jpg", tmp_path / "elsewhere" / f"{i}.jpg")
    deep = disk / "photos" / "2024" / "May"
    deep.mkdir(parents=True)
    for i in range(10, 20):
        (disk / "photos" / f"{i}.png").rename(deep / f"{i}.png")
    paths = [
        *finding.find_files(disk / "photos")[0],
        *finding.find_files(tmp_path / "elsewhere")[0],
    ]
    bank.write(disk / "banks" / "bank", paths)
    a = [path for i, path in enumerate(paths) if i % 2 or "deep" in path.name]
    for name, half in (("a", a), ("b", [path for path in paths if path not in a])):
        bank.write(disk / "banks" / name, half)
    bank.join(disk / "joined", [disk / "banks" / "a", disk / "banks" / "b"])
    return disk


@pytest.mark.parametrize("place", ["usb", "mnt/deep/er/disk", "disk/inside"])
@pytest.mark.parametrize("name", ["banks/bank", "joined"])
def test_files_that_were_moved_with_their_bank_are_there(disk, tmp_path, name, place):
    before = bank.open_bank(disk / name)
    expected = [path.replace(str(disk), str(tmp_path / place)) for path in before.ids]
    disk.rename(tmp_path / "on its way")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "on its way").rename(tmp_path / place)
    moved = bank.open_bank(tmp_path / place / name)
    assert moved.ids.tolist() == expected and all(map(os.path.exists, expected))
    assert [entry.path for entry in moved.unreadable] == [
        entry.path.replace(str(disk), str(tmp_path / place)) for entry in before.unreadable
    ]
    images = read(expected).images
    np.testing.assert_array_equal(moved.images[:], images)


def test_only_what_was_moved_has_another_name(disk, tmp_path):
    """A bank that was renamed, or moved without its files, or with some of them."""
    before = bank.open_bank(disk / "banks" / "bank").ids.tolist()
    (disk / "banks" / "bank").rename(disk / "other")
    opened = bank.open_bank(disk / "other")
    assert opened.ids.tolist() == before
    assert not [e for e in opened.unreadable if isinstance(e, Skipped)]
    # Other files where they were: the same names, not the same states.
    disk.rename(tmp_path / "usb")
    (disk / "photos").mkdir(parents=True)
    for path in (tmp_path / "usb" / "photos").iterdir():
        if path.is_file():
            shutil.copy(path, disk / "photos")
    (tmp_path / "usb" / "other").rename(tmp_path / "usb" / "banks" / "bank")
    opened = bank.open_bank(tmp_path / "usb" / "banks" / "bank")
    assert opened.ids.tolist() == [p.replace(str(disk), str(tmp_path / "usb")) for p in before]


@pytest.mark.parametrize("name", ["banks/bank", "joined"])
def test_files_that_are_gone_are_said_to_be_and_scored_all_the_same(disk, tmp_path, name):
    before = bank.open_bank(disk / name)
    (disk / "photos").rename(tmp_path / "away")
    for folder in (disk, tmp_path / "usb"):
        if not folder.exists():
            disk.rename(folder)
        opened = bank.open_bank(folder / name)
        notes = [e for e in opened.unreadable if isinstance(e, Skipped)]
        assert len(notes) == (1 if name != "joined" else 2)
        assert "are gone, neither where they were nor beside it" in notes[0].reason
        assert opened.ids.tolist() == before.ids.tolist()
        assert opened.images[:].shape == before.images.shape


def test_a_moved_bank_grows_without_reading_its_files_again(disk, tmp_path):
    disk.rename(tmp_path / "usb")
    folder, names = tmp_path / "usb" / "banks" / "bank", []
    with pytest.raises(InputError, match="is a finished bank of other files, e.g. .*/usb/photos"):
        bank.write(folder, finding.find_files(tmp_path / "elsewhere")[0])
    paths = [*finding.find_files(tmp_path / "usb" / "photos")[0]]
    paths += finding.find_files(tmp_path / "elsewhere")[0]

    Image.new("L", (9, 9)).save(tmp_path / "elsewhere" / "more.png")
    paths.append(tmp_path / "elsewhere" / "more.png")
    with pytest.raises(KeyboardInterrupt):
        bank.write(folder, paths, executor=Counted([], stop_before=0))
    found = bank.write(folder, paths, executor=Counted(names))
    assert len(names) == len(paths) % 8 and "more.png" in names
    expected = read(paths)
    assert found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_array_equal(found.images[:], expected.images)
    disk.mkdir()
    assert bank.open_bank(folder).ids.tolist() == expected.ids.tolist()


# --- What goes wrong -----------------------------------------------------------------------------


def test_what_is_wrong_is_one_sentence(photos, tmp_path):
    with pytest.raises(InputError, match="is not a bank of this version: make one with e3jax bank"):
        bank.open_bank(photos)
    with pytest.raises(InputError, match="has other files, expected a new folder for the bank"):
        write(photos, photos)
    write(tmp_path / "bank", photos)
    with pytest.raises(InputError, match="was made with image size 32, not 64: use that"):
        read(tmp_path / "bank", Reader(64))
    with pytest.raises(InputError, match="was made with resize squash, not crop"):
        read(tmp_path / "bank", Reader(resize="crop"))
    for name in ("0000001.arrow", "0000002.arrow"):
        damaged = f"is damaged, shard {name[6]} is missing or not whole"
        damage(tmp_path / "bank" / name)
        with pytest.raises(InputError, match=damaged):
            bank.open_bank(tmp_path / "bank")
        (tmp_path / "bank" / name).unlink()
        with pytest.raises(InputError, match=damaged):
            bank.open_bank(tmp_path / "bank")
        write(tmp_path / "bank", photos)
    with locks.held(tmp_path / "bank", "bank"):
        with pytest.raises(InputError, match="another command is at work in"):
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


@contextlib.contextmanager
def little_room(size):
    """Files have at most so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_shard_that_was_begun_anew_and_given_up_is_read_again(photos, tmp_path):
    """Its values of more than 8 bits, which wait in a file beside it, are those of its files."""
    paths = [photos / name for name in ("deep.png", "deeper.png", "1.png", "2.png")]
    expected = bank.write(tmp_path / "bank", paths)
    with little_room(5000), pytest.raises(OSError, match="File too large"):
        bank.write(tmp_path / "bank", [photos / "3.png", *paths])
    found = bank.write(tmp_path / "bank", paths)
    assert found.reader == expected.reader and found.reader.file_range.integers == (0, 4095)
    np.testing.assert_array_equal(found.images[:], read(paths).images)


def test_a_full_disk_loses_nothing_and_the_next_call_goes_on(photos, tmp_path):
    write(tmp_path / "bank", photos)
    Image.new("L", (9, 9), 77).save(photos / "zebra.png")
    for room in (10, 900, 4000, 20_000):
        with little_room(room), pytest.raises(OSError, match="File too large"):
            write(tmp_path / "bank", photos)
        assert not list((tmp_path / "bank").glob(".*"))
        if room == 10:  # too little to begin
            assert len(bank.open_bank(tmp_path / "bank").images) == 29
    names = []
    found = write(tmp_path / "bank", photos, executor=Counted(names))
    assert "zebra.png" in names and len(names) == 7  # of the last shard
    expected = read(finding.find_files(photos)[0])
    np.testing.assert_array_equal(found.images[:], expected.images)


def test_folders_may_have_any_name(photos, tmp_path):
    folder = tmp_path / "~" / "a \udcff\n folder"
    assert len(write(folder, photos).images) == 29
    bank.join(tmp_path / "\udcfe", [folder])
    assert len(bank.open_bank(tmp_path / "\udcfe").ids[:]) == 29


def test_files_are_decoded_in_processes(photos, tmp_path):
    found = write(tmp_path / "bank", photos, executor=PROCESSES())
    expected = read(finding.find_files(photos)[0])
    np.testing.assert_array_equal(found.images[:], expected.images)

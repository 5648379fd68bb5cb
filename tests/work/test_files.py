"""Files are written whole or not at all, and the cache folder is where the user wants it."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from e3jax.errors import InputError
from e3jax.work import files, locks, tensors
from e3jax.work.store import Store, flat, nested, work_key


def test_text_and_tables_are_utf8_and_keep_other_bytes_of_file_names(tmp_path):
    files.write_text(tmp_path / "a.txt", "é\udcff")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\xff"
    rows = ([i, name] for i, name in enumerate(['a "b", c', "\udcff"]))
    files.write_csv(tmp_path / "a.csv", ("number", "name"), rows)
    assert (tmp_path / "a.csv").read_bytes() == b'number,name\n0,"a ""b"", c"\n1,\xff\n'


@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_fails_leaves_the_previous_file_or_none(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)

    def fail(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, fail)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_what_a_kill_leaves_under_the_temporary_name_goes_with_the_next_write(tmp_path):
    files.partial(tmp_path / "a.txt").write_text("half of an older one, and longer")
    files.write_text(tmp_path / "a.txt", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "new"}


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to", "mkdir", "fifo"])
def test_what_is_not_ours_under_our_names_is_left(tmp_path, make):
    (tmp_path / "diary").write_text("mine")
    names = (files.partial(tmp_path / "a.txt"), tmp_path / locks.NAME)
    for path in names:
        if make == "fifo":
            os.mkfifo(path)
        elif make == "mkdir":
            path.mkdir()
        else:
            getattr(path, make)(tmp_path / "diary")
    with pytest.raises(InputError, match="has a name that e3jax uses, but e3jax did not write it"):
        files.write_text(tmp_path / "a.txt", "text")
    with pytest.raises(InputError, match="e3jax did not write it"), locks.held(tmp_path, "rank"):
        pass
    assert (tmp_path / "diary").read_text() == "mine" and all(map(os.path.lexists, names))


def test_a_file_of_the_users_is_no_lock(tmp_path):
    (tmp_path / locks.NAME).write_text("mine")
    with pytest.raises(InputError, match="e3jax did not write it"), locks.held(tmp_path, "rank"):
        pass
    assert (tmp_path / locks.NAME).read_text() == "mine"


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    files.write_text(tmp_path / "gone" / "below" / "a.txt", "text")
    assert (tmp_path / "gone" / "below" / "a.txt").read_text() == "text"


def test_writers_of_one_file_take_turns(tmp_path):
    def write(number):
        for _ in range(50):
            files.write_text(tmp_path / "a.txt", f"{number}" * 5000)
            assert len(set((tmp_path / "a.txt").read_text())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, None),
        (lambda path: path.write_text("mark and more"), None),
        (lambda path: path.write_text("\ufeffmark of a spreadsheet", "utf-8"), None),
        (lambda path: path.write_bytes(bytes(1 << 18) + b"mark"), None),
        (lambda path: path.write_text("mine"), "exists and was not written by e3jax"),
        (lambda path: path.touch(), "exists and was not written by e3jax"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("nowhere"), "exists and was not written by e3jax"),
        (lambda path: path.symlink_to("mine"), "exists and was not written by e3jax"),
        (lambda path: path.symlink_to("input"), "is an input of this command"),
        (lambda path: path.hardlink_to(path.with_name("input")), "is an input of this command"),
        (lambda path: os.mkfifo(path), "exists and was not written by e3jax"),
    ],
)
def test_outputs_replace_nothing_but_what_is_ours(tmp_path, make, sentence):
    (tmp_path / "mine").write_text("a letter")
    (tmp_path / "input").write_text("mark")
    path = tmp_path / "below" / ".." / "output"
    (tmp_path / "below").mkdir()
    make(tmp_path / "output")
    inputs = [tmp_path / "input", tmp_path / "missing"]
    if sentence is None:
        files.check_output(path, "mark", inputs)
    else:
        with pytest.raises(InputError, match=sentence):
            files.check_output(path, "mark", inputs)


def test_a_file_is_known_by_more_than_its_name(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("first")
    other.write_text("other")
    before = files.state_of(path)
    assert before.is_same(files.state_of(path)) and before.size == 5
    assert files.state_of(tmp_path / "none") == files.FileState()
    assert not before.is_same(files.FileState())
    # The same size and time, but another file.
    os.utime(other, ns=(before.changed, before.changed))
    os.replace(other, path)
    assert not before.is_same(files.state_of(path))
    # A disk that was mounted again numbers its files anew.
    assert before.is_same(before._replace(device=before.device + 1, inode=7))
    path.write_text("longer than it was")
    assert not files.state_of(path).is_same(before)


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("E3JAX_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert files.cache_folder("/c") == Path("/c")
    assert files.cache_folder() == Path("/a")
    monkeypatch.setenv("E3JAX_CACHE_DIR", "~/a")
    assert files.cache_folder() == Path.home() / "a"
    monkeypatch.delenv("E3JAX_CACHE_DIR")
    assert files.cache_folder() == Path("/b/e3jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "e3jax"


# --- What long work keeps ------------------------------------------------------------------------


def test_a_key_names_values_and_refuses_what_has_no_content():
    def key(**changed):
        values = {"a": 1, "b": (1.5, None, "x"), "c": {"d": np.arange(3)}} | changed
        return work_key(**values)

    assert key() == key(b=[1.5, None, "x"], a=np.int64(1)) and len(key()) == 32
    others = [key(a=2), key(a=True), key(b=(1.5, None, "y")), key(c={"d": np.arange(3.0)})]
    others += [key(c={"d": np.arange(3)[:, None]}), key(d=0)]
    assert len({key(), *others}) == len(others) + 1
    state = files.FileState(1, 2, 3, 4)
    assert key(a=state) != key(a=state._replace(size=5))
    for value in (print, np.random.RandomState(0), object(), np.array([print])):
        with pytest.raises(InputError, match="a is .* could not recognise"):
            key(a=value)


def test_a_key_is_the_same_in_another_process():
    code = "from e3jax.work.store import work_key; print(work_key(a=1, b='x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == work_key(b="x", a=1)


@pytest.mark.parametrize("on_disk", [False, True])
def test_work_is_kept_and_computed_once(tmp_path, on_disk):
    store = Store(tmp_path / "work" if on_disk else None, "name")
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3), "b/c": np.float32(2)}

    for _ in range(2):
        kept = store.get_or_compute("one", make)
        assert (kept["a"] == np.arange(3)).all() and kept["b/c"] == 2
    assert len(made) == 1 and "one" in store and "two" not in store


def test_each_work_has_a_folder_of_its_own_and_deletes_nothing_else(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "about.txt").write_text("my drawings")
    (folder / "years.npz").write_text("of work")
    mine = {path: path.read_text() for path in folder.iterdir()}
    first, second, third = (Store(folder, name) for name in ("first", "second", "third"))
    for store in (first, second, third):
        store["one"] = {"a": np.arange(3)}
        store.as_memmap("two", np.arange(3))
    for name in ("state.safetensors", ".state.safetensors.e3jax.partial"):
        files.write_text(folder / "first" / "training" / name, "")
    (folder / "second" / "notes.txt").write_text("mine")
    files.write_text(folder / "third" / "training" / "notes.txt", "mine")
    files.partial(folder / "first" / "one.npz").touch()
    assert "one" in Store(folder, "first")
    for store in (first, second, third):
        store.forget()
    left = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}
    assert left == {path.name: mine[path] for path in mine if path.suffix == ".txt"} | {
        "second/notes.txt": "mine",
        "third/training/notes.txt": "mine",
    }
    assert (folder / "years.npz").exists() and not (folder / "first").exists()
    with pytest.raises(InputError, match="has files that are not e3jax's"):
        Store(folder, "second")


def test_forgetting_that_was_stopped_is_work_that_was_stopped(tmp_path):
    """The newest goes first, for it follows from the older."""
    store, order = Store(tmp_path, "name"), ["seed", "config", "trained", "evidence"]
    for i, name in enumerate(order):
        store[name] = {"a": np.arange(3)}
        os.utime(tmp_path / "name" / f"{name}.npz", ns=(i, i))
    left = []

    def stop_after(path, *rest, **options):
        unlink(path, *rest, **options)
        left.append([name for name in order if name in store])

    with pytest.MonkeyPatch.context() as patch:
        unlink = os.unlink
        patch.setattr(os, "unlink", stop_after)
        store.forget()
    assert left[:4] == [order[:3], order[:2], order[:1], []]
    assert not (tmp_path / "name").exists()


def test_work_whose_folder_was_removed_goes_on(tmp_path):
    store = Store(tmp_path / "work", "name")
    store["one"] = {"a": np.arange(3)}
    shutil.rmtree(tmp_path / "work")
    assert "one" not in store
    store["two"] = {"a": np.arange(3)}
    assert "two" in Store(tmp_path / "work", "name")


def test_arrays_come_back_with_what_they_are_and_damage_is_seen(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.int32).reshape(2, 3).T, "a": np.ones(2, np.uint8)}
    about = {"name": "é", "parts": [1, 2.5, None]}
    tensors.write(tmp_path / "one", arrays, about)
    tensors.write(tmp_path / "two", dict(reversed(arrays.items())), about)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "two").read_bytes()
    back, about_back = tensors.read(tmp_path / "one")
    assert about_back == about and back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, strict=True)
    other = content.replace(b"2.5", b"3.5")
    for damaged in (content[:-1], content[:-1] + b"!", other, b"PK", b""):
        (tmp_path / "one").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or not written by e3jax"):
            tensors.read(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match="none"):
        tensors.read(tmp_path / "none")


def test_nested_dictionaries_come_back():
    tree = {"a": {"b": np.arange(2), "c": {"d": np.ones(1)}}, "e": np.zeros(3)}
    assert list(flat(tree)) == ["a/b", "a/c/d", "e"]
    assert nested(flat(tree)) == tree

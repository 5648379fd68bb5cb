"""Files are written whole or not at all, and the cache folder is where the user wants it."""

from pathlib import Path

import numpy as np
import pytest

from e3jax import files


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


@pytest.mark.parametrize("on_disk", [False, True])
def test_parts_are_kept_and_those_of_other_work_are_deleted(tmp_path, on_disk):
    folder = tmp_path / "parts" if on_disk else None
    parts = files.Parts(folder, "work")
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3), "b/c": np.float32(2)}

    for _ in range(2):
        found = parts.keep("one", make)
        assert (found["a"] == np.arange(3)).all() and found["b/c"] == 2
    assert len(made) == 1 and "one" in parts and "two" not in parts
    if on_disk:
        (folder / "training").mkdir()
        (folder / "training" / "state").touch()
        assert "one" in files.Parts(folder, "work")
        assert "one" not in files.Parts(folder, "other work")
        assert [path.name for path in folder.iterdir()] == ["about.txt"]
        (folder / "about.txt").rename(folder / "mine.txt")
        with pytest.raises(FileExistsError, match="has other files"):
            files.Parts(folder, "work")
        assert (folder / "mine.txt").exists()


def test_nested_dictionaries_come_back():
    tree = {"a": {"b": np.arange(2), "c": {"d": np.ones(1)}}, "e": np.zeros(3)}
    assert list(files.flat(tree)) == ["a/b", "a/c/d", "e"]
    assert files.nested(files.flat(tree)) == tree

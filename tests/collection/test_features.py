"""Features: vectors that there are, and those that a model of the user's makes."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from encoders import model
from onnx import TensorProto
from PIL import Image

from e3jax.collection import read
from e3jax.collection.features import Encoder, check_source, with_features
from e3jax.errors import InputError
from e3jax.work.progress import no_progress

VECTORS = np.float32(np.random.default_rng(0).normal(size=(4, 3)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        colour = (60 * i, 10, 255 - 60 * i)
        Image.new("RGB", (30 + i, 20), colour).save(folder / f"{i}.png")
    return folder


def attached(collection, source, folder=None):
    return with_features(collection, source, folder, no_progress)[0].features


def test_vectors_come_in_the_collections_order_or_by_path(folder, tmp_path):
    collection, back = read(folder), [3, 1, 0, 2]
    names = [str(folder / f"{i}.png") for i in back]
    np.save(tmp_path / "a.npy", VECTORS)
    np.savez(tmp_path / "b.npz", paths=names, features=VECTORS[back])
    np.savez(tmp_path / "names.npz", paths=[f"{i}.png" for i in back], features=VECTORS[back])
    relative = [f"photos/{i}.png" for i in back]  # to the folder of the table
    lists = {"path": relative, "features": VECTORS[back].tolist()}
    numbers = {"path": relative} | dict(zip("xyz", VECTORS[back].T, strict=True))
    for name, columns in {"c": lists, "d": numbers}.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    files = ("a.npy", "b.npz", "names.npz", "c.parquet", "d.parquet")
    by_path = dict(zip(names, VECTORS[back], strict=True))
    for source in (*(tmp_path / name for name in files), VECTORS, VECTORS.tolist(), by_path):
        np.testing.assert_array_equal(attached(collection, source), VECTORS)
    del by_path[names[2]]
    with pytest.raises(InputError, match=r"no features of .*0.png, one of 1 such files"):
        attached(collection, by_path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (VECTORS[:3], r"shape \(3, 3\), expected a vector for each of the 4 images"),
        (VECTORS[:, 0], r"shape \(4,\)"),
        (VECTORS[:, :0], r"shape \(4, 0\)"),
        (np.where(VECTORS > 0, np.nan, VECTORS), "not finite"),
    ],
)
def test_other_vectors_are_refused(folder, source, sentence):
    with pytest.raises(InputError, match=sentence):
        attached(read(folder), source)


def test_files_that_cannot_hold_features_are_refused(folder, tmp_path):
    for name in ("x.npy", "x.npz", "x.parquet", "x.onnx"):
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(InputError, match=name):
            attached(read(folder), tmp_path / name)
    np.savez(tmp_path / "y.npz", vectors=VECTORS)
    with pytest.raises(InputError, match="holds no features"):
        attached(read(folder), tmp_path / "y.npz")
    with pytest.raises(InputError, match="x.csv is not of a format of features"):
        check_source(tmp_path / "x.csv")
    with pytest.raises(InputError, match="does not exist"):
        check_source(tmp_path / "z.npy")


# --- Models --------------------------------------------------------------------------------------


MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        (["n", 3, 16, 16], {}, lambda x: (x / 255 - MEAN) / STD),
        (["n", 3, "h", "w"], {"pooled": False, "size": 8}, lambda x: (x / 255 - MEAN) / STD),
        ([3, 3, 16, 16], {"mean": "0 0 0", "std": "1 1 1"}, lambda x: x / 255),
        (["n", 16, 16, 3], {"kind": TensorProto.UINT8, "axes": (1, 2)}, lambda x: x),
    ],
)
def test_a_models_features_are_kept_until_the_work_is_finished(
    folder, tmp_path, monkeypatch, shape, options, expected
):
    collection, path = read(folder), model(tmp_path / "x.onnx", shape, **options)
    colours = np.float32([(60 * i, 10, 255 - 60 * i) for i in range(4)])
    features = attached(collection, path, tmp_path / "work")
    np.testing.assert_allclose(features, expected(colours), rtol=1e-5)
    monkeypatch.setattr(Encoder, "_of_images", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(attached(collection, path, tmp_path / "work"), features)


def test_arrays_are_encoded_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    path = model(tmp_path / "x.onnx", ["n", 3, 32, 32], mean="0 0 0", std="1 1 1")
    means = np.repeat(images.mean((1, 2)) / 255, 3, axis=1)
    np.testing.assert_allclose(attached(read(images), path), means, rtol=1e-5)


@pytest.mark.parametrize("shape", [["n", 4, 16, 16], ["n", 3], ["n", 3, 8, 8, 8]])
def test_a_model_of_something_else_is_refused(folder, tmp_path, shape):
    with pytest.raises(InputError, match="expected a batch of RGB images"):
        attached(read(folder), model(tmp_path / "x.onnx", shape, axes=(1,)))


def test_features_of_other_shapes_and_lost_files_are_one_sentence(folder, tmp_path):
    collection = read(folder)
    with pytest.raises(InputError, match=r"gives \(4, 3, 16\), expected"):
        attached(collection, model(tmp_path / "x.onnx", ["n", 3, 16, 16], axes=(2,)))
    (folder / "2.png").unlink()
    with pytest.raises(InputError, match="2.png can no longer be read"):
        attached(collection, model(tmp_path / "x.onnx", ["n", 3, 16, 16]))

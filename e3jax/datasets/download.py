"""The original files of the benchmarks, downloaded with TFDS's addresses and checksums."""

import contextlib
import importlib.metadata
import logging
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from e3jax.datasets.specs import SPECS, Candidate, Spec, Unavailable

PROBE_SECONDS = 5.0


def downloadable(name: str, cache: Path, announce: Callable[[str], None]) -> Candidate:
    """Prepares a download; the version of TFDS identifies its table of addresses and checksums."""
    identity = {"tfds": importlib.metadata.version("tensorflow-datasets")}
    return Candidate("download", identity, lambda: _read(name, cache, announce))


def registered(spec: Spec) -> dict:
    """TFDS's table of what to download: {url: UrlInfo(size, checksum, filename)}."""
    import tensorflow_datasets as tfds

    return tfds.builder_cls(spec.tfds_name).url_infos or {}


def _read(name: str, cache: Path, announce: Callable[[str], None]):
    """Downloads to ``<cache>/downloads/<name>``, or to a temporary folder if that fails."""
    import tensorflow_datasets as tfds

    spec, folder = SPECS[name], cache / "downloads" / name
    urllib3 = logging.getLogger("urllib3")
    with contextlib.ExitStack() as stack:
        stack.callback(tfds.enable_progress_bar)
        tfds.disable_progress_bar()
        stack.callback(urllib3.setLevel, urllib3.level)
        urllib3.setLevel(logging.ERROR)  # hides its warnings about retries
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            announce(f"{name}: {folder} cannot be created ({error}), not keeping the downloads")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="e3jax-")))
        paths, host = _download(tfds, spec, folder, announce)
        try:
            return *spec.parse(*paths), f"download:{host}"
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
            why = f"the files downloaded from {host} cannot be parsed ({error})"
            raise Unavailable(why) from error


def _download(tfds, spec: Spec, folder: Path, announce) -> tuple[list[Path], str]:
    """Puts the dataset's files into ``folder``, each complete and with the right checksum.

    Returns:
      The paths in the order of ``spec.files``, and the host that serves them.
    """
    url_infos = registered(spec)
    by_file = {Path(urlsplit(url).path).name: url for url in url_infos}
    if unknown := set(spec.files) - set(by_file):
        raise Unavailable(f"this version of TFDS does not know where to get {min(unknown)}")
    urls = {folder / file: by_file[file] for file in spec.files}
    host = urlsplit(by_file[spec.files[0]]).hostname
    checksum_of = tfds.download.checksums.compute_url_info
    missing = {
        path: url
        for path, url in urls.items()
        if not path.is_file() or checksum_of(path) != url_infos[url]
    }
    if missing:
        _probe(next(iter(missing.values())))
        size = sum(url_infos[url].size for url in missing.values()) / 2**20
        announce(f"{spec.tfds_name}: downloading {size:.1f} MiB from {host} into {folder}")
    for path, url in missing.items():
        _fetch(tfds, url, path, url_infos)
    return list(urls), host


def _fetch(tfds, url: str, path: Path, url_infos: dict) -> None:
    """Downloads a file with TFDS's manager and moves it to its path.

    The manager leaves partial and wrong files behind and never checks a downloaded file again. So
    it gets a temporary folder, from which only a file with the right checksum is moved out.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="incoming-") as incoming:
            manager = tfds.download.DownloadManager(
                download_dir=incoming, url_infos=url_infos, force_checksums_validation=True
            )
            os.replace(manager.download(url), path)
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        why = "has the wrong checksum (damaged in transit, or changed)"
        raise Unavailable(f"the download of {url} {why}") from error
    except (OSError, tfds.download.DownloadError) as error:  # requests' errors are OSErrors
        raise Unavailable(f"the download of {url} failed ({type(error).__name__})") from error


def _probe(url: str) -> None:
    """Requests ``url`` once, through any proxy set in the environment, within PROBE_SECONDS.

    TFDS's manager would retry for 200 s. The request runs in a thread because timeouts do not cover
    DNS lookups; it is a whole request because a proxy accepts connections to hosts that it cannot
    reach.

    Raises:
      Unavailable: no answer within PROBE_SECONDS, or an HTTP error.
    """
    import requests

    host = urlsplit(url).hostname
    failure = f"no network ({host} does not answer within {PROBE_SECONDS:g} s)"

    def request() -> None:
        nonlocal failure
        try:
            with requests.get(url, stream=True, timeout=PROBE_SECONDS) as response:
                failure = "" if response.ok else f"{url} answers HTTP {response.status_code}"
        except requests.RequestException as error:
            failure = f"no network ({host}: {type(error).__name__})"

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if failure:
        raise Unavailable(failure)

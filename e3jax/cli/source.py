"""What rank, score and bank are given: PHOTOS, and an engine to read them with."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from e3jax import devices
from e3jax.cli import console
from e3jax.collection import Collection, Reader, Skipped, Unreadable, bank, finding, opening
from e3jax.devices import engines, runtime
from e3jax.errors import InputError
from e3jax.images.high_depth import ValueRange
from e3jax.work.files import printable
from e3jax.work.progress import Progress


class Photos(NamedTuple):
    """What PHOTOS are.

    Attributes:
      files: images, by absolute paths, each once.
      left_out: what is below the folders and cannot be read.
      bank: the folder of a bank, instead of files.
    """

    files: Sequence[Path] = ()
    left_out: Sequence[Unreadable] = ()
    bank: Path | None = None

    @property
    def is_large(self) -> bool:
        """Whether it is a bank, or so many files that one is made of them."""
        return self.bank is not None or opening.is_large(self.files)

    def read(
        self,
        reader: Reader,
        made_bank: Path,
        executor: Executor | None,
        on_progress: Progress,
        least: int = 1,
    ) -> Collection:
        """The images; many files become a bank in the folder ``made_bank`` first."""
        return opening.read(
            self.bank or self.files,
            reader,
            least=least,
            on_progress=on_progress,
            bank=made_bank,
            executor=executor,
            left_out=self.left_out,
        )


def find(photos: Sequence[Path]) -> Photos:
    """The images of PHOTOS, without those in a quarantine."""
    if not any(map(bank.is_bank, photos)):
        return Photos(*finding.find_all(path.absolute() for path in photos))
    if len(photos) > 1:
        raise InputError(
            "a bank cannot be combined with other photos: give one bank, or folders and files of "
            "images; e3jax bank joins several banks into one"
        )
    return Photos(bank=photos[0].absolute())


def start_devices(deterministic: bool) -> None:
    """Starts what work is done on; ``deterministic`` as on the command line."""
    runtime.prepare()
    if deterministic:
        devices.make_deterministic()
    runtime.devices()


def decoding_engine(engine: str, ray_address: str | None) -> Executor | None:
    """Where files are decoded; None for this machine."""
    return engines.on_ray(ray_address) if engine == "ray" else None


def scoring_engine(
    screen: console.Console, engine: str, ray_address: str | None
) -> Executor | None:
    """Where blocks of images are scored, which is printed; None for this process."""
    if engine != "ray":
        return None
    ray = engines.on_ray(ray_address, "best")
    workers = f"{ray.nodes} node(s) score on {ray.at_once} x {ray.platform.upper()}"
    slow = ray.platform == "cpu" != runtime.devices()[0].platform
    screen.print(f"Ray: {workers}{', much slower than this machine' if slow else ''}")
    return ray


def print_left_out(
    screen: console.Console, left_out: Iterable[Unreadable], file_range: ValueRange
) -> None:
    """Prints what could not be read, what was not looked at, and how deep files were read."""
    skipped = [entry.reason for entry in left_out if isinstance(entry, Skipped)]
    unreadable = [entry for entry in left_out if not isinstance(entry, Skipped)]
    console.list_files(screen, "left out", [f"{path}: {reason}" for path, reason in unreadable])
    for note in skipped + file_range.notes:
        screen.print(printable(note))

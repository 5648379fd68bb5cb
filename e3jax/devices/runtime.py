"""Settings that programs make before they first use a device. Importing this sets nothing."""

import collections
import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import stat
from pathlib import Path
from typing import Any

import jax
import joblib

from e3jax.devices.configuration import setting
from e3jax.errors import InputError, warn
from e3jax.work.files import cache_folder

_MOST_CPU_DEVICES = 64  # the quick protocol's batch size
# On CPUs these versions refuse the programs that they kept, with a page of warnings for each
# (jax-ml/jax issue 38445).
_REFUSES_KEPT = jax.__version_info__ < (0, 10, 2)
# Of the default programs on two cores (results/compiled.csv), roughly; a v6e takes twice that.
_COMPILE_SECONDS = {"gpu": 30, "tpu": 120}
# What JAX's plug-ins for accelerators are called, as modules and as distributions.
_ACCELERATORS = (
    "jax_cuda12_plugin",
    "jax_cuda13_plugin",
    "jax_rocm60_plugin",
    "jax_rocm7_plugin",
    "libtpu",
)


def prepare() -> None:
    """Splits the CPU into devices and keeps compiled programs in the user's cache folder.

    There is one device per core, because XLA uses the cores of a machine better through a mesh than
    by itself. ``JAX_NUM_CPU_DEVICES`` and XLA's own flag take precedence, and so does JAX if it has
    started already.
    """
    is_set = setting("num_cpu_devices") != -1
    if not is_set and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has started
            jax.config.update("jax_num_cpu_devices", cpu_devices(cores()))
    if not _REFUSES_KEPT or any(map(_is_installed, _ACCELERATORS)):
        _keep_compiled_programs()


def devices() -> list[Any]:
    """All devices of JAX, of all processes of the job; starts JAX.

    A warning says if an accelerator's plug-in is installed but JAX uses the CPU.

    Raises:
      InputError: JAX does not find the devices that the environment names.
      RuntimeError: the process was forked from one in which this was called: JAX would deadlock.
    """
    _started_in.add(os.getpid())
    if len(_started_in) > 1:
        raise RuntimeError(
            "this process was forked after e3jax had used JAX, which then deadlocks: start "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork first"
        )
    try:
        everything = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "no such device was found").splitlines()[0]
        raise InputError(
            f"JAX cannot start on {setting('platforms') or 'any device'} ({reason}): unset or "
            "change JAX_PLATFORMS, or install what that device needs"
        ) from error
    if everything[0].platform == "cpu" and not _is_cpu_chosen():
        _warn_of_fallback()
    return everything


_started_in: set[int] = set()


def describe_devices() -> str:
    """All devices in words, e.g. "1 x NVIDIA H100 80GB HBM3" or "CPU, 2 devices"; starts JAX."""
    everything = devices()
    if everything[0].platform == "cpu":
        return f"CPU, {len(everything)} device{'s' * (len(everything) > 1)}"
    kinds = collections.Counter(device.device_kind for device in everything)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def memory_limit(device: Any) -> int | None:
    """The bytes of a device's memory that JAX may use; None where it does not tell, as on CPUs."""
    return (device.memory_stats() or {}).get("bytes_limit")


def describe_work(network: Any, *details: str) -> str:
    """What works on what, in a line: "Device: 1 x NVIDIA H100, wrn-10-4, tensorfloat32".

    It also says how long programs take to compile, on accelerators where none are kept.
    """
    name = str(getattr(network, "__name__", network))
    line = f"Device: {', '.join([describe_devices(), name, *details])}"
    seconds = _COMPILE_SECONDS.get(devices()[0].platform)
    folder = Path(setting("compilation_cache_dir") or os.devnull)
    is_kept = folder.is_dir() and any(folder.iterdir())
    return f"{line}; compiling, about {seconds} s" if seconds and not is_kept else line


def _is_cpu_chosen() -> bool:
    """Whether the user asked for the CPU, or hid all GPUs, as batch systems do."""
    platforms = setting("platforms") or jax.config.values.get("jax_platform_name") or ""
    visible = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    return platforms.startswith("cpu") or any(os.environ.get(v) in ("", "-1") for v in visible)


@functools.cache
def _warn_of_fallback() -> None:
    """Warns, once per process, if there is a plug-in for an accelerator."""
    if installed := [name for name in _ACCELERATORS if _is_installed(name)]:
        warn(
            f"JAX found no accelerator and runs on the CPU, which is much slower, although "
            f"{' and '.join(installed)} is installed: check the device and its driver, or choose "
            "the CPU by JAX_PLATFORMS=cpu"
        )


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.util.find_spec(name) or importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def cpu_devices(cores: int) -> int:
    """The number of devices to split so many cores into: a power of two, which divides a batch."""
    return min(1 << (cores.bit_length() - 1), _MOST_CPU_DEVICES)


def cores() -> int:
    """The number of cores that this process may use: its affinity, and a container's quota."""
    return joblib.cpu_count()


def _keep_compiled_programs() -> None:
    """Caches compiled programs, so that a second start compiles nothing."""
    try:
        folder = cache_folder() / "compiled"
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid"):
            _check_private(folder)
    except (OSError, InputError) as error:
        warn(f"compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's default, one second, skips dozens of programs that take a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _check_private(folder: Path) -> None:
    """Raises a PermissionError if another user could replace what is in a folder.

    JAX executes what it finds there. So the folder and the one that it is in must be this user's,
    or root's, and nobody else may write to them; nor may everybody to those above, unless they are
    like /tmp, where each user can move only their own files.
    """
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    for lowest in {folder.absolute(), folder.resolve()}:
        for height, path in enumerate((lowest, *lowest.parents)):
            state, is_near = path.stat(), height < 2
            if is_near and state.st_uid not in (os.getuid(), 0):
                raise PermissionError(f"{path} belongs to another user: {_ELSEWHERE}")
            writers = state.st_mode & (stat.S_IWOTH | stat.S_IWGRP * is_near)
            if writers == stat.S_IWGRP and _is_of_user_alone(state.st_gid):
                continue
            if writers and not state.st_mode & stat.S_ISVTX:
                raise PermissionError(f"other users may write to {path}: {_ELSEWHERE}")


_ELSEWHERE = "change that, or set E3JAX_CACHE_DIR to a folder of your own"


def _is_of_user_alone(group_id: int) -> bool:
    """Whether a group has this user as its only member, as many systems give one to each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(group_id), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and {*group.gr_mem} <= {user.pw_name}

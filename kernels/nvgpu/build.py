"""Builds the plug-in and puts it where Paddle finds it: `python -m sd3par.kernels.nvgpu build`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sd3par.config import require
from sd3par.errors import ConfigError, Sd3parError
from sd3par.kernels.cache import FileLock
from sd3par.kernels.nvgpu import toolchain

NAME = "libpaddle-nvgpu.so"
SOURCE = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = ("90",)
_WAIT_S = 1200.0  # for another process that builds; on two cores it takes 3 minutes

_log = logging.getLogger(__name__)


class BuildError(Sd3parError):
    """The compiler refused; its own words come before this."""


def build(
    architectures: Sequence[str] = DEFAULT_ARCHITECTURES,
    dry: bool = False,
    quick: bool = False,
    nvidia: Path | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
) -> Path:
    """Compiles what changed since the last time; returns the library, in the cache of objects.

    Args:
        architectures: compute capabilities, as "90"; the last one also as PTX, which later GPUs compile.
        dry: build the one that runs without a GPU and computes nothing (dry/README.md); always quick.
        quick: do not optimise: in a quarter of the time, for tests.
        nvidia: the folder `nvidia` of NVIDIA's wheels, where they are not installed but only unpacked.
        cache: where objects are kept; by default `cache_folder()`.
        jobs: how many compilers at once; by default as many as there are cores.

    Raises:
        ConfigError: a compiler or a header is missing, or an architecture is unknown.
        BuildError: a source does not compile, or another process builds there and does not end.
    """
    tools = toolchain.find(nvidia)
    known = toolchain.architectures(tools.nvcc)
    for one in architectures:
        require(one in known, "arch", one, f"what this nvcc compiles for: {', '.join(known)}")
    folder = cache_folder() if cache is None else cache
    quick = quick or dry
    folder = folder / "quick" if quick else folder
    library = folder / "dry" / NAME if dry else folder / NAME
    command = [tools.make, "-s", "-C", str(SOURCE), f"-j{jobs or os.cpu_count() or 1}", str(library)]
    command += [*tools.variables(), f"OUT={folder}", f"ARCH={' '.join(architectures)}", *(["QUICK=1"] if quick else [])]
    _log.info("building %s", library)
    with contextlib.suppress(OSError):  # make says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / "lock")).waited_for(_WAIT_S) as alone:
        if not alone:
            raise BuildError(f"another process has been building in {folder} for {_WAIT_S / 60:.0f} minutes")
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            raise BuildError(f"{library.name} was not built: see the compiler's messages above")
    return library


def install(library: Path, folder: Path | None = None) -> Path:
    """Copies the library to `folder`, by default where Paddle looks; returns the copy.

    A process that loads it meanwhile gets the old one or the new one, never a part: half a library would break
    `import paddle`. Paddle loads what ends in ".so", and nothing else, so the unfinished copy has another ending.

    Raises:
        ConfigError: the folder cannot be written.
    """
    target = (installed().parent if folder is None else folder.absolute()) / NAME
    unfinished = target.with_name(f"{NAME}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, unfinished)
        os.replace(unfinished, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        need = "a folder that can be written; --out FOLDER and CUSTOM_DEVICE_ROOT=FOLDER name another to Paddle"
        raise ConfigError("folder", f"{target.parent} ({error.strerror})", need) from error
    return target


def uninstall() -> Path | None:
    """Removes the library from where Paddle looks; returns what was removed, if anything."""
    file = installed()
    if not file.exists():
        return None
    file.unlink()
    return file


def installed() -> Path:
    """Returns where Paddle looks for the plug-in (paddle/base/core.py): a folder beside the package paddle."""
    return toolchain.paddle_folder().parent / "paddle_custom_device" / NAME


def cache_folder() -> Path:
    """Returns where objects are kept between builds: build/ of a checkout, or the user's cache."""
    checkout = SOURCE.parent.parent
    if (checkout / "setup.py").is_file() and os.access(checkout, os.W_OK):
        return checkout / "build" / "nvgpu"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "sd3par" / "nvgpu"

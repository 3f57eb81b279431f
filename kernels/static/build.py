"""Builds the library of operators with g++, and lets Triton compile the kernels of a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import paddle

import sd3par
from sd3par.config import require
from sd3par.errors import ConfigError, Sd3parError, shorten
from sd3par.kernels.cache import FileLock
from sd3par.kernels.runtime import TESTED

if TYPE_CHECKING:
    from sd3par.kernels.static.stand_ins import Order

LIBRARY, KERNELS = "libsd3par_operators.so", "sd3par_kernels.bin"
SOURCE = Path(__file__).resolve().parent / "src"
_FLAGS = (
    "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-DPADDLE_NO_PYTHON", "-DPADDLE_ON_INFERENCE",
    "-DPADDLE_WITH_CUSTOM_DEVICE",
)  # fmt: skip
# Paddle's statics point into it when the process ends: it stays in memory.
_LINKED = ("-Wl,-z,nodelete", "-l:libpaddle.so", "-l:libphi.so", "-l:libphi_core.so", "-l:libcommon.so", "-ldl")
_WAIT_S = 300.0  # for another process that builds


class BuildError(Sd3parError):
    """A compiler refused."""


def library() -> Path:
    """Returns the library of operators, which is built if these sources were not yet, for this Paddle.

    Raises:
        ConfigError: there is no g++, or no place for it.
        BuildError: it does not compile.
    """
    made = (
        _folder(_digest([paddle.__version__, paddle.version.commit, *_FLAGS, *_LINKED], sorted(SOURCE.iterdir())))
        / LIBRARY
    )
    if not made.exists():
        with FileLock(str(made.parent / "lock")).waited_for(_WAIT_S):
            if not made.exists():  # else another process has built it meanwhile
                _compile(made)
    return made


def _compile(made: Path) -> None:
    compiler = shutil.which("g++")
    require(compiler is not None, "g++", None, "GCC's C++ compiler; Debian and Ubuntu: apt-get install g++")
    root, part = _paddle(), made.with_name(f"{LIBRARY}.{os.getpid()}")
    places = [
        "-isystem",
        f"{root}/include",
        "-isystem",
        f"{root}/include/third_party",
        f"-L{root}/base",
        f"-L{root}/libs",
    ]
    places += [f"-fmacro-prefix-map={SOURCE}=sd3par", f"-fmacro-prefix-map={root}=paddle"]  # for messages
    sources = sorted(str(one) for one in SOURCE.glob("*.cc"))
    _run([str(compiler), *_FLAGS, *places, *sources, "-o", str(part), *_LINKED], LIBRARY)
    part.replace(made)


def kernels(file: Path, order: Order) -> None:
    """Writes the file of kernels of an order, from the cache where it was made before.

    Raises:
        ConfigError: there is no Triton of the tested version.
        BuildError: a kernel does not compile.
    """
    given = json.dumps({**order._asdict(), "model": dataclasses.asdict(order.model)}, sort_keys=True)
    sources = sorted([*SOURCE.parent.glob("*.py"), *SOURCE.parent.parent.glob("*.py")])
    kept = _folder() / f"{_digest([TESTED, given], sources)}.bin"
    if not kept.exists():
        _compile_kernels(kept, given)
    shutil.copyfile(kept, file)


def triton_version() -> str | None:
    """Returns the version of Triton that compiles the kernels, None where there is none."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def _compile_kernels(made: Path, order: str) -> None:
    version = triton_version()
    tested = version is not None and version.startswith(f"{TESTED}.")
    require(tested, "Triton", version, f"{TESTED}, to compile kernels: python -m pip install 'triton=={TESTED}.*'")
    part = made.with_name(f"{made.name}.{os.getpid()}")
    _run([sys.executable, "-W", "ignore", "-m", "sd3par.kernels.static.compile", str(part), order], made.name)
    part.replace(made)


def _run(command: list[str], what: str) -> None:
    """Runs a compiler; what it says goes into the error."""
    root = str(Path(sd3par.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "2"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{what} was not built: {shorten(done.stderr.strip()[-2000:], 2000)}")


def _paddle() -> Path:
    return Path(paddle.__file__).resolve().parent


def _digest(words: list[str], sources: list[Path]) -> str:
    """Returns a name for what is made of these."""
    texts = [one.read_text(encoding="utf-8") for one in sources]
    return hashlib.sha256("\0".join([*words, *texts]).encode()).hexdigest()[:16]


def _folder(name: str = "") -> Path:
    """Returns where what was built is kept, in build/ of a checkout or the user's cache, or a folder there."""
    checkout, home = SOURCE.parent.parent.parent, os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    ours = (checkout / "setup.py").is_file() and os.access(checkout, os.W_OK)
    folder = (checkout / "build" / "static" if ours else Path(home) / "sd3par" / "static") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "folder", f"{folder} ({error.strerror})", "one that can be written, for what is built"
        ) from error
    return folder

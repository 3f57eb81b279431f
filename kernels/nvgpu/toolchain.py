"""What the plug-in is built with: compilers, and the headers of Paddle, CUDA and NVIDIA's libraries."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sd3par.config import require
from sd3par.errors import ConfigError

CUDA = 13  # the generation of NVIDIA's wheels (cu13) and of the functions that the sources call


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's libraries, of which the build needs the headers: a header, its folder in the wheel, the wheel."""

    header: str
    folder: str
    wheel: str


CUBLAS = Library("cublas_v2.h", "cu13/include", "nvidia-cublas")
CUDNN = Library("cudnn.h", "cudnn/include", "nvidia-cudnn-cu13")
NCCL = Library("nccl.h", "nccl/include", "nvidia-nccl-cu13")


@dataclass(frozen=True)
class Toolchain:
    """Compilers by path, and folders: the CUDA toolkit, the package paddle, and those of NVIDIA's headers."""

    make: str
    cxx: str
    nvcc: str
    cuda: Path
    paddle: Path
    cublas: Path
    cudnn: Path
    nccl: Path

    def variables(self) -> list[str]:
        """Returns the Makefile's variables as make's command line has them."""
        named = {"CXX": self.cxx, "NVCC": self.nvcc, "CUDA": self.cuda, "PADDLE": self.paddle}
        headers = {"CUBLAS": self.cublas, "CUDNN": self.cudnn, "NCCL": self.nccl}
        return [f"{name}={value}" for name, value in {**named, **headers}.items()]


def find(nvidia: Path | None = None) -> Toolchain:
    """Returns what this machine has.

    Args:
        nvidia: the folder `nvidia` of NVIDIA's wheels, where they are not installed but only unpacked.

    Raises:
        ConfigError: something is missing; it says what to install.
    """
    nvcc = find_nvcc()
    cuda = toolkit(nvcc)
    return Toolchain(
        make=_program("make", "GNU make; Debian and Ubuntu: apt-get install make"),
        cxx=_program("g++", "GCC's C++ compiler; Debian and Ubuntu: apt-get install g++"),
        nvcc=nvcc,
        cuda=cuda,
        paddle=paddle_folder(),
        cublas=_headers(CUBLAS, nvidia, cuda),
        cudnn=_headers(CUDNN, nvidia, cuda),
        nccl=_headers(NCCL, nvidia, cuda),
    )


def find_nvcc() -> str:
    """Returns the path of a CUDA compiler that is new enough.

    Raises:
        ConfigError: there is none.
    """
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    beside = [f"{home}/bin/nvcc" for home in homes if home and Path(home, "bin", "nvcc").is_file()]
    candidates = [*filter(None, [shutil.which("nvcc")]), *beside]
    need = f"CUDA {CUDA}'s nvcc on PATH, in $CUDA_HOME/bin or in /usr/local/cuda/bin: install NVIDIA's CUDA toolkit"
    require(bool(candidates), "nvcc", "nothing", need)
    versions = {nvcc: nvcc_version(nvcc) for nvcc in candidates}
    fitting = [nvcc for nvcc, version in versions.items() if version[0] == CUDA]
    require(bool(fitting), "nvcc", f"{candidates[0]} of CUDA {'.'.join(map(str, versions[candidates[0]]))}", need)
    return fitting[0]


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """Returns the version of CUDA that `nvcc` belongs to; (0, 0) if it does not say."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures(nvcc: str) -> list[str]:
    """Returns the compute capabilities that `nvcc` compiles for, as "90"."""
    said = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"compute_(\d+)", said)


def toolkit(nvcc: str) -> Path:
    """Returns the folder of the toolkit that `nvcc` belongs to, which a link or a script on PATH does not tell."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    folder = Path(found[1]).resolve() if found else Path(nvcc).resolve().parent.parent
    header = folder / "include" / "cuda_runtime_api.h"
    require(header.is_file(), "CUDA toolkit", folder, f"one that has {header.relative_to(folder)}")
    return folder


def paddle_folder() -> Path:
    """Returns the folder of the installed package paddle, without importing it: a broken plug-in must not prevent that.

    Raises:
        ConfigError: Paddle is not installed, or is not the build that takes plug-ins.
    """
    need = "the CPU build, which has this interface: pip install 'paddlepaddle>=3.3,<3.4'"
    spec = importlib.util.find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("paddle", "nothing", need)
    folder = Path(spec.submodule_search_locations[0])
    header = folder / "include" / "paddle" / "phi" / "backends" / "device_ext.h"
    require(header.is_file(), "paddle", folder, need)
    return folder


def _program(name: str, need: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(name, "nothing", need)
    return path


def nvidia_folders() -> list[Path]:
    """Returns the folders that NVIDIA's installed wheels share: `nvidia`, once in each site-packages that has one."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def _headers(library: Library, nvidia: Path | None, cuda: Path) -> Path:
    """Returns the folder of the library's headers: in `nvidia` or an installed wheel, in the toolkit or the system."""
    roots = nvidia_folders() if nvidia is None else [nvidia]
    system = [cuda / "include", Path("/usr/include"), Path("/usr/local/include")]
    for folder in [*(root / library.folder for root in roots), *system]:
        if (folder / library.header).is_file():
            return folder
    raise ConfigError(library.header, "nothing", f"pip install {library.wheel}, or 'sd3par[nvgpu]' for all of them")

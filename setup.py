"""Packaging: `sd3par`, with `kernels/` and `launch/` installed as `sd3par.kernels` and `sd3par.launch`.

They are subpackages because PyPI already has a `kernels`; `sd3par/__init__.py` finds them in a plain checkout.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
SIBLINGS = ("kernels", "launch")  # folders beside sd3par/ that become subpackages of it

DEPENDENCIES = [
    # The CPU build from PyPI. Who has paddlepaddle-gpu (same import name) installs with --no-deps: see the README.
    "paddlepaddle>=3.3,<3.4",
    "numpy>=1.26",  # noise, schedules, pictures
    "safetensors>=0.4.5",  # weights
    "tokenizers>=0.20",  # CLIP's and T5's
    "pillow>=10.3",  # PNG, with metadata; Pillow 13 needs Python 3.11, hence a lower bound alone
    "tqdm>=4.66",  # progress bar
]
# Reads T5's spiece.model where a folder has no tokenizer.json; sentencepiece needs that protobuf and does not say so.
SPIECE = ["sentencepiece>=0.2.3,<0.3", "protobuf>=7.36.1"]
# What kernels/nvgpu is built and runs with, in the versions that its figures were measured with: a newer series may
# choose other algorithms. Compilers are no wheels: nvcc of CUDA 13, g++ and make.
NVGPU = [
    "nvidia-cublas~=13.1.0",
    "nvidia-cudnn-cu13~=9.15.1",
    "nvidia-nccl-cu13~=2.28.9",
    "nvidia-cuda-nvrtc~=13.0.48",  # cuBLAS and cuDNN compile some kernels when they run
    "triton~=3.6.0",  # 3.9 launches on CUDA's default stream instead of Paddle's when there is no torch
]
# Draws `sd3par bench plot`: nothing else needs it, and it brings ten packages.
PLOT = ["matplotlib>=3.9"]
EXTRAS = {
    "plot": PLOT,
    "profile": ["nvtx>=0.2.10"],  # names ranges for Nsight Systems; its API has no other way from Python
    "spiece": SPIECE,
    "nvgpu": NVGPU,
    # setuptools: the packaging tests build wheels without the network. pytest-timeout: a hang is a failure.
    # pytest-xdist: most tests use one core or wait for processes. pytest 9.2 hides its groups of tests from xdist 3.8.
    "test": ["pytest>=8,<9.2", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "setuptools>=70.1", *SPIECE, *PLOT],
    "dev": ["ruff>=0.17,<0.18", "mypy>=2.4,<3"],
    # Only to make the golden files anew; no test needs them.
    "oracle": ["torch>=2.6", "diffusers>=0.42", "transformers>=5"],
}


def version() -> str:
    """Returns `__version__` of sd3par without importing it: its dependencies may not be there yet."""
    text = (ROOT / "sd3par" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("sd3par/__init__.py: no __version__")
    return found[1]


def packages() -> list[str]:
    """Returns every package, under the name that it is installed by."""
    own = find_packages(str(ROOT), include=["sd3par", "sd3par.*"])
    return own + [f"sd3par.{name}" for folder in SIBLINGS for name in find_packages(str(ROOT), include=[f"{folder}*"])]


setup(
    name="sd3par",
    version=version(),
    description="Multi-GPU parallel inference for Stable Diffusion 3 on PaddlePaddle",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    ],
    python_requires=">=3.10,<3.14",  # what paddlepaddle 3.3 has wheels for
    packages=packages(),
    package_dir={f"sd3par.{name}": name for name in SIBLINGS},
    package_data={
        "sd3par": ["py.typed", "tiny/**/*"],
        "sd3par.kernels.nvgpu": ["Makefile", "src/**/*", "dry/*"],  # users build it
        "sd3par.kernels.static": ["src/*"],  # built by who exports for GPUs
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["sd3par = sd3par.launch.cli:main"]},
)

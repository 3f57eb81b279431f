"""Memsets of recorded products, on graphs that pieces_graph.cc has instead of CUDA's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sd3par.errors import ConfigError
from sd3par.kernels.nvgpu import toolchain

HERE = Path(__file__).resolve().parent
RUNTIME = HERE.parent.parent / "kernels" / "nvgpu" / "src" / "runtime"


def test_all_pieces_are_zeroed_once_and_first(tmp_path: Path) -> None:
    try:
        tools = toolchain.find()
    except ConfigError as missing:
        pytest.skip(f"the plug-in is not built here: {missing}")
    headers = [tools.paddle / "include", tools.paddle / "include/third_party", tools.cuda / "include", RUNTIME]
    flags = ["-std=c++17", "-Wall", "-DPADDLE_WITH_CUSTOM_DEVICE", *(f"-I{folder}" for folder in headers)]
    program = tmp_path / "pieces"
    sources = [str(HERE / "pieces_graph.cc"), str(RUNTIME / "pieces.cc")]
    subprocess.run([tools.cxx, *flags, *sources, "-o", str(program)], check=True, timeout=120)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "right\n")

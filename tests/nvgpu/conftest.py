"""The plug-in, built once for all tests where nvcc is there; objects stay in build/nvgpu from one run to the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd3par.errors import ConfigError
from sd3par.kernels.nvgpu import build


def _built(folder: Path, dry: bool) -> Path:
    """Returns the folder to name as CUSTOM_DEVICE_ROOT; skips the test without a compiler or NVIDIA's headers."""
    try:
        library = build.build(dry=dry, quick=True)
    except ConfigError as missing:
        pytest.skip(f"the plug-in is not built here: {missing}")
    return build.install(library, folder).parent


@pytest.fixture(scope="session")
def real_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plug-in."""
    return _built(tmp_path_factory.mktemp("nvgpu"), dry=False)


@pytest.fixture(scope="session")
def dry_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plug-in that runs without a GPU and computes nothing."""
    return _built(tmp_path_factory.mktemp("nvgpu_dry"), dry=True)

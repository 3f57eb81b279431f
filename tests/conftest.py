"""What all tests share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import paddle
import pytest

# Paddle's launcher counts an empty value as one GPU; tests run on the CPU, and so do the processes that they start.
os.environ.pop("CUDA_VISIBLE_DEVICES", None)

# What tests and their processes remember of files is not the user's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sd3par-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="module")
def on_the_cpu() -> Iterator[None]:
    """Where there are GPUs too."""
    before = paddle.get_device()
    paddle.set_device("cpu")
    yield
    paddle.set_device(before)

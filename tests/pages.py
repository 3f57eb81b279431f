"""Which pages of a file are in the system's memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest


def missing(path: Path) -> int:
    """Returns how many pages of a file are not there."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as all_,
    ):
        found, first = (ctypes.c_ubyte * -(-len(all_) // mmap.PAGESIZE))(), ctypes.c_char.from_buffer(all_)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(all_)), found)
        del first
    assert not failed
    return sum(1 - (one & 1) for one in found)


def forget(path: Path) -> None:
    """Has the system let go of all of a file; skips the test where it does not."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if missing(path) < -(-path.stat().st_size // mmap.PAGESIZE):
        pytest.skip("this file system keeps files in memory")

"""Bytes of a file into memory that is there. Nothing here needs Paddle or NumPy: files are read while those load."""

from __future__ import annotations

import os


def read_into(view: memoryview, file: int, at: int) -> int:
    """Reads a file's bytes from `at` on until memory is full or it ends; returns how many they were.

    Args:
        view: of bytes.
        file: a descriptor, which several threads may use; its own position does not count.

    Raises:
        OSError: the file cannot be read.
    """
    got = 0
    while got < len(view) and (count := os.preadv(file, [view[got:]], at + got)):  # at most 2 GB a call
        got += count
    return got

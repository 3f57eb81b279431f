"""A part of an array in a file, read without a map of the file and without memory for more than the part."""

from __future__ import annotations

import io
import math

import numpy as np

BLOCK = 4 << 20  # bytes of the file that are held at a time where the part is not in one piece; larger is no faster

Shape = tuple[int, ...]


def read_part(file: io.FileIO, start: int, shape: Shape, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
    """Returns part `index` of the array [*shape] of `dtype` that begins at byte `start`.

    Args:
        file: open for reading, unbuffered.
        index: slices without a step, of the first axes.

    Raises:
        OSError: the file cannot be read.
        EOFError: it ends before the part does.
    """
    sizes = [len(range(*one.indices(size))) for one, size in zip(index, shape, strict=False)]
    part = np.empty((*sizes, *shape[len(sizes) :]), dtype)
    if part.size:
        _gather(file, start, shape, index, part)
    return part


def _gather(file: io.FileIO, start: int, shape: Shape, index: tuple[slice, ...], part: np.ndarray) -> None:
    """Reads into `part`: in one go where it is one piece, else by blocks of whole rows, else row by row."""
    first = index[0].indices(shape[0])[0] if index else 0
    row = math.prod(shape[1:]) * part.itemsize  # bytes of the file
    start += first * row
    if part.shape[1:] == shape[1:]:
        _fill(file, start, part)
    elif row > BLOCK:
        for i, inner in enumerate(part):
            _gather(file, start + i * row, shape[1:], index[1:], inner)
    else:
        rows = np.empty((min(BLOCK // row, len(part)), *shape[1:]), part.dtype)
        for i in range(0, len(part), len(rows)):
            some = rows[: len(part) - i]
            _fill(file, start + i * row, some)
            part[i : i + len(some)] = some[(slice(None), *index[1:])]


def _fill(file: io.FileIO, start: int, array: np.ndarray) -> None:
    """Reads the bytes from `start` on into all of `array`, which is contiguous."""
    left = array.reshape(-1).view(np.uint8).data
    file.seek(start)
    while left:
        count = file.readinto(left)  # at most 2 GB a call
        if not count:
            raise EOFError("it ends early")
        left = left[count:]

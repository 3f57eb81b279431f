"""A part of an array in a file, read without a map of the file and without memory for more than the part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from sd3par.weights.read_into import read_into

BLOCK = 4 << 20  # bytes of the file that are held at a time where the part is not in one piece; larger is no faster

Index = tuple[slice, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Part `index` of the array [*whole] of `dtype` that begins at byte `start` of a file.

    index: slices without a step, of the first axes.
    """

    start: int
    whole: Shape
    dtype: np.dtype
    index: Index

    @property
    def shape(self) -> Shape:
        """The part's own."""
        sizes = [len(range(*one.indices(size))) for one, size in zip(self.index, self.whole, strict=False)]
        return (*sizes, *self.whole[len(sizes) :])

    @property
    def nbytes(self) -> int:
        """Bytes of the part."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, file: IO[bytes], values: np.ndarray) -> None:
        """Reads it into `values`, contiguous and of its shape and dtype.

        Args:
            file: open for reading; several threads may use it.

        Raises:
            OSError: the file cannot be read.
            EOFError: it ends before the part does.
        """
        if values.size:
            _gather(file, self.start, self.whole, self.index, values)

    def split(self, most: int) -> Iterator[tuple[slice, Part]]:
        """Yields runs of its rows, of at most `most` bytes or of one row, and where each is in the file."""
        if self.nbytes <= most:
            yield slice(None), self
            return
        rows = self.shape[0]
        first = self.index[0].indices(self.whole[0])[0] if self.index else 0
        step = max(most * rows // self.nbytes, 1)
        for at in range(0, rows, step):
            run = slice(at, min(at + step, rows))
            yield run, replace(self, index=(slice(first + run.start, first + run.stop), *self.index[1:]))


def _gather(file: IO[bytes], start: int, shape: Shape, index: Index, part: np.ndarray) -> None:
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


def _fill(file: IO[bytes], start: int, array: np.ndarray) -> None:
    """Reads the bytes from `start` on into all of `array`, which is contiguous."""
    view = array.reshape(-1).view(np.uint8).data
    if read_into(view, file.fileno(), start) < len(view):
        raise EOFError("it ends early")

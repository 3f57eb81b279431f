"""A checkpoint in memory, for tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle

from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index
from sd3par.weights.fill import Checkpoint, Pending
from tests.arrays import weight


class ArrayCheckpoint(Checkpoint):
    """Tensors from numpy arrays; `reads` lists (name, bytes) of every read."""

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str = "arrays") -> None:
        self.arrays, self.where = dict(arrays), where
        self.reads: list[tuple[str, int]] = []

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], where: str = "arrays") -> ArrayCheckpoint:
        """Deterministic weights for every name of `shapes` (tests.arrays.weight)."""
        return cls({name: weight(name, tuple(shape)) for name, shape in shapes.items()}, where)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns name -> shape."""
        return {name: array.shape for name, array in self.arrays.items()}

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what gives tensor `name` or its part."""
        return lambda: self._tensor(name, index)

    def _tensor(self, name: str, index: Index) -> paddle.Tensor:
        array = np.ascontiguousarray(self.arrays[name][index])
        self.reads.append((name, array.nbytes))
        return paddle.to_tensor(array)

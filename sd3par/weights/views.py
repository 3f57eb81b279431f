"""Tensors under other names and in other layouts than the file has, read without reading more of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import paddle
from paddle import Tensor

from sd3par.errors import CheckpointError
from sd3par.weights.fill import Checkpoint

Index = tuple[slice, ...]
Shape = tuple[int, ...]


class View(Protocol):
    """One tensor, made of what a checkpoint stores."""

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """Returns its shape, from the stored shapes; ValueError says which stored shape would fit."""
        ...

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns its part `index`."""
        ...


@dataclass(frozen=True)
class Same:
    """The stored tensor as it is."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[...] -> [...]."""
        return stored[self.key]

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index`."""
        return stored.read(self.key, index)


@dataclass(frozen=True)
class Packed:
    """Number `part` of `parts` equal runs on the first axis: q, k or v of a packed qkv."""

    key: str
    part: int
    parts: int

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[parts * n, ...] -> [n, ...]."""
        first, *rest = _divisible(stored[self.key], self.parts)
        return (first // self.parts, *rest)

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index` of the run; only its rows are read."""
        size = self.shape(stored.shapes())[0]
        start, stop = _rows(index, size)
        offset = self.part * size
        return stored.read(self.key, (slice(offset + start, offset + stop), *index[1:]))


@dataclass(frozen=True)
class Swapped:
    """The two halves of the first axis exchanged: original SD3 has (shift, scale), diffusers (scale, shift)."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[2 * n, ...] -> [2 * n, ...]."""
        return _divisible(stored[self.key], 2)

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index`, of one half or of both."""
        size = self.shape(stored.shapes())[0]
        start, stop = _rows(index, size)
        half = size // 2
        runs = [(start + half, min(stop, half) + half), (max(start, half) - half, stop - half)]
        pieces = [stored.read(self.key, (slice(a, b), *index[1:])) for a, b in runs if a < b]
        return pieces[0] if len(pieces) == 1 else paddle.concat(pieces)


@dataclass(frozen=True)
class Squeezed:
    """A linear that is stored as a 1x1 convolution."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[out, in, 1, 1] or [out, in] -> [out, in]."""
        shape = stored[self.key]
        if len(shape) < 2 or set(shape[2:]) - {1}:
            raise ValueError("[out, in] or [out, in, 1, 1]")
        return shape[:2]

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index`."""
        part = stored.read(self.key, index)
        return part.reshape(part.shape[:2])


@dataclass(frozen=True)
class Transposed:
    """A linear in Paddle's layout."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[in, out] -> [out, in]."""
        if len(stored[self.key]) != 2:
            raise ValueError("[in, out]")
        return stored[self.key][::-1]

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index`, as a strided view: whoever fills a Paddle linear turns it back."""
        rows, columns, *_ = (*index, slice(None), slice(None))
        return stored.read(self.key, (columns, rows)).t()


@dataclass(frozen=True)
class Identity:
    """A unit matrix that no file holds."""

    size: int

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """-> [size, size]."""
        return (self.size, self.size)

    def read(self, stored: Checkpoint, index: Index) -> Tensor:
        """Returns the part `index`, fp32."""
        whole = paddle.eye(self.size)
        return whole[index] if index else whole


class ViewCheckpoint:
    """A checkpoint (`weights.Checkpoint`) whose tensors are views into another.

    Raises:
        CheckpointError: a view does not fit the stored tensor.
    """

    def __init__(self, stored: Checkpoint, views: Mapping[str, View]) -> None:
        self.where = stored.where
        self._stored, self._views = stored, dict(views)
        shapes = stored.shapes()
        self._shapes = {name: self._shape(name, view, shapes) for name, view in self._views.items()}

    def shapes(self) -> Mapping[str, Shape]:
        """Returns name -> shape of every view."""
        return self._shapes

    def read(self, name: str, index: Index = ()) -> Tensor:
        """Returns view `name`, or its part `index`, on the CPU.

        Raises:
            CheckpointError: no such tensor, or values that are not finite.
        """
        if name not in self._views:
            raise CheckpointError(f"{self.where}: {name}", "missing", "a tensor of the checkpoint")
        return self._views[name].read(self._stored, index)

    def _shape(self, name: str, view: View, shapes: Mapping[str, Shape]) -> Shape:
        try:
            return view.shape(shapes)
        except ValueError as fitting:
            key = getattr(view, "key", name)
            raise CheckpointError(f"{self.where}: {key}", f"shape {list(shapes[key])}", f"shape {fitting}") from None


def _rows(index: Index, size: int) -> tuple[int, int]:
    """Returns start and stop of `index` on the first axis, of `size`."""
    start, stop, _ = index[0].indices(size) if index else (0, size, 1)
    return start, stop


def _divisible(shape: Shape, parts: int) -> Shape:
    if not shape or shape[0] % parts:
        raise ValueError(f"[{parts} * n, ...]")
    return shape

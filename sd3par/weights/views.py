"""Tensors under other names and in other layouts than the file has, read without reading more of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import paddle
from paddle import Tensor

from sd3par.errors import CheckpointError
from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index, Shape
from sd3par.weights.fill import Checkpoint, Pending


class View(Protocol):
    """One tensor, made of what a checkpoint stores."""

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """Returns its shape, from the stored shapes; ValueError says which stored shape would fit."""
        ...

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads its part `index`, as `Checkpoint.begin` does."""
        ...


@dataclass(frozen=True)
class Same:
    """The stored tensor as it is."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[...] -> [...]."""
        return stored[self.key]

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads the part `index`."""
        return stored.begin(self.key, index, ahead)


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

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads the part `index` of the run; only its rows."""
        size = self.shape(stored.shapes())[0]
        start, stop = _rows(index, size)
        offset = self.part * size
        return stored.begin(self.key, (slice(offset + start, offset + stop), *index[1:]), ahead)


@dataclass(frozen=True)
class Swapped:
    """The two halves of the first axis exchanged: original SD3 has (shift, scale), diffusers (scale, shift)."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[2 * n, ...] -> [2 * n, ...]."""
        return _divisible(stored[self.key], 2)

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads the part `index`, of one half or of both."""
        size = self.shape(stored.shapes())[0]
        start, stop = _rows(index, size)
        half = size // 2
        runs = [(start + half, min(stop, half) + half), (max(start, half) - half, stop - half)]
        begun = [stored.begin(self.key, (slice(a, b), *index[1:]), ahead) for a, b in runs if a < b]
        return begun[0] if len(begun) == 1 else lambda: paddle.concat([piece() for piece in begun])


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

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads the part `index`."""
        begun = stored.begin(self.key, index, ahead)
        return lambda: _as_matrix(begun())


@dataclass(frozen=True)
class Transposed:
    """A linear in Paddle's layout."""

    key: str

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """[in, out] -> [out, in]."""
        if len(stored[self.key]) != 2:
            raise ValueError("[in, out]")
        return stored[self.key][::-1]

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what reads the part `index`, as a strided view: whoever fills a Paddle linear turns it back."""
        rows, columns, *_ = (*index, slice(None), slice(None))
        begun = stored.begin(self.key, (columns, rows), ahead)
        return lambda: begun().t()


@dataclass(frozen=True)
class Identity:
    """A unit matrix that no file holds."""

    size: int

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """-> [size, size]."""
        return (self.size, self.size)

    def begin(self, stored: Checkpoint, index: Index, ahead: Ahead | None) -> Pending:
        """Returns what makes the part `index`, fp32."""
        return lambda: paddle.eye(self.size)[index] if index else paddle.eye(self.size)


class ViewCheckpoint(Checkpoint):
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

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what reads view `name`, or its part `index`.

        Raises:
            CheckpointError: no such tensor.
        """
        if name not in self._views:
            raise CheckpointError(f"{self.where}: {name}", "missing", "a tensor of the checkpoint")
        return self._views[name].begin(self._stored, index, ahead)

    def _shape(self, name: str, view: View, shapes: Mapping[str, Shape]) -> Shape:
        try:
            return view.shape(shapes)
        except ValueError as fitting:
            key = getattr(view, "key", name)
            raise CheckpointError(f"{self.where}: {key}", f"shape {list(shapes[key])}", f"shape {fitting}") from None


def _as_matrix(part: Tensor) -> Tensor:
    """[out, in, ...] -> [out, in]."""
    return part.reshape(part.shape[:2])


def _rows(index: Index, size: int) -> tuple[int, int]:
    """Returns start and stop of `index` on the first axis, of `size`."""
    start, stop, _ = index[0].indices(size) if index else (0, size, 1)
    return start, stop


def _divisible(shape: Shape, parts: int) -> Shape:
    if not shape or shape[0] % parts:
        raise ValueError(f"[{parts} * n, ...]")
    return shape

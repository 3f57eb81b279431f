"""Tensors that no file holds: made on the current device when they are read, the same on every rank."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor

from sd3par.errors import CheckpointError
from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index
from sd3par.weights.fill import Checkpoint, Pending


class Made(Protocol):
    """One tensor that can be made from nothing but its name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns its shape, in torch's layout."""
        ...

    def make(self, seed: int) -> Tensor:
        """Returns all of it."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Numbers from -bound to bound that bfloat16 holds exactly: models of all dtypes get the same weights.

    All but those of queries without a norm, which are multiplied when they are loaded.
    """

    shape: tuple[int, ...]
    bound: float

    def make(self, seed: int) -> Tensor:
        """Returns [*shape] bfloat16. Equal seeds give equal numbers on devices of one kind; kinds differ."""
        drawn = paddle.uniform(list(self.shape), dtype="float32", min=-self.bound, max=self.bound, seed=seed)
        return drawn.astype("bfloat16")


@dataclass(frozen=True)
class Constant:
    """One number everywhere."""

    shape: tuple[int, ...]
    value: float

    def make(self, seed: int) -> Tensor:
        """Returns [*shape] fp32."""
        return paddle.full(list(self.shape), self.value, dtype="float32")


@dataclass(frozen=True)
class Positions:
    """The table of positions that SD3 checkpoints hold: sines and cosines of x in the first half, of y in the second.

    size: patches on each side. base: patches on each side of the model's own pictures; the table spans this distance.
    """

    size: int
    base: int
    dim: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[1, size * size, dim]."""
        return (1, self.size**2, self.dim)

    def make(self, seed: int) -> Tensor:
        """Returns [1, size * size, dim] fp32; one side is computed here, the square on the device."""
        side = paddle.to_tensor(self._side())  # [size, dim / 2]
        square = [self.size, self.size, self.dim // 2]
        x, y = side.unsqueeze(0).expand(square), side.unsqueeze(1).expand(square)
        return paddle.concat([x, y], axis=-1).reshape([1, self.size**2, self.dim])

    def _side(self) -> np.ndarray:
        """[size, dim / 2] fp32, the angles in fp64 as diffusers has them."""
        steps = np.arange(self.size, dtype=np.float32) / np.float32(self.size / self.base)
        quarter = self.dim // 4
        angles = np.outer(steps, 1.0 / 10000.0 ** (np.arange(quarter) / quarter))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Names(dict[str, Made]):
    """Name -> tensor of one component, with PyTorch's default initialisation times `scale`."""

    def linear(self, name: str, outputs: int, inputs: int, scale: float = 1.0, bias: bool = True) -> None:
        """Adds weight [outputs, inputs] and bias [outputs]."""
        self._fan_in(name, (outputs, inputs), scale, bias)

    def conv(self, name: str, outputs: int, inputs: int, kernel: int) -> None:
        """Adds weight [outputs, inputs, kernel, kernel] and bias [outputs]."""
        self._fan_in(name, (outputs, inputs, kernel, kernel), 1.0, True)

    def norm(self, name: str, dim: int, scale: float = 1.0, bias: bool = True) -> None:
        """Adds weight [dim], all `scale`, and bias [dim], zeros."""
        self[f"{name}.weight"] = Constant((dim,), scale)
        if bias:
            self[f"{name}.bias"] = Constant((dim,), 0.0)

    def table(self, name: str, count: int, dim: int, deviation: float) -> None:
        """Adds an embedding [count, dim] of this standard deviation."""
        self[f"{name}.weight"] = Uniform((count, dim), deviation * math.sqrt(3.0))

    def _fan_in(self, name: str, shape: tuple[int, ...], scale: float, bias: bool) -> None:
        bound = scale / math.sqrt(math.prod(shape[1:]))
        self[f"{name}.weight"] = Uniform(shape, bound)
        if bias:
            self[f"{name}.bias"] = Uniform(shape[:1], bound)


class RandomCheckpoint(Checkpoint):
    """A checkpoint (`weights.Checkpoint`) of made tensors.

    Args:
        where: for messages.
        part: "transformer", "vae", ...; with a tensor's name it gives the seed.
    """

    def __init__(self, where: str, part: str, tensors: Mapping[str, Made]) -> None:
        self.where = where
        self._part, self._tensors = part, tensors

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what makes tensor `name`, or its part `index`, on the current device; all of it is made for a while.

        Raises:
            CheckpointError: no such tensor.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.where}: {name}", "missing", "a tensor of the model")
        return lambda: self._make(name, index)

    def _make(self, name: str, index: Index) -> Tensor:
        whole = self._tensors[name].make(seed_of(f"{self._part}.{name}"))
        return whole[index] if index else whole


def seed_of(name: str) -> int:
    """Returns a seed from 1 to 2**31 - 1; 0 would ask Paddle for its global generator."""
    return zlib.crc32(name.encode()) % (2**31 - 1) + 1

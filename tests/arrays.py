"""Arrays that are the same on every machine, from a name alone: weights and inputs of the golden files."""

from __future__ import annotations

import functools
import zlib

import numpy as np


def array(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Returns normal numbers of `scale`, fp32, drawn from a legacy (hence frozen) numpy generator seeded by `name`."""
    return (_normal(name, shape) * scale).astype(np.float32)


@functools.lru_cache(maxsize=4096)  # models are made of the same ones on every mesh
def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a value for the checkpoint tensor `name`: activations stay near unit scale, no bias is zero."""
    if name.endswith("bias"):
        return array(name, shape, 0.1)
    if len(shape) == 1:  # the weight of a norm
        return 1.0 + array(name, shape, 0.1)
    if len(shape) == 3:  # a table of positions
        return array(name, shape)
    fan_in = int(np.prod(shape[1:]))
    return array(name, shape, fan_in**-0.5)

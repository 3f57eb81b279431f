"""Gaussian noise equal to torch's CPU generator, so that a seed gives the picture that diffusers users know.

torch's `randn` draws from MT19937 in one of two ways. From 16 numbers on: 24-bit uniforms in fp32, Box-Muller in blocks
of 16. Below: 53-bit uniforms in fp64, Box-Muller pair by pair. Sources, in torch's aten/src/ATen: normal_fill in
native/cpu/DistributionTemplates.h, normal_distribution in core/DistributionsHelper.h.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.errors import ConfigError

BLOCK = 16
LOWEST_SEED, HIGHEST_SEED = -(1 << 63), (1 << 64) - 1


def noise(shape: Sequence[int], seeds: int | Sequence[int]) -> Tensor:
    """Returns standard normal numbers [B, C, h, w] float32 on the current device.

    Image i equals `torch.randn([1, C, h, w], generator=torch.Generator("cpu").manual_seed(seeds[i]))` within 5e-7, one
    unit in the last place: torch's vectorised logarithm, sine and cosine are not rounded correctly. (Without AVX2,
    measured with ATEN_CPU_CAPABILITY=default, torch differs from itself by up to 2.6e-6.)

    Args:
        shape: (B, C, h, w).
        seeds: one per image, or the first one: image i then has `seeds + i`.

    Raises:
        ConfigError: not one seed per image, or a seed that is not a whole number from -2**63 to 2**64 - 1.
    """
    images, *rest = shape
    generators = [_generator(seed) for seed in _seed_list(images, seeds)]
    count = math.prod(rest)
    if not images or count < BLOCK:
        return paddle.to_tensor([_pairs(one, count) for one in generators] or np.empty(0), "float32").reshape(shape)
    return _blocks(generators, count).reshape(shape)


def _seed_list(images: int, seeds: int | Sequence[int]) -> list[int]:
    """Returns one checked seed per image."""
    if isinstance(seeds, (list, tuple)):
        require(len(seeds) == images, "seed", list(seeds), f"one whole number, or one for each of {images} image(s)")
        return [_checked(seed) for seed in seeds]
    first = _checked(seeds)
    return [_checked(first + i) for i in range(images)]


def _checked(seed: object) -> int:
    """Returns `seed` as an int."""
    allowed = "a whole number from -2**63 to 2**64 - 1, also after the image's number is added"
    try:
        value = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError("seed", seed, allowed) from None
    require(not isinstance(seed, bool) and LOWEST_SEED <= value <= HIGHEST_SEED, "seed", seed, allowed)
    return value


def _generator(seed: int) -> np.random.RandomState:
    """Returns torch's MT19937, which starts from the low 32 bits of the seed."""
    return np.random.RandomState(seed & 0xFFFFFFFF)


def _bits(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Returns [count] uint32, the generator's raw output."""
    return generator.randint(0, 1 << 32, size=count, dtype=np.uint32)


def _blocks(generators: list[np.random.RandomState], count: int) -> Tensor:
    """Returns [B, count] float32 for count >= 16.

    The device makes normal numbers of the uniform ones: on the host it was 5 of the 6 ms that it waited for 262,144.
    """
    whole = count // BLOCK * BLOCK
    # The uniforms of an incomplete last block are drawn, and not used: the last 16 numbers are drawn once more.
    drawn = np.empty([len(generators), count if whole == count else count + BLOCK], np.float32)
    for generator, row in zip(generators, drawn, strict=True):
        _draw(generator, row[:count])
        _draw(generator, row[count:])
    if whole == count:
        return _box_muller_blocks(paddle.to_tensor(drawn))
    normal = _box_muller_blocks(paddle.to_tensor(np.concatenate([drawn[:, :whole], drawn[:, count:]], axis=1)))
    return paddle.concat([normal[:, : count - BLOCK], normal[:, whole:]], 1)


def _draw(generator: np.random.RandomState, into: np.ndarray) -> None:
    """Fills [count] float32 with uniforms in [0, 1), of 24 bits; in place, as new pages take longer than arithmetic."""
    bits = _bits(generator, into.size)
    bits &= 0xFFFFFF
    into[:] = bits
    into *= np.float32(2.0**-24)


def _box_muller_blocks(uniforms: Tensor) -> Tensor:
    """Returns [B, N] float32: in each block of 16, the first 8 uniforms give radii and the last 8 angles.

    Each operation is rounded to fp32 as in torch; the functions go through fp64, so that their rounding is the same on
    every device.
    """
    first, second = uniforms.reshape([-1, 2, BLOCK // 2]).unbind(1)  # [B * N / 16, 8] each
    logarithm = paddle.log((1.0 - first).astype("float64")).astype("float32")
    radius = paddle.sqrt((-2.0 * logarithm).astype("float64")).astype("float32")  # fp32: not rounded right
    angle = (second * float(np.float32(2 * math.pi))).astype("float64")
    halves = [radius * function(angle).astype("float32") for function in (paddle.cos, paddle.sin)]
    return paddle.stack(halves, axis=1).reshape(uniforms.shape)


def _pairs(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Returns [count] float32 for count < 16; an odd count drops the last sine."""
    pairs = -(-count // 2)
    high, low = _bits(generator, 4 * pairs).astype(np.uint64).reshape([-1, 2]).T  # [2 * pairs] each
    uniforms = ((high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53
    first, second = uniforms.reshape([-1, 2]).T  # [pairs] each
    radius, angle = np.sqrt(-2.0 * np.log1p(-second)), 2.0 * math.pi * first
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return normal[:count].astype(np.float32)

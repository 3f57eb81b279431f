"""Gaussian noise equal to torch's CPU generator, so that a seed gives the picture that diffusers users know.

torch's `randn` draws from MT19937 in one of two ways. From 16 numbers on: 24-bit uniforms in fp32, Box-Muller in blocks
of 16. Below: 53-bit uniforms in fp64, Box-Muller pair by pair. Sources, in torch's aten/src/ATen: normal_fill in
native/cpu/DistributionTemplates.h, normal_distribution in core/DistributionsHelper.h.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import numpy as np

from sd3par.config import require
from sd3par.errors import ConfigError

BLOCK = 16
CHUNK = 32 * 1024  # numbers worked on at once: larger arrays would be new pages of memory at each operation
DIRECTIONS = 4096  # around the circle, of which cosine and sine are known
LOWEST_SEED, HIGHEST_SEED = -(1 << 63), (1 << 64) - 1


def noise(shape: Sequence[int], seeds: int | Sequence[int]) -> np.ndarray:
    """Returns standard normal numbers [B, C, h, w] float32.

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
    count = math.prod(rest)
    draw = _blocks if count >= BLOCK else _pairs
    drawn = [draw(_generator(seed), count) for seed in _seed_list(images, seeds)]
    return np.stack(drawn).reshape(shape) if drawn else np.empty(shape, np.float32)


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


def _blocks(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Returns [count] float32 for count >= 16."""
    normal = np.empty(count, np.float32)
    whole = count // BLOCK * BLOCK
    # The uniforms of an incomplete last block are drawn, and not used: the last 16 numbers are drawn once more.
    uniforms = _uniforms(generator, count)
    for start in range(0, whole, CHUNK):
        end = min(start + CHUNK, whole)
        normal[start:end] = _box_muller_blocks(uniforms[start:end])
    if whole < count:
        normal[-BLOCK:] = _box_muller_blocks(_uniforms(generator, BLOCK))
    return normal


def _uniforms(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Returns [count] float32 in [0, 1), of 24 bits."""
    return (_bits(generator, count) & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)


def _box_muller_blocks(uniforms: np.ndarray) -> np.ndarray:
    """Returns [N] float32: in each block of 16, the first 8 uniforms give radii and the last 8 angles.

    Each operation is rounded to fp32 as in torch; the functions go through fp64, so that their rounding is the same on
    every machine.
    """
    first, second = uniforms.reshape([-1, 2, BLOCK // 2]).transpose([1, 0, 2])  # [N/16, 8] each
    logarithm = np.log((np.float32(1) - first).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * logarithm)
    cosine, sine = _cosine_sine((np.float32(2 * math.pi) * second).astype(np.float64))
    halves = [radius * cosine.astype(np.float32), radius * sine.astype(np.float32)]
    return np.stack(halves, axis=1).reshape(-1)


@functools.cache
def _directions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns angles from 0 to 2 pi, their cosines and their sines, [DIRECTIONS + 1] float64 each."""
    angle = np.arange(DIRECTIONS + 1) * (2 * math.pi / DIRECTIONS)
    return angle, np.cos(angle), np.sin(angle)


def _cosine_sine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """angle: [...] float64 from 0 to 2 pi -> cosine and sine of it within 3e-16, in a third of libm's time.

    From the nearest direction on by a few terms of both series: the device waits for the first noise.
    """
    known, cosines, sines = _directions()
    near = (angle * (DIRECTIONS / (2 * math.pi)) + 0.5).astype(np.int32)
    rest = angle - known[near]  # 8e-4 at most
    square = rest * rest
    sine, cosine = rest * (1 - square * (1 / 6 - square / 120)), 1 - square * (1 / 2 - square / 24)
    return cosines[near] * cosine - sines[near] * sine, sines[near] * cosine + cosines[near] * sine


def _pairs(generator: np.random.RandomState, count: int) -> np.ndarray:
    """Returns [count] float32 for count < 16; an odd count drops the last sine."""
    pairs = -(-count // 2)
    high, low = _bits(generator, 4 * pairs).astype(np.uint64).reshape([-1, 2]).T  # [2 * pairs] each
    uniforms = ((high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53
    first, second = uniforms.reshape([-1, 2]).T  # [pairs] each
    radius, angle = np.sqrt(-2.0 * np.log1p(-second)), 2.0 * math.pi * first
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return normal[:count].astype(np.float32)

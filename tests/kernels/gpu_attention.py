"""Cases of joint attention on a GPU: segments that lie in poison, and what is right for some of their heads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from sd3par.device import synchronize
from sd3par.kernels import query_scale

MAIN = (2, (4096, 333), 24, 64)  # SD3-medium, 1024x1024, guidance
# rows, tokens of each segment, heads, head_dim, tokens in memory behind the last of a segment (poison), rise
SHAPES = [
    (*MAIN, 0), (2, (1024, 154), 24, 64, 0), (1, (1,), 2, 64, 0), (2, (37, 33), 2, 64, 5), (2, (300, 211), 3, 32, 5),
    (1, (200, 1), 2, 128, 2), (1, (129, 100), 3, 48, 3), (2, (77,), 1, 16, 0), (1, (130, 7), 1, 256, 0),
    (1, (4429,), 38, 64, 0), (3, (192, 128), 2, 64, 130), (2, (100, 0), 2, 64, 3), (2, (0, 100), 2, 64, 3),
    (2, (700, 257), 5, 64, 1), (2, (704, 257), 38, 64, 1, 10.0), (2, (704, 257), 5, 64, 1, 60.0),
]  # fmt: skip


class Case(NamedTuple):
    """segments: [R, Ti, 3, heads, head_dim] each; heads: those that are checked; want: [S, checked, head_dim] fp64."""

    name: str
    segments: list[Tensor]
    heads: list[int]
    want: np.ndarray

    def chosen(self, outs: list[Tensor]) -> np.ndarray:
        """outs: [R, Ti, heads * head_dim] each -> what is checked of them, [S, checked, head_dim] fp64."""
        head_dim = self.want.shape[2]
        parts = [host(x)[-1].reshape(x.shape[1], -1, head_dim) for x in outs if x.shape[1]]
        return np.concatenate(parts)[:, self.heads]


def case(
    dtype: str, rows: int, tokens: tuple[int, ...], heads: int, head_dim: int, behind: int, rise: float = 1.0
) -> Case:
    """Poison is NaN, or huge in bfloat16; the last row is checked, which is right only if rows are told apart.

    rise: of the last segment's keys. At 60 their scores are so far above all others that exponentials relative to
    those are infinite, at 10 a few are.
    """
    poison = 1e4 if dtype == "bfloat16" else np.nan
    memory = []
    for i, count in enumerate(tokens):
        values = 1.5 * np.random.default_rng(17 * i + count).standard_normal(
            (rows, count + behind, 3, heads, head_dim), np.float32
        )
        values[:, :, 0] *= query_scale(head_dim)
        values[:, count:] = poison
        if i == len(tokens) - 1:
            values[:, :count, 1] *= rise
        memory.append(paddle.to_tensor(values).astype(dtype))
    segments = [full[:, :count] for full, count in zip(memory, tokens, strict=True)]
    some = sorted({0, heads // 2, heads - 1})[: 2 if sum(tokens) > 1000 else 3]
    rounded = np.concatenate([host(full)[-1, :count] for full, count in zip(memory, tokens, strict=True)])
    want = np.stack([_attention(rounded[:, :, head]) for head in some], axis=1)
    name = f"rows {rows} tokens {' + '.join(map(str, tokens))} heads {heads}x{head_dim}" + f" rise {rise:g}" * (
        rise != 1
    )
    return Case(name, segments, some, want)


def _attention(qkv: np.ndarray) -> np.ndarray:
    """qkv: [S, 3, head_dim] fp64 -> [S, head_dim]."""
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    scores = q @ k.T
    weights = np.exp2(scores - scores.max(1, keepdims=True))
    return weights @ v / weights.sum(1, keepdims=True)


def host(x: Tensor) -> np.ndarray:
    """Returns a tensor's values in fp64."""
    synchronize()
    return x.astype("float32").numpy().astype(np.float64)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Returns the root mean square of the difference, relative to the values; NaN and a wrong shape are infinite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))

"""Wrong models on purpose: a parity test that they pass would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paddle
from paddle import Tensor

from sd3par import kernels, mmdit
from sd3par.plan import Tokens

PADDING = 1e4  # keys and values that must not count


Attend = Callable[[list[Tensor]], list[Tensor]]


def uniform_attention(segments: list[Tensor]) -> list[Tensor]:
    """segments: [R, Ti, 3, heads, head_dim] -> [R, Ti, heads * head_dim] each: every token attends to all alike."""
    values = paddle.concat([qkv[:, :, 2] for qkv in segments], axis=1)  # [R, S, heads, head_dim]
    mean = values.astype("float32").mean(1, keepdim=True).astype(values.dtype)
    return [mean.expand([-1, qkv.shape[1], -1, -1]).flatten(2) for qkv in segments]


def one_head_zeroed(attention: Attend) -> Attend:
    """Returns the attention without its first head, in every block."""

    def zeroed(segments: list[Tensor]) -> list[Tensor]:
        head_dim = segments[0].shape[-1]
        return [
            paddle.concat([paddle.zeros_like(mixed[..., :head_dim]), mixed[..., head_dim:]], axis=-1)
            for mixed in attention(segments)
        ]

    return zeroed


@contextmanager
def attending_by(attention: Attend) -> Iterator[None]:
    """Within it the model attends by another function."""
    right = kernels.attention
    setattr(kernels, "attention", attention)  # noqa: B010  # a plain assignment is an error to the type checker
    try:
        yield
    finally:
        kernels.attention = right


@contextmanager
def loud_padding() -> Iterator[None]:
    """Within it the tokens that fill up an sp rank's share are 1e4 and not 0."""
    right = mmdit.shard

    def shard(x: Tensor, tokens: Tokens) -> Tensor:
        padded = right(x, tokens)
        return padded if tokens.padding == 0 else paddle.concat(
            [padded[:, : -tokens.padding], paddle.full_like(padded[:, -tokens.padding :], PADDING)], axis=1
        )  # fmt: skip

    mmdit.shard = shard
    try:
        yield
    finally:
        mmdit.shard = right

"""Wrong models on purpose: a parity test that they pass would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paddle
from paddle import Tensor

from sd3par import kernels, mmdit
from sd3par.plan import Tokens

PADDING = 1e4  # keys and values that must not count


def uniform_attention(qkv: Tensor) -> Tensor:
    """qkv: [R, S, 3, heads, head_dim] -> [R, S, heads * head_dim]: every token attends to all alike."""
    mean = qkv[:, :, 2].astype("float32").mean(1, keepdim=True).astype(qkv.dtype)  # [R, 1, heads, head_dim]
    return mean.expand([-1, qkv.shape[1], -1, -1]).flatten(2)


def one_head_zeroed(attention: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns the attention without its first head, in every block."""

    def zeroed(qkv: Tensor) -> Tensor:
        mixed, head_dim = attention(qkv), qkv.shape[-1]
        return paddle.concat([paddle.zeros_like(mixed[..., :head_dim]), mixed[..., head_dim:]], axis=-1)

    return zeroed


@contextmanager
def attending_by(attention: Callable[[Tensor], Tensor]) -> Iterator[None]:
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

"""Wrong models on purpose: a parity test that they pass would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paddle
from paddle import Tensor

from sd3par import kernels, mmdit
from sd3par.plan import Tokens

PADDING = 1e4  # keys and values that must not count


Attend = Callable[..., list[Tensor]]  # as kernels.attention


def uniform_attention(attention: Attend) -> Attend:
    """Returns the attention without keys: every token attends to all alike."""
    return lambda segments, *outs: attention([_without(x, 1, slice(None)) for x in segments], *outs)


def one_head_zeroed(attention: Attend) -> Attend:
    """Returns the attention without its first head's values, in every block."""
    return lambda segments, *outs: attention([_without(x, 2, slice(0, 1)) for x in segments], *outs)


def _without(x: Tensor, part: int, heads: slice) -> Tensor:
    """x: [R, T, 3, heads, head_dim] -> a copy, zeros in queries (0), keys (1) or values (2) of some heads."""
    copy = x.clone()
    copy[:, :, part, heads] = 0.0
    return copy


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
    right = vars(mmdit)["shard"]

    def shard(x: Tensor, tokens: Tokens) -> Tensor:
        padded = right(x, tokens)
        return padded if tokens.padding == 0 else paddle.concat(
            [padded[:, : -tokens.padding], paddle.full_like(padded[:, -tokens.padding :], PADDING)], axis=1
        )  # fmt: skip

    setattr(mmdit, "shard", shard)  # noqa: B010  # as above
    try:
        yield
    finally:
        setattr(mmdit, "shard", right)  # noqa: B010

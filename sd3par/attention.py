"""Joint attention of an MM-DiT block over this rank's heads (mp) and tokens (sp)."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.layers import Linear, RMSNorm
from sd3par.mesh import Mesh
from sd3par.plan import Tokens

NORM_EPSILON = 1e-6


class Attention(nn.Layer):
    """Projections of the image's attention to itself: packed QKV by columns, output by rows.

    Names are diffusers' but for the packed ones: `qkv` is to_q, to_k, to_v; `to_out` is to_out.0. heads: of this mp
    rank.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, dtype: str, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = Linear(dim, 3 * heads * head_dim, dtype)
        self.to_out = Linear(heads * head_dim, dim, dtype)
        self.norm_q = RMSNorm(head_dim, NORM_EPSILON, dtype) if qk_norm else None
        self.norm_k = RMSNorm(head_dim, NORM_EPSILON, dtype) if qk_norm else None

    def heads_of_image(self, x: Tensor) -> Tensor:
        """x: [R, ti, D] -> [R, ti, 3, heads, head_dim]."""
        return kernels.split_heads(self.qkv(x), self.head_dim, _weight(self.norm_q), _weight(self.norm_k))


class JointAttention(Attention):
    """The same for both streams together; `qkv_context` is add_q_proj, add_k_proj, add_v_proj.

    last: the text stream ends here and has no output.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, dtype: str, qk_norm: bool, last: bool) -> None:
        super().__init__(dim, heads, head_dim, dtype, qk_norm)
        self.qkv_context = Linear(dim, 3 * heads * head_dim, dtype)
        self.to_add_out = None if last else Linear(heads * head_dim, dim, dtype)
        self.norm_added_q = RMSNorm(head_dim, NORM_EPSILON, dtype) if qk_norm else None
        self.norm_added_k = RMSNorm(head_dim, NORM_EPSILON, dtype) if qk_norm else None

    def heads_of_context(self, c: Tensor) -> Tensor:
        """c: [R, tc, D] -> [R, tc, 3, heads, head_dim]."""
        packed = self.qkv_context(c)
        return kernels.split_heads(packed, self.head_dim, _weight(self.norm_added_q), _weight(self.norm_added_k))

    def context_out(self, c: Tensor) -> Tensor | None:
        """c: [R, tc, heads * head_dim] -> this mp rank's part of the sum, [R, tc, D], or None in the last block."""
        return None if self.to_add_out is None else self.to_add_out(c)


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight


class SequenceExchange:
    """Ulysses (arXiv 2309.14509): tokens of this sp rank, all heads <-> all tokens, this sp rank's heads.

    What travels is a list of segments (image, text, and the image once more for a dual block), each sharded over sp
    with padding behind its last token; one all-to-all takes them all. Padding is dropped on arrival, so no key of it
    is ever seen and no mask is needed.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.axis = mesh, mesh.sp

    def to_heads(self, segments: list[Tensor], tokens: list[Tokens]) -> list[Tensor]:
        """segments: [R, size, 3, heads, hd] of this rank -> [R, total, 3, heads / sp, hd] each."""
        if self.axis.size == 1:
            return segments
        x = paddle.concat(segments, axis=1)  # [R, t, 3, heads, hd]
        rows, length, three, heads, head_dim = x.shape
        share = heads // self.axis.size
        x = x.reshape([rows, length, three, self.axis.size, share, head_dim]).transpose([3, 0, 1, 2, 4, 5])
        x = self.mesh.all_to_all(self.axis, x)  # [sp, R, t, 3, share, hd], part j from rank j
        parts = x.split([one.size for one in tokens], axis=2)
        return [_join(part, one) for part, one in zip(parts, tokens, strict=True)]

    def to_tokens(self, segments: list[Tensor], tokens: list[Tokens]) -> list[Tensor]:
        """segments: [R, total, share] of this rank's heads -> [R, size, sp * share] each, of all heads."""
        if self.axis.size == 1:
            return segments
        sp = self.axis.size
        x = paddle.concat([_scatter(x, one, sp) for x, one in zip(segments, tokens, strict=True)], axis=2)
        x = self.mesh.all_to_all(self.axis, x)  # [sp, R, t, share], part j holds head group j
        x = x.transpose([1, 2, 0, 3])
        x = x.reshape([x.shape[0], x.shape[1], -1])
        return x.split([one.size for one in tokens], axis=1)


def _join(part: Tensor, tokens: Tokens) -> Tensor:
    """[sp, R, size, ...] -> [R, total, ...]: the shards end to end, without the padding."""
    sp, rows, size, *rest = part.shape
    whole = part.transpose([1, 0, 2, *range(3, part.ndim)]).reshape([rows, sp * size, *rest])
    return whole[:, : tokens.total]


def _scatter(x: Tensor, tokens: Tokens, sp: int) -> Tensor:
    """[R, total, share] -> [sp, R, size, share], zeros as padding."""
    rows, total, share = x.shape
    missing = sp * tokens.size - total
    if missing:
        x = paddle.concat([x, paddle.zeros([rows, missing, share], dtype=x.dtype)], axis=1)
    return x.reshape([rows, sp, tokens.size, share]).transpose([1, 0, 2, 3])

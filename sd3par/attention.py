"""Joint attention of an MM-DiT block over this rank's heads (mp) and tokens (sp)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import paddle
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.kernels import Product
from sd3par.layers import Linear, RMSNorm
from sd3par.mesh import Mesh
from sd3par.padding import merge, pad
from sd3par.plan import Tokens, WeightPlan

NORM_EPSILON = 1e-6


class Attention(nn.Layer):
    """Products of the image's attention to itself: packed QKV by columns, output by rows, or whole.

    Names are diffusers' but for the packed ones: `qkv` is to_q, to_k, to_v; `to_out` is to_out.0. Queries get
    attention's scale from their norm, or where they have none from the loaded to_q.
    """

    def __init__(self, plan: WeightPlan, dtype: str, qk_norm: bool) -> None:
        super().__init__()
        dim, self.head_dim = plan.dim, plan.head_dim
        factors = () if qk_norm else (kernels.query_scale(self.head_dim), 1.0, 1.0)
        self.qkv = Linear(dim, plan.qkv, dtype, factors=factors)
        self.to_out = Linear(plan.out, dim, dtype)
        self.norm_q = RMSNorm(self.head_dim, NORM_EPSILON, dtype) if qk_norm else None
        self.norm_k = RMSNorm(self.head_dim, NORM_EPSILON, dtype) if qk_norm else None

    def project_image(self, x: Tensor) -> Product:
        """x: [R, ti, D] -> the product with `qkv`: sp rank by sp rank q, then k, then v of the heads of each."""
        return Product(x, self.qkv.weight, self.qkv.bias)

    def heads_of_image(self, packed: Tensor) -> Tensor:
        """packed: [R, Ti, 3 * heads * head_dim] of one sp rank's heads -> [R, Ti, 3, heads, head_dim]."""
        return kernels.split_heads(packed, self.head_dim, _weight(self.norm_q), _weight(self.norm_k))


class JointAttention(Attention):
    """The same for both streams together; `qkv_context` is add_q_proj, add_k_proj, add_v_proj.

    last: the text stream ends here and has no output.
    """

    def __init__(self, plan: WeightPlan, dtype: str, qk_norm: bool, last: bool) -> None:
        super().__init__(plan, dtype, qk_norm)
        dim = plan.dim
        self.qkv_context = Linear(dim, plan.qkv, dtype, factors=self.qkv.factors)
        self.to_add_out = None if last else Linear(plan.out, dim, dtype)
        self.norm_added_q = RMSNorm(self.head_dim, NORM_EPSILON, dtype) if qk_norm else None
        self.norm_added_k = RMSNorm(self.head_dim, NORM_EPSILON, dtype) if qk_norm else None

    def project_context(self, c: Tensor) -> Product:
        """c: [R, tc, D] -> the product with `qkv_context`."""
        return Product(c, self.qkv_context.weight, self.qkv_context.bias)

    def heads_of_context(self, packed: Tensor) -> Tensor:
        """packed: [R, Tc, 3 * heads * head_dim] of one sp rank's heads -> [R, Tc, 3, heads, head_dim]."""
        return kernels.split_heads(packed, self.head_dim, _weight(self.norm_added_q), _weight(self.norm_added_k))


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight


def mixed(together: list[list[Tensor]]) -> list[Tensor]:
    """Attention within each list of [R, T, 3, heads, hd] -> [R, T, heads * hd] of each."""
    return [x for segments in together for x in kernels.attention(segments)]


class SequenceExchange:
    """Ulysses (arXiv 2309.14509): tokens of this sp rank, all heads <-> all tokens, this sp rank's heads.

    What travels is a list of segments (image, text, and the image once more for a dual block), each sharded over sp
    with padding behind its last token; one all-to-all takes them all. Padding is dropped on arrival, so no key of it
    is ever seen and no mask is needed. Parts of an all-to-all are alike: where sp ranks have different numbers of
    heads, the part for one with fewer carries columns of its neighbour's.
    """

    def __init__(
        self,
        mesh: Mesh,
        plan: WeightPlan,
        multiply: Callable[[list[Product]], list[Tensor]] = kernels.linears,
        mix: Callable[[list[list[Tensor]]], list[Tensor]] = mixed,
    ) -> None:
        self.mesh, self.axis, self._multiply, self._mix = mesh, mesh.sp, multiply, mix
        self.widths = [len(heads) * plan.head_dim for heads in plan.groups]  # of q, of k and of v; the widest first

    def project(self, projections: list[Product], tokens: list[Tokens]) -> list[Tensor]:
        """Products over this rank's tokens -> [R, total, 3 * heads * hd] each: q, k, v of this sp rank's heads."""
        segments = self._multiply(projections)  # [R, size, 3 * inner]
        if self.axis.size == 1:
            return segments
        widths = [3 * width for width in self.widths]
        x, start = windows(paddle.concat(segments, axis=1), widths, self.axis.rank)
        x = self.mesh.all_to_all(self.axis, x)[..., start : start + widths[self.axis.rank]]  # part j from rank j
        parts = x.split([one.size for one in tokens], axis=2)
        return [_join(part, one) for part, one in zip(parts, tokens, strict=True)]

    def attend(self, together: list[list[Tensor]], tokens: list[Tokens]) -> list[Tensor]:
        """Attention within each list of [R, total, 3, heads, hd] -> [R, size, inner] of each, of this mp rank's heads.

        tokens: of all segments, list after list. Without sp that is what `mix` gives: under mp with peers all heads of
        the tokens that this rank norms.
        """
        parts = self._mix(together)  # [R, total, heads * hd]
        if self.axis.size == 1:
            return parts
        scattered = [_scatter(x, one, self.axis.size, self.widths[0]) for x, one in zip(parts, tokens, strict=True)]
        x = self.mesh.all_to_all(self.axis, paddle.concat(scattered, axis=2))  # part j holds the heads of rank j
        return merge(x, self.widths).split([one.size for one in tokens], axis=1)


def windows(x: Tensor, widths: list[int], rank: int) -> tuple[Tensor, int]:
    """Cuts [R, t, sum of widths], the widest first, into a window for each width, all as wide as the widest.

    Returns [windows, R, t, widest] and where number `rank` finds its own columns in its window.
    """
    total = x.shape[-1]
    if total == len(widths) * widths[0]:
        return x.reshape([0, 0, len(widths), widths[0]]).transpose([2, 0, 1, 3]), 0
    starts = [0, *accumulate(widths[:-1])]
    edges = [min(start, total - widths[0]) for start in starts]
    return paddle.stack([x[..., edge : edge + widths[0]] for edge in edges]), starts[rank] - edges[rank]


def _join(part: Tensor, tokens: Tokens) -> Tensor:
    """[sp, R, size, width] -> [R, total, width]: the shards end to end, without the padding."""
    sp, rows, size, width = part.shape
    whole = part.transpose([1, 0, 2, 3]).reshape([rows, sp * size, width])
    return whole[:, : tokens.total]


def _scatter(x: Tensor, tokens: Tokens, sp: int, width: int) -> Tensor:
    """[R, total, up to width] -> [sp, R, size, width], zeros as padding."""
    x = pad(pad(x, 2, width), 1, sp * tokens.size)
    return x.reshape([x.shape[0], sp, tokens.size, width]).transpose([1, 0, 2, 3])

"""What takes time in the MM-DiT and the autoencoder, one function each; the models call these alone.

Each is a Triton kernel where one fits: half precision on a GPU; a linear with a bias is one product of cuBLASLt.
Everything else runs the plain-Paddle references. While a static program is traced for a GPU, an operator of ours that
launches the kernel is written into it. Only this file knows which it is.
"""

from __future__ import annotations

from paddle import Tensor

from sd3par import device
from sd3par.config import require
from sd3par.kernels.adaln import MAX_DIM, Copies, Modulation, Outs, Stream, adaln_reference, adaln_triton
from sd3par.kernels.attention import MAX_HEAD_DIM, Scattered, attention_reference, attention_triton, query_scale
from sd3par.kernels.attention_hopper import attention_hopper
from sd3par.kernels.attention_hopper import fits as hopper_fits
from sd3par.kernels.conv import (
    conv3x3_reference,
    conv3x3_triton,
    fold,
    upsample_conv3x3_reference,
    upsample_conv3x3_triton,
)
from sd3par.kernels.conv import fits as conv_fits
from sd3par.kernels.gated_sum import gated_sum_reference, gated_sum_triton
from sd3par.kernels.group_norm_silu import fits as group_norm_fits
from sd3par.kernels.group_norm_silu import group_norm_silu_reference, group_norm_silu_triton
from sd3par.kernels.group_norm_strips import (
    Strip,
    group_norm_silu_strip_reference,
    group_norm_silu_strip_triton,
    pack_strip_reference,
    pack_strip_triton,
)
from sd3par.kernels.guidance_euler import guidance_euler_reference, guidance_euler_triton
from sd3par.kernels.linear import (
    Product,
    fuses,
    fuses_gelu,
    linear_fused,
    linear_gelu_fused,
    linear_gelu_reference,
    linear_reference,
)
from sd3par.kernels.linear_hopper import Rectangle
from sd3par.kernels.linear_to import (
    linear_into,
    linear_pair_reference,
    linear_pair_triton,
    linear_to,
    worth_a_pair,
)
from sd3par.kernels.meet import LIMIT_S, TRIAL, hear_triton, meet_triton, tell_triton
from sd3par.kernels.patch_embed import MAX_FEATURES, patch_embed_reference, patch_embed_triton
from sd3par.kernels.qkv import split_heads_reference, split_heads_triton
from sd3par.kernels.runtime import architecture, takes, why_not
from sd3par.kernels.static import calls
from sd3par.kernels.take_rows import take_rows_reference
from sd3par.kernels.tracing import target, traced

__all__ = [
    "Copies", "Modulation", "Outs", "Product", "Rectangle", "Scattered", "Stream", "Strip", "adaln", "attention",
    "conv3x3", "fold", "gated_sum", "gated_sum_to", "group_norm_silu", "group_norm_silu_strip", "guidance_euler",
    "hear", "linear", "linear_gelu", "linear_into", "linear_pair", "linear_to", "linears", "meet", "pack_strip",
    "patch_embed", "query_scale", "split_heads", "take_rows", "tell", "upsample_conv3x3", "wants_channels_last",
    "why_never_peers", "why_no_peers", "why_not_triton",
]  # fmt: skip


DESCRIPTORS = 90  # the architecture from which on GPUs have tensor descriptors


def why_not_triton(kind: str | None = None) -> str:
    """Returns why the references run on a kind of device (None: the current one), "" where Triton kernels do."""
    return why_not(kind or device.current().split(":")[0])


def why_no_peers(dtype: str) -> str:
    """Returns why kernels for models of a dtype cannot store to other GPUs' memory here, "" where they can."""
    return why_never_peers(dtype, device.current().split(":")[0]) or why_not_triton()


def why_never_peers(dtype: str, kind: str) -> str:
    """Returns the same of a kind of device, as far as it is known without one: it asks no driver."""
    if kind != "nvgpu":
        return f"on {kind} no kernels store to another process's memory"
    return "only half precision has such kernels" if dtype == "float32" else ""


def meet(flags: Tensor, targets: Tensor, trial: bool = False) -> None:
    """Waits on the device for other processes; flags: [n + 1] int32, targets: [n] int64 (meet.py).

    trial: goes on without the others if they do not come.
    """
    meet_triton(flags, targets, *((0, TRIAL) if trial else (LIMIT_S, 0)))


def tell(flags: Tensor, targets: Tensor, stream: int) -> None:
    """Tells other processes that `stream` has come so far; flags: [n + 2] int32, targets: [n] int64 (meet.py)."""
    tell_triton(flags, targets, stream)


def hear(flags: Tensor) -> None:
    """Waits on the device until all others have told once more; flags: [n + 2] int32 (meet.py)."""
    hear_triton(flags)


def wants_channels_last(dtype: str) -> bool:
    """Returns whether convolutions in a dtype run on maps [B, H, W, C] on the current device.

    Where it fetches blocks by tensor descriptors: without them, Triton's code for these loads is slow. While a program
    is traced for GPUs, these are meant.
    """
    aim = target()
    if aim is not None:
        return dtype != "float32" and min(aim.architectures) >= DESCRIPTORS
    return dtype != "float32" and not why_not_triton() and architecture() >= DESCRIPTORS


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, halo: bool = False) -> Tensor:
    """x: [B, H, W, C], weight: [O, 3, 3, C], bias: [O], residual: [B, H, W, O] or None -> [B, H, W, O].

    With a halo x is [B, H + 2, W, C], one line more above and below, and none is made up.
    """
    if not halo and traced(x) and calls.convolves(x):
        return calls.conv3x3(x, weight, bias, residual)
    if takes(x) and conv_fits(x):
        return conv3x3_triton(x, weight, bias, residual, halo=halo)
    return conv3x3_reference(x, weight, bias, residual, halo)


def upsample_conv3x3(x: Tensor, weight: Tensor, bias: Tensor, halo: bool = False) -> Tensor:
    """x: [B, H, W, C], weight: [4, O, 2, 2, C] of `fold`, bias: [O] -> the larger map convolved, [B, 2H, 2W, O].

    With a halo x is [B, H + 2, W, C].
    """
    if not halo and traced(x) and calls.convolves(x):
        return calls.upsample_conv3x3(x, weight, bias)
    if takes(x) and conv_fits(x):
        return upsample_conv3x3_triton(x, weight, bias, halo=halo)
    return upsample_conv3x3_reference(x, weight, bias, halo)


def attention(segments: list[Tensor], outs: list[Scattered] | None = None) -> list[Tensor]:
    """One or two [R, Ti, 3, heads, head_dim] -> [R, Ti, heads * head_dim] each; every token attends to all of both.

    Queries are times `query_scale(head_dim)`: keys weigh 2 ** (query @ key). With `outs`, one for each segment, results
    are stored there and the list is empty.
    """
    if outs is None and traced(segments[0]):
        return calls.attention(segments)
    if takes(segments[0]) and segments[0].shape[-1] <= MAX_HEAD_DIM:
        return (attention_hopper if hopper_fits(segments) else attention_triton)(segments, outs)
    return attention_reference(segments, outs)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [in, out], bias: [out] or None -> x @ weight + bias: [..., out]."""
    if bias is not None and traced(x):
        return calls.linear(x, weight, bias, False)
    if bias is not None and fuses(x):
        return linear_fused(x, weight, bias)
    return linear_reference(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., in], weight: [in, out], bias: [out] or None -> GELU(x @ weight + bias), its tanh form: [..., out]."""
    if bias is not None and traced(x):
        return calls.linear(x, weight, bias, True)
    if bias is not None and fuses_gelu(x, weight):
        return linear_gelu_fused(x, weight, bias)
    return linear_gelu_reference(x, weight, bias)


def linears(products: list[Product], gelu: bool = False) -> list[Tensor]:
    """Products of streams, x: [R, T, K] each -> [R, T, N] each, or their GELU; two small ones in one launch."""
    if products and traced(products[0].x) and calls.pairs(products):
        return calls.linear_pair(products, gelu)
    if worth_a_pair(products):
        return linear_pair(products, gelu)
    return [(linear_gelu if gelu else linear)(*one) for one in products]


def linear_pair(products: list[Product], gelu: bool) -> list[Tensor]:
    """Two products, x: [R, T, K] each -> [R, T, N] each, or their GELU: in one launch if they are `worth_a_pair`."""
    return (linear_pair_triton if worth_a_pair(products) else linear_pair_reference)(products, gelu)


def patch_embed(latents: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, rows: int) -> Tensor:
    """latents: [B, T, p * p * C] fp32, weight: [D, C, p, p], bias: [D], positions: [T, D] fp32 -> [rows, T, D].

    In the weight's dtype; the B images are repeated, rows / B times.
    """
    if traced(weight):
        return calls.patch_embed(latents, weight, bias, positions, rows)
    if takes(weight) and latents.shape[-1] <= MAX_FEATURES:
        return patch_embed_triton(latents, weight, bias, positions, rows)
    return patch_embed_reference(latents, weight, bias, positions, rows)


def adaln(streams: list[Stream], outs: Outs | None = None) -> list[tuple[Tensor, ...]]:
    """Adds its branch to each of one or two streams of R rows and D columns, and norms the sum.

    Returns of each the new x, [R, T, D], and its norm by each of its modulations, [R, T, D]; with `outs`, one for each
    norm, these are stored there instead. Without a branch x itself comes back.
    """
    x = streams[0].x
    if outs is None and traced(x):
        return calls.adaln(streams)
    if takes(x) and x.shape[-1] <= MAX_DIM:
        return adaln_triton(streams, outs)
    require(outs is None, "outs", "addresses", "None where Triton kernels do not run")
    return adaln_reference(streams)


def gated_sum(x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor) -> Tensor:
    """x, x2: [R, T, D], gate, gate2: [R, D] -> gate * x + gate2 * x2: [R, T, D].

    The result may lie in the memory of `x`, which is used up.
    """
    if traced(x):
        return calls.gated_sum(x, gate, x2, gate2)
    if takes(x) and x.shape[-1] <= MAX_DIM:
        gated_sum_triton(x, gate, x2, gate2, None)
        return x
    return gated_sum_reference(x, gate, x2, gate2)


def gated_sum_to(x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor, out: Scattered) -> None:
    """Stores what `gated_sum` gives to places in this GPU's memory or another's."""
    gated_sum_triton(x, gate, x2, gate2, out)


def split_heads(packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
    """packed: [R, T, 3 * heads * head_dim] (q, then k, then v) -> [R, T, 3, heads, head_dim].

    norm_q, norm_k: [head_dim], weights of the RMS norms, or None for none; queries that are normed are also scaled, by
    `query_scale`. What comes back may lie in the memory of `packed`, which is used up.
    """
    if traced(packed):
        return calls.split_heads(packed, head_dim, norm_q, norm_k)
    if norm_q is not None and norm_k is not None and takes(packed) and head_dim <= MAX_HEAD_DIM:
        return split_heads_triton(packed, head_dim, norm_q, norm_k)
    return split_heads_reference(packed, head_dim, norm_q, norm_k)


def take_rows(x: Tensor, numbers: Tensor) -> Tensor:
    """x: [n, W], numbers: [...] int64 from 0 to n - 1 -> rows of x, [..., W]."""
    return take_rows_reference(x, numbers)


def guidance_euler(
    latents: Tensor, uncond: Tensor | None, cond: Tensor, guidance_scale: Tensor | float, delta: Tensor
) -> Tensor:
    """Returns latents + delta * (uncond + guidance_scale * (cond - uncond)), in fp32.

    latents: [B, ...] fp32; uncond and cond: [B, ...], the noise predictions (uncond None without guidance);
    guidance_scale: [] fp32, or a number; delta: [] fp32, sigma_next - sigma. The result may lie in the memory of
    `latents`, which are used up.
    """
    if traced(cond):
        return calls.guidance_euler(latents, uncond, cond, guidance_scale, delta)
    if takes(cond):
        return guidance_euler_triton(latents, uncond, cond, guidance_scale, delta)
    return guidance_euler_reference(latents, uncond, cond, guidance_scale, delta)


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x: [B, H, W, C], weight and bias: [C] -> the norm over each of `groups` runs of channels, or its SiLU."""
    if traced(x) and calls.norms(x, groups):
        return calls.group_norm_silu(x, groups, weight, bias, epsilon, silu)
    if takes(x) and group_norm_fits(x, groups):
        return group_norm_silu_triton(x, groups, weight, bias, epsilon, silu)
    return group_norm_silu_reference(x, groups, weight, bias, epsilon, silu)


def pack_strip(x: Tensor, groups: int) -> Tensor:
    """x: [B, h, W, C], one of a map's strips -> what `group_norm_silu_strip` wants of each: [n], of any dtype."""
    if takes(x) and group_norm_fits(x, groups):
        return pack_strip_triton(x, groups)
    return pack_strip_reference(x, groups)


def group_norm_silu_strip(
    x: Tensor, messages: Tensor, strip: Strip, groups: int, weight: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """The SiLU of `group_norm_silu` of a map of which x is a strip, with a halo for the convolution behind it.

    x: [B, h, W, C], messages: [strips, n], `pack_strip` of all, weight and bias: [C] -> [B, h + 2, W, C].
    """
    if takes(x) and group_norm_fits(x, groups):
        return group_norm_silu_strip_triton(x, messages, strip, groups, weight, bias, epsilon)
    return group_norm_silu_strip_reference(x, messages, strip, groups, weight, bias, epsilon)

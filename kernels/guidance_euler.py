"""Classifier-free guidance and one Euler step of the flow, on latents in any layout."""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.runtime import jit, launch, tl

BLOCK = 512


def guidance_euler_reference(
    latents: Tensor, uncond: Tensor | None, cond: Tensor, guidance_scale: Tensor | float, delta: Tensor
) -> Tensor:
    """Returns latents + delta * (uncond + guidance_scale * (cond - uncond)), in fp32.

    latents: [B, ...] fp32; uncond and cond: [B, ...], the noise predictions (uncond None without guidance);
    guidance_scale: [] fp32, or a number; delta: [] fp32, sigma_next - sigma.
    """
    prediction = cond.astype("float32")
    if uncond is not None:
        other = uncond.astype("float32")
        prediction = other + guidance_scale * (prediction - other)
    return latents + delta * prediction


def guidance_euler_triton(
    latents: Tensor, uncond: Tensor | None, cond: Tensor, guidance_scale: Tensor | float, delta: Tensor
) -> Tensor:
    """The same in one kernel, which writes into `latents` and returns them, or a copy of latents with gaps."""
    given = {"latents": latents, "cond": cond, "uncond": cond if uncond is None else uncond}
    for name, x in given.items():
        require(x.shape == latents.shape, name, f"shape {x.shape}", f"shape {latents.shape}, as latents have")
    require(latents.dtype == paddle.float32, "latents", f"dtype {latents.dtype}", "dtype paddle.float32")
    out, cond, uncond_ = (x.contiguous() for x in given.values())
    # In memory of the device, where a recorded graph finds the scale of each request.
    scale = guidance_scale if isinstance(guidance_scale, Tensor) else paddle.full([], guidance_scale, "float32")
    size = latents.size
    launch(
        _guidance_euler, (-(-size // BLOCK),), out, cond, uncond_, scale, delta, size,
        GUIDED=uncond is not None, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out


@jit
def _guidance_euler(  # type: ignore[no-untyped-def]
    latents, cond, uncond, guidance_scale, delta, size, GUIDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    value = tl.load(latents + place, mask=mask)
    prediction = tl.load(cond + place, mask=mask).to(tl.float32)
    if GUIDED:
        other = tl.load(uncond + place, mask=mask).to(tl.float32)
        prediction = other + tl.load(guidance_scale) * (prediction - other)
    tl.store(latents + place, value + tl.load(delta) * prediction, mask=mask)

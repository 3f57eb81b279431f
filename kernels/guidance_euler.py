"""Classifier-free guidance and one Euler step of the flow, on latents in any layout."""

from __future__ import annotations

from paddle import Tensor


def guidance_euler_reference(
    latents: Tensor, uncond: Tensor | None, cond: Tensor, guidance_scale: float, delta: Tensor
) -> Tensor:
    """Returns latents + delta * (uncond + guidance_scale * (cond - uncond)), in fp32.

    latents: [B, ...] fp32; uncond and cond: [B, ...], the noise predictions (uncond None without guidance);
    delta: [] fp32, sigma_next - sigma.
    """
    prediction = cond if uncond is None else uncond + guidance_scale * (cond - uncond)
    return latents + delta * prediction.astype("float32")

"""What the loop begins with: noise, latents that were given, or a picture with as much noise as its strength wants."""

from __future__ import annotations

from paddle import Tensor

from sd3par.captured import Captured, ways
from sd3par.engine import Autoencoder
from sd3par.inputs import Start
from sd3par.noise import noise
from sd3par.scheduler import Schedule, add_noise


def first_latents(
    start: Start,
    shape: tuple[int, int, int, int],
    seed: int,
    plan: Schedule,
    vae: Autoencoder,
    captured: Captured | None,
) -> Tensor:
    """Returns the latents of a shape, [B, C, h, w] fp32, that the loop begins with, the same on every rank."""
    if start.latents is not None:
        return start.latents
    if start.picture is None:
        return noise(shape, seed)
    # diffusers draws the posterior's sample first, then the noise, from one generator per image.
    drawn = noise((shape[0], 2 * shape[1], *shape[2:]), seed)
    posterior, fresh = drawn.chunk(2, axis=1)
    alone, _ = ways(captured)
    latents = alone(vae.encode, start.picture, posterior)  # [1, 3, H, W], encoded once -> [B, C, h, w]
    return add_noise(latents, fresh, float(plan.sigmas[0]))

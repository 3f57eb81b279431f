"""An exported autoencoder, as the pipeline calls one."""

from __future__ import annotations

import math
from collections.abc import Callable

import paddle
from paddle import Tensor

from sd3par.captured import Captured, ways
from sd3par.mesh import Mesh
from sd3par.static.program import Program
from sd3par.vae.config import VAEConfig


class StaticVAE:
    """Programs that encode and decode; processes share pictures, and each makes those that are left over."""

    def __init__(self, config: VAEConfig, mesh: Mesh, decode: Program, encode: Program) -> None:
        self.config, self.mesh = config, mesh
        self._decoder, self._encoder = decode, encode

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along height and along width."""
        return self.config.scale_factor

    def decode(self, latents: Tensor) -> Tensor:
        """latents: [B, C, H/s, W/s] fp32 -> images [B, 3, H, W], -1 to 1 but not clamped."""
        return self._decoder(latents, _count([latents.shape[0], *latents.shape[2:]]))[0]

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """images: [1, 3, H, W], noise: [B, C, H/s, W/s] -> a sample of the posterior for each, like noise, fp32."""
        return self._encoder(images.astype("float32"), noise, _count([images.shape[0], *noise.shape[2:]]))[0]

    def decode_each(self, latents: Tensor, captured: Captured | None = None) -> Tensor:
        """The same as `decode` for many images, one after the other, by calls that are recorded."""
        alone, _ = ways(captured)
        call: Callable[[Tensor], Tensor] = lambda one: alone(self.decode, one)  # noqa: E731
        images, world = latents.split(latents.shape[0]), self.mesh.world
        share = len(images) // world.size if world.size > 1 else 0
        made = [call(one) for one in images[world.rank * share : (world.rank + 1) * share]]
        if made:
            made = [self.mesh.all_gather(world, paddle.concat(made)).flatten(0, 1)]
        return paddle.concat(made + [call(one) for one in images[world.size * share :]])


def _count(shape: list[int]) -> Tensor:
    """Returns numbers from 0 on in a shape, int64."""
    return paddle.arange(math.prod(shape)).reshape(shape)

"""One rank of tests/test_strips.py: the decoder by strips of rows against one process.

Run: python -m tests.strips_worker (with the launcher's environment). Prints one JSON line, name -> error.
"""

from __future__ import annotations

import json
import os

import numpy as np
import paddle
from paddle import Tensor

from sd3par.config import ParallelConfig
from sd3par.mesh import Mesh
from sd3par.vae import VAE
from tests.arrays import array
from tests.test_vae import VARIANTS, component, error

# Rows and columns of latents: those that no world of up to four divides, and fewer than there are processes.
SIZES = [(9, 10), (30, 5), (25, 3), (4, 4), (3, 7), (2, 6), (1, 5)]


class Counted(Mesh):
    """A mesh that counts what is sent."""

    sent: list[list[int]] = []

    def all_gather(self, axis, x: Tensor) -> Tensor:  # noqa: D102
        self.sent.append(x.shape)
        return super().all_gather(axis, x)


def latents_of(variant: str, images: int, height: int, width: int) -> Tensor:
    channels = component(variant).config["latent_channels"]
    return paddle.to_tensor(array(f"latents {variant} {height}", (images, channels, height, width), 1.0))


def decoded(mesh: Mesh) -> dict[str, float]:
    """Returns the error of each variant and size, of one and of several images at once."""
    found = {}
    for variant in VARIANTS:
        vae = VAE.load(component(variant), "float32", encoder=False, mesh=mesh)
        for height, width in SIZES if variant == "sd3" else SIZES[:1]:
            latents = latents_of(variant, 2, height, width)
            want = vae.decode(latents).numpy()
            found[f"{variant} {height} x {width}"] = error(vae.decode_together(latents), want)
            found[f"{variant} {height} x {width}, first image"] = error(vae.decode_together(latents[:1]), want[:1])
    return found


def many(mesh: Mesh) -> dict[str, float]:
    """Returns the error of as many images as leave every remainder, which are made by one process each or by all."""
    found = {}
    vae = VAE.load(component("quant"), "float32", encoder=False, mesh=mesh)
    most = 2 * mesh.world.size + 1
    latents = latents_of("quant", most, 5, 6)
    want = vae.decode(latents).numpy()
    for images in (*range(1, mesh.world.size + 1), most):
        found[f"{images} images"] = error(vae.decode_each(latents[:images]), want[:images])
    return found


def collectives(mesh: Mesh) -> dict[str, float]:
    """Returns by how many the collectives of a decode differ from one each for norms, upsamplers, attention, pixels."""
    counted = Counted(mesh.dp, mesh.sp, mesh.mp, mesh.world, mesh.host)
    vae = VAE.load(component("sd3"), "float32", encoder=False, mesh=counted)
    vae.decode_together(latents_of("sd3", 1, 9, 10))
    decoder = vae.decoder
    resnets = len(decoder.mid_block.resnets) + sum(len(block.resnets) for block in decoder.up_blocks)
    upsamplers = sum(len(block.upsamplers) for block in decoder.up_blocks)
    want = 2 * resnets + 1 + upsamplers + len(decoder.mid_block.attentions) + 1
    return {"collectives": float(abs(len(counted.sent) - want))}


def main() -> None:
    """Checks all."""
    world = int(os.environ["PADDLE_TRAINERS_NUM"])
    paddle.set_device("cpu")
    mesh = Mesh.from_env(ParallelConfig(dp=1, mp=1, sp=world))
    with paddle.no_grad():
        found = decoded(mesh) | many(mesh) | collectives(mesh)
    assert all(np.isfinite(value) for value in found.values())
    print("RESULT", json.dumps(found), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()

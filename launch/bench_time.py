"""One call of a pipeline timed, from text states on the device on: what every benchmark of whole pictures counts."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import paddle
from paddle import Tensor

from sd3par import device
from sd3par.config import GenerationRequest
from sd3par.inputs import Inputs, PromptEmbeds
from sd3par.pipeline import SD3Pipeline


def seconds(
    pipe: SD3Pipeline, request: GenerationRequest, images: int, text_tokens: int, seed: int
) -> tuple[float, float]:
    """Returns the seconds of a request to latents and to pictures on the device, each the slowest rank's.

    Its text states, of `text_tokens` tokens, are of `images` prompts that were never seen before.
    """
    inputs = Inputs(embeds=embeds(pipe, images, text_tokens, seed))
    device.synchronize()
    pipe.mesh.barrier()
    start = time.perf_counter()
    latents = pipe.generate(dataclasses.replace(request, seed=seed), inputs, "latent", progress=False).images
    device.synchronize()
    loop = time.perf_counter() - start
    pipe.pixels(latents)
    device.synchronize()
    image = time.perf_counter() - start
    return largest(pipe, loop), largest(pipe, image)


def embeds(pipe: SD3Pipeline, images: int, text_tokens: int, seed: int) -> PromptEmbeds:
    """Returns text states [images, text_tokens, J] and [images, P] on the device, the same on every rank."""
    config, draw = pipe.transformer.config, np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return paddle.to_tensor(draw.standard_normal(shape, dtype=np.float32)).astype(pipe.transformer.dtype)

    tokens, pooled = (images, text_tokens, config.joint_attention_dim), (images, config.pooled_projection_dim)
    return PromptEmbeds(normal(*tokens), normal(*pooled), normal(*tokens), normal(*pooled))


def largest(pipe: SD3Pipeline, value: float) -> float:
    """Returns the largest of all ranks' values."""
    return float(pipe.mesh.all_gather(pipe.mesh.world, paddle.to_tensor([value], dtype="float32")).max().item())

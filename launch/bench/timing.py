"""One call of a pipeline timed, from text states on the device on: what every benchmark of whole pictures counts."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor

from sd3par import device
from sd3par.config import GenerationRequest
from sd3par.inputs import Inputs, PromptEmbeds
from sd3par.launch.bench.states import states
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
    config, dtype = pipe.transformer.config, pipe.transformer.dtype

    def of_all(one: np.ndarray) -> Tensor:
        first, axes = paddle.to_tensor(one).astype(dtype), list(range(one.ndim))
        return paddle.stack([paddle.roll(first, [image] * one.ndim, axes) for image in range(images)])

    found = states(seed, text_tokens, config.joint_attention_dim, config.pooled_projection_dim)
    return PromptEmbeds(*map(of_all, found))


def largest(pipe: SD3Pipeline, value: float) -> float:
    """Returns the largest of all ranks' values."""
    return float(pipe.mesh.all_gather(pipe.mesh.world, paddle.to_tensor([value], dtype="float32")).max().item())


def summary(name: str, taken: Sequence[float]) -> dict[str, float]:
    """Returns median, shortest and 90th percentile of some seconds, as NAME_s, NAME_min_s and NAME_p90_s."""
    return {f"{name}_s": statistics.median(taken), f"{name}_min_s": min(taken), f"{name}_p90_s": percentile90(taken)}


def percentile90(taken: Sequence[float]) -> float:
    """Returns the value that nine of ten do not exceed: of five or fewer the largest."""
    return sorted(taken)[round(0.9 * (len(taken) - 1))]

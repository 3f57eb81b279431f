"""diffusers' side: makes weights that can fail a parity test, the fp32 reference, diffusers' own error, its time.

    python -m benchmarks.gpu.peer sd3-medium FOLDER --sizes 1024 512

Runs in a process of its own (torch). Writes FOLDER/transformer, vae, scheduler (a diffusers folder without text
encoders) and FOLDER/reference.npz, and prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.modules["kernels"] = None  # type: ignore[assignment]  # diffusers looks for PyPI's package and would find ours
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from benchmarks.gpu.shapes import GUIDANCE, TEXT_TOKENS, TIMESTEP, TRANSFORMERS, WARM_UPS, relative, vae  # noqa: E402

_QUERY_KEY = ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")
_QUERY_KEY_NORM = ("norm_q.", "norm_k.", "norm_added_q.", "norm_added_k.")
ENGINES = ("eager", "default", "reduce-overhead", "max-autotune")


def sharpen(transformer: SD3Transformer2DModel) -> None:
    """Scales weights so that a wrong attention or modulation shows: by default it hides behind bf16's rounding."""
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if any(part in name for part in _QUERY_KEY):
                parameter.mul_(3)
            elif any(part in name for part in _QUERY_KEY_NORM):
                parameter.mul_(2)  # SD3.5: the RMS norm undoes the scaling above
            elif "norm1" in name and ".linear." in name:
                parameter.mul_(4)


def make(model: str, folder: Path, device: str) -> tuple[SD3Transformer2DModel, AutoencoderKL]:
    """Returns both models in bf16, after writing them to `folder`."""
    torch.manual_seed(0)
    with torch.device(device):
        transformer = SD3Transformer2DModel(**TRANSFORMERS[model]).to(torch.bfloat16).eval()
        decoder = AutoencoderKL(**vae(model)).to(torch.bfloat16).eval()
    sharpen(transformer)
    transformer.save_pretrained(folder / "transformer", max_shard_size="4GB")
    decoder.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).save_pretrained(folder / "scheduler")
    return transformer, decoder


def draw(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Returns normal numbers that bf16 can hold."""
    return torch.randn(*shape, generator=generator).to(torch.bfloat16).float()


def inputs(config: dict[str, Any], side: int) -> dict[str, torch.Tensor]:
    """Returns one guidance batch for the transformer and one image for the VAE, fp32 on the CPU."""
    generator = torch.Generator().manual_seed(2)
    latents = draw(generator, 1, 16, side, side).repeat(2, 1, 1, 1)
    return {
        "latents": latents,
        "context": draw(generator, 2, TEXT_TOKENS, config["joint_attention_dim"]),
        "pooled": draw(generator, 2, config["pooled_projection_dim"]),
        "decoded": draw(generator, 1, 16, side, side),
    }


@torch.no_grad()
def predictions(
    transformer: SD3Transformer2DModel, decoder: AutoencoderKL, given: dict[str, torch.Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the noise prediction and the VAE's image in the models' dtype, as fp32."""
    like = next(transformer.parameters())
    x, context, pooled, z = (given[name].to(like) for name in ("latents", "context", "pooled", "decoded"))
    times = torch.full((2,), TIMESTEP, device=like.device)
    noise = transformer(x, context, pooled, times, return_dict=False)[0]
    z = z.float() / decoder.config.scaling_factor + decoder.config.shift_factor
    image = decoder.decode(z.to(like), return_dict=False)[0]
    return noise.float().cpu().numpy(), image.float().cpu().numpy()


def reference(
    transformer: SD3Transformer2DModel, decoder: AutoencoderKL, given: dict[str, torch.Tensor], folder: Path
) -> dict[str, float]:
    """Writes inputs and fp32 outputs of the bf16 weights to reference.npz; returns the errors of diffusers' bf16."""
    noise, image = predictions(transformer, decoder, given)
    wanted_noise, wanted_image = predictions(transformer.float(), decoder.float(), given)
    transformer.to(torch.bfloat16), decoder.to(torch.bfloat16)
    errors = {"noise_error": relative(noise, wanted_noise), "image_error": relative(image, wanted_image)}
    arrays = {name: tensor.numpy() for name, tensor in given.items()}
    arrays |= {name: np.float64(error) for name, error in errors.items()}
    np.savez(folder / "reference.npz", noise=wanted_noise, image=wanted_image, **arrays)
    return errors


def pipeline(model: str, transformer: SD3Transformer2DModel, decoder: AutoencoderKL) -> StableDiffusion3Pipeline:
    """Returns diffusers' pipeline as fast as eager makes it."""
    if model != "sd3.5-medium" and model != "micro":  # its fused processor fails on the second attention of a block
        transformer.fuse_qkv_projections()
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=decoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compiled(transformer: SD3Transformer2DModel, engine: str) -> Any:
    """Returns the transformer as torch.compile makes it in a mode, or as it is for "eager"."""
    if engine == "eager":
        return transformer
    torch.compiler.reset()
    return torch.compile(transformer, mode=None if engine == "default" else engine, fullgraph=True)


def seconds(
    pipe: StableDiffusion3Pipeline, config: dict[str, Any], px: int, steps: int, output: str, seed: int
) -> float:
    """Returns the seconds of one call, with embeddings that were never seen before."""
    device, wait = pipe.device, torch.cuda.synchronize if pipe.device.type == "cuda" else lambda: None
    generator = torch.Generator(device).manual_seed(seed)

    def embeds(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=generator)

    tokens, pooled = (1, TEXT_TOKENS, config["joint_attention_dim"]), (1, config["pooled_projection_dim"])
    call = dict(prompt_embeds=embeds(*tokens), negative_prompt_embeds=embeds(*tokens),
                pooled_prompt_embeds=embeds(*pooled), negative_pooled_prompt_embeds=embeds(*pooled))  # fmt: skip
    wait()
    start = time.perf_counter()
    pipe(**call, height=px, width=px, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type=output,
         generator=generator)  # fmt: skip
    wait()
    return time.perf_counter() - start


def times(once: Callable[[int], float], repeats: int) -> list[float]:
    """Returns the seconds of `repeats` calls after the warm-ups."""
    return [once(seed) for seed in range(WARM_UPS + repeats)][WARM_UPS:]


@torch.no_grad()
def measure(pipe: StableDiffusion3Pipeline, model: str, px: int, steps: int, repeats: int) -> dict[str, Any]:
    """Returns one row: loop, image, memory."""
    fastest = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    config, cuda = TRANSFORMERS[model], torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with sdpa_kernel(fastest, set_priority=True):
        loop = times(lambda seed: seconds(pipe, config, px, steps, "latent", seed), repeats)
        image = times(lambda seed: seconds(pipe, config, px, steps, "pt", seed), repeats)
    return {
        "height": px, "width": px, "loop_s": statistics.median(loop), "image_s": statistics.median(image),
        "step_ms": 1e3 * statistics.median(loop) / steps, "repeats": repeats,
        "spread": sorted(loop)[int(0.9 * (repeats - 1))] / statistics.median(loop) - 1,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
    }  # fmt: skip


def main() -> None:
    """Makes, checks and times; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", choices=TRANSFORMERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures to time, in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--engines", nargs="*", choices=ENGINES, default=["eager"], help="eager, or torch.compile's modes"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the reference is true fp32
    transformer, decoder = make(options.model, options.folder, device)
    given = inputs(TRANSFORMERS[options.model], TRANSFORMERS[options.model]["sample_size"])
    errors = reference(transformer, decoder, given, options.folder)
    print(json.dumps({"bench": "parity", "who": "diffusers", "engine": "eager", **errors}), flush=True)
    pipe = pipeline(options.model, transformer, decoder)
    for engine in options.engines:
        pipe.transformer = compiled(transformer, engine)
        who = "diffusers" if engine == "eager" else "diffusers-compile"
        for px in options.sizes:
            row = measure(pipe, options.model, px, options.steps, options.repeats)
            print(json.dumps({"bench": "loop", "who": who, "engine": engine, **row}), flush=True)


if __name__ == "__main__":
    main()

"""diffusers' side: makes weights that can fail a parity test, the fp32 reference, and diffusers' own error.

    python -m benchmarks.gpu.peer sd3-medium FOLDER

Runs in a process of its own (torch). Writes FOLDER/transformer, vae, scheduler (a diffusers folder without text
encoders) and FOLDER/reference.npz, and prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.modules["kernels"] = None  # type: ignore[assignment]  # diffusers looks for PyPI's package and would find ours
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel  # noqa: E402

from benchmarks.gpu.shapes import TIMESTEP, TRANSFORMERS, case_name, cases, relative, vae  # noqa: E402

_QUERY_KEY = ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")
_QUERY_KEY_NORM = ("norm_q.", "norm_k.", "norm_added_q.", "norm_added_k.")


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


def inputs(config: dict[str, Any], case: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Returns one guidance batch for the transformer, fp32 on the CPU."""
    generator = torch.Generator().manual_seed(2)
    height, width, tokens = case
    latents = draw(generator, 1, 16, height // 8, width // 8).repeat(2, 1, 1, 1)
    context = draw(generator, 2, tokens, config["joint_attention_dim"])
    return {"latents": latents, "context": context, "pooled": draw(generator, 2, config["pooled_projection_dim"])}


@torch.no_grad()
def predict(transformer: SD3Transformer2DModel, given: dict[str, torch.Tensor]) -> np.ndarray:
    """Returns the noise prediction in the model's dtype, as fp32."""
    like = next(transformer.parameters())
    x, context, pooled = (given[name].to(like) for name in ("latents", "context", "pooled"))
    times = torch.full((2,), TIMESTEP, device=like.device)
    return transformer(x, context, pooled, times, return_dict=False)[0].float().cpu().numpy()


@torch.no_grad()
def decode(decoder: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """latents: [1, 16, h, w] -> the VAE's image [1, 3, H, W] in the model's dtype, as fp32."""
    z = latents / decoder.config.scaling_factor + decoder.config.shift_factor
    return decoder.decode(z.to(next(decoder.parameters())), return_dict=False)[0].float().cpu().numpy()


def reference(
    transformer: SD3Transformer2DModel, decoder: AutoencoderKL, model: str, folder: Path
) -> list[dict[str, Any]]:
    """Writes inputs and fp32 outputs of the bf16 weights to reference.npz; returns a row of each case's bf16 error."""
    drawn = {case: inputs(TRANSFORMERS[model], case) for case in cases(model)}
    height, width, _ = next(iter(drawn))
    latents = draw(torch.Generator().manual_seed(3), 1, 16, height // 8, width // 8)
    noises = {case: predict(transformer, given) for case, given in drawn.items()}
    image = decode(decoder, latents)
    transformer.float(), decoder.float()
    arrays = {"decoded": latents.numpy(), "image": decode(decoder, latents)}
    rows: list[dict[str, Any]] = []
    for case, given in drawn.items():
        wanted = predict(transformer, given)
        height, width, tokens = case
        rows.append({"height": height, "width": width, "text_tokens": tokens,
                     "noise_error": relative(noises[case], wanted)})  # fmt: skip
        for name, array in {**{name: tensor.numpy() for name, tensor in given.items()}, "noise": wanted}.items():
            arrays[f"{case_name(*case)}/{name}"] = array
    rows[0]["image_error"] = relative(image, arrays["image"])
    np.savez(folder / "reference.npz", **arrays)
    return rows


def main() -> None:
    """Makes and checks; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", choices=TRANSFORMERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no_parity", action="store_true", help="weights alone")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the reference is true fp32
    transformer, decoder = make(options.model, options.folder, device)
    for row in [] if options.no_parity else reference(transformer, decoder, options.model, options.folder):
        print(json.dumps({"bench": "parity", "who": "diffusers", "engine": "eager", **row}), flush=True)


if __name__ == "__main__":
    main()

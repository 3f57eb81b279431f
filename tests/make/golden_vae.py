"""Writes tests/golden/vae_*.npz: what diffusers' AutoencoderKL and VaeImageProcessor make of the tests' arrays.

Run: python -m tests.make.golden_vae
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from tests.arrays import array, weight

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"layers_per_block": 2, "norm_num_groups": 8, "latent_channels": 16}
PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
# name -> config, widths of the levels, height and width of the images.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int]]] = {
    "sd3": ({**SMALL, **PLAIN, "scaling_factor": 1.5305, "shift_factor": 0.0609}, (16, 32, 32, 32), (48, 80)),
    "quant": ({**SMALL, "scaling_factor": 0.18215, "shift_factor": None}, (16, 32, 32, 32), (16, 16)),
    "no_attention": (
        {**SMALL, **PLAIN, "latent_channels": 4, "layers_per_block": 1, "mid_block_add_attention": False},
        (16, 32),
        (16, 24),
    ),
}


def make(config: dict[str, Any], channels: tuple[int, ...]) -> AutoencoderKL:
    """Returns diffusers' model with the weights of tests.arrays."""
    levels = len(channels)
    model = AutoencoderKL(
        **config,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    state = {name: torch.from_numpy(weight(name, tuple(value.shape))) for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    return model.eval().double()  # the reference has no rounding of its own


@torch.no_grad()
def outputs(model: AutoencoderKL, height: int, width: int) -> dict[str, np.ndarray]:
    """Returns the golden arrays of two different images and of two different latents."""
    scale, shift = model.config.scaling_factor, model.config.shift_factor or 0.0
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    shape = (2, model.config.latent_channels, height // factor, width // factor)
    latents, noise = (torch.from_numpy(array(f"vae.{name}", shape)).double() for name in ("latents", "noise"))
    images = torch.from_numpy(array("vae.images", (2, 3, height, width), 0.5)).double()
    posterior = model.encode(images).latent_dist
    results = {
        "decoded": model.decode(latents / scale + shift).sample,
        "mean": (posterior.mean - shift) * scale,
        "sample": (posterior.mean + posterior.std * noise - shift) * scale,
    }
    return {name: value.float().numpy() for name, value in results.items()}


def pixels() -> dict[str, np.ndarray]:
    """Returns what diffusers makes of image tensors and of a picture."""
    processor = VaeImageProcessor(vae_scale_factor=8)
    images = torch.from_numpy(array("pixels.images", (2, 3, 8, 16), 0.8))
    levels = (array("pixels.picture", (37, 53, 3)) * 60 + 128).clip(0, 255).astype(np.uint8)
    return {
        "uint8": np.stack([np.asarray(picture) for picture in processor.postprocess(images, output_type="pil")]),
        "unit": processor.postprocess(images, output_type="np"),
        "loaded": processor.preprocess(Image.fromarray(levels), height=16, width=24).numpy(),
    }


def main() -> None:
    """Writes one file a variant, and one for pixels."""
    np.savez_compressed(GOLDEN / "vae_pixels.npz", **pixels())
    for name, (config, channels, (height, width)) in VARIANTS.items():
        model = make(config, channels)
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        texts = {"config": model.to_json_string(), "shapes": json.dumps(shapes)}
        np.savez_compressed(GOLDEN / f"vae_{name}.npz", **texts, **outputs(model, height, width))


if __name__ == "__main__":
    main()

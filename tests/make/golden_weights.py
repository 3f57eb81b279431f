"""Writes tests/golden/weights_single_file.json: what diffusers' converters make of the tests' original checkpoints.

Run: python -m tests.make.golden_weights   (needs torch and diffusers)
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from tests.weights import originals

GOLDEN = Path(__file__).parent.parent / "golden" / "weights_single_file.json"

CONFIGS: dict[str, dict[str, Any]] = {
    "sd3": {
        "sample_size": 128, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 128,
        "pooled_projection_dim": 40, "pos_embed_max_size": 6, "dual_attention_layers": [], "qk_norm": None,
    },
    "sd35": {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 3,
        "attention_head_dim": 64, "num_attention_heads": 1, "joint_attention_dim": 32, "caption_projection_dim": 64,
        "pooled_projection_dim": 24, "pos_embed_max_size": 8, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm",
    },
    "vae": {
        "sample_size": 1024, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1,
        "block_out_channels": [32, 64, 96], "norm_num_groups": 32, "act_fn": "silu", "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": True,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "latents_mean": None, "latents_std": None,
    },
}  # fmt: skip


def torch_values(shapes: originals.Shapes, prefix: str) -> dict[str, torch.Tensor]:
    """The original checkpoint's tensors."""
    return {name: torch.from_numpy(array) for name, array in originals.values(shapes, prefix).items()}


def transformer(name: str, sizes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """An MM-DiT under diffusers' names; strict on both sides."""
    stored = torch_values(originals.transformer(**sizes), "model.diffusion_model.")
    converted = convert_sd3_transformer_checkpoint_to_diffusers(stored)
    if stored:
        raise ValueError(f"left over: {sorted(stored)}")
    SD3Transformer2DModel(**CONFIGS[name]).load_state_dict(converted, strict=True)
    return converted


def vae() -> dict[str, torch.Tensor]:
    """An autoencoder under diffusers' names; strict on both sides."""
    stored = torch_values(originals.vae(**originals.TINY_VAE), "first_stage_model.")
    converted = convert_ldm_vae_checkpoint(dict(stored), CONFIGS["vae"])
    if len(converted) != len(stored):
        raise ValueError("tensors were lost")
    AutoencoderKL(**CONFIGS["vae"]).load_state_dict(converted, strict=True)
    return converted


def fingerprint(tensor: torch.Tensor) -> list[Any]:
    """[shape, CRC-32 of the fp32 bytes]."""
    return [list(tensor.shape), zlib.crc32(tensor.contiguous().numpy().tobytes())]


def main() -> None:
    """Writes the golden file."""
    models = {
        "sd3": transformer("sd3", originals.TINY_SD3),
        "sd35": transformer("sd35", originals.TINY_SD35),
        "vae": vae(),
    }
    golden = {
        name: {"config": CONFIGS[name], "tensors": {key: fingerprint(tensors[key]) for key in sorted(tensors)}}
        for name, tensors in models.items()
    }
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()

"""SD3's autoencoder under the names of latent diffusion: views under diffusers' names, and its config."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sd3par.weights.shapes import NUMBER, Shapes
from sd3par.weights.views import Same, Squeezed, View

_SCALING, _SHIFT = 1.5305, 0.0609  # of SD3's latents; no file holds them
_GROUPS = 32  # of every group norm of this family; no shape tells it

_ENDS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

_END = re.compile(r"(encoder|decoder)\.(\w+)")
_DOWN = re.compile(rf"encoder\.down\.{NUMBER}\.(?:block\.{NUMBER}\.(\w+)|downsample\.(conv))")
_UP = re.compile(rf"decoder\.up\.{NUMBER}\.(?:block\.{NUMBER}\.(\w+)|upsample\.(conv))")
_MID = re.compile(r"(encoder|decoder)\.mid\.(?:block_([12])\.(\w+)|attn_1\.(\w+))")


def vae_views(names: Iterable[str], prefix: str, levels: int) -> tuple[dict[str, View], list[str]]:
    """Returns diffusers' name -> view of a stored tensor, and the names that are none of the model's.

    Args:
        names: stored names, each beginning with `prefix`.
        levels: number of resolutions: latent diffusion counts the decoder's from the end, diffusers from the start.
    """
    views: dict[str, View] = {}
    unknown = []
    for name in names:
        parent, _, kind = name.removeprefix(prefix).rpartition(".")
        target = _target(parent, levels) if kind in ("weight", "bias") else None
        if target is None:
            unknown.append(name)
            continue
        linear = ".attentions." in target and "group_norm" not in target and kind == "weight"
        views[f"{target}.{kind}"] = Squeezed(name) if linear else Same(name)
    return views, unknown


def _target(parent: str, levels: int) -> str | None:
    """Returns diffusers' name of the layer `parent`, None if there is none."""
    if (match := _END.fullmatch(parent)) and match[2] in _ENDS:
        return f"{match[1]}.{_ENDS[match[2]]}"
    if match := _DOWN.fullmatch(parent):
        return _level(f"encoder.down_blocks.{match[1]}", "downsamplers", match)
    if match := _UP.fullmatch(parent):
        return _level(f"decoder.up_blocks.{levels - 1 - int(match[1])}", "upsamplers", match)
    if match := _MID.fullmatch(parent):
        return _middle(match)
    return None


def _level(block: str, samplers: str, match: re.Match[str]) -> str | None:
    _, resnet, layer, conv = match.groups()
    if conv:
        return f"{block}.{samplers}.0.conv"
    return f"{block}.resnets.{resnet}.{_RESNET[layer]}" if layer in _RESNET else None


def _middle(match: re.Match[str]) -> str | None:
    side, resnet, layer, attention = match.groups()
    if attention:
        return f"{side}.mid_block.attentions.0.{_ATTENTION[attention]}" if attention in _ATTENTION else None
    return f"{side}.mid_block.resnets.{int(resnet) - 1}.{_RESNET[layer]}" if layer in _RESNET else None


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Returns the config of diffusers' `AutoencoderKL`, from shapes and names, with SD3's scaling and shift.

    Raises:
        CheckpointError: a tensor that tells it is missing, or its shape is impossible.
    """
    levels = shapes.count(rf"encoder\.down\.{NUMBER}\.")
    return {
        "sample_size": 1024,
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.weight", 0),
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "block_out_channels": [shapes.size(f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)],
        "layers_per_block": shapes.count(rf"encoder\.down\.0\.block\.{NUMBER}\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": _GROUPS,
        "act_fn": "silu",
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
        "latents_mean": None,
        "latents_std": None,
        "scaling_factor": _SCALING,
        "shift_factor": _SHIFT,
    }

"""The MM-DiT under Stability AI's names: views under diffusers' names, and the config that the shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from sd3par.weights.shapes import NUMBER, Shapes
from sd3par.weights.views import Packed, Same, Swapped, View

_HEAD_DIM = 64  # of every SD3; a file with qk norm says it itself

_OUTER = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_INNER = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
_PACKED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_BLOCK_PREFIX = rf"joint_blocks\.{NUMBER}\."
_BLOCK = re.compile(_BLOCK_PREFIX + "(.+)")


def is_bare(names: Iterable[str]) -> bool:
    """Returns whether `names` are those of an MM-DiT without any prefix."""
    return any(name.startswith("joint_blocks.0.") for name in names)


def transformer_views(names: Iterable[str], prefix: str, layers: int) -> tuple[dict[str, View], list[str]]:
    """Returns diffusers' name -> view of a stored tensor, and the names that are none of the model's.

    Args:
        names: stored names, each beginning with `prefix`.
        layers: number of joint blocks: in the last one the context's (shift, scale) are swapped as in the final layer.
    """
    swapped = (f"joint_blocks.{layers - 1}.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1")
    views: dict[str, View] = {}
    unknown = []
    for name in names:
        found = _views_of(name.removeprefix(prefix), name, swapped)
        views |= found
        unknown += [] if found else [name]
    return views, unknown


def _views_of(name: str, key: str, swapped: tuple[str, ...]) -> dict[str, View]:
    """Returns the views of one tensor, `name` without its prefix, stored as `key`; none if it is unknown."""
    if name == "pos_embed":
        return {_OUTER[name]: Same(key)}
    parent, _, kind = name.rpartition(".")
    block = _BLOCK.fullmatch(parent)
    if kind not in ("weight", "bias"):
        return {}
    if block and block[2] in _PACKED:
        targets = _PACKED[block[2]]
        return {f"transformer_blocks.{block[1]}.{to}.{kind}": Packed(key, i, 3) for i, to in enumerate(targets)}
    view = Swapped(key) if parent in swapped else Same(key)
    if block and block[2] in _INNER:
        return {f"transformer_blocks.{block[1]}.{_INNER[block[2]]}.{kind}": view}
    return {f"{_OUTER[parent]}.{kind}": view} if parent in _OUTER else {}


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """Returns the config of diffusers' `SD3Transformer2DModel`, from shapes and names alone.

    Raises:
        CheckpointError: a tensor that tells it is missing, or its shape is impossible.
    """
    norm = "joint_blocks.0.x_block.attn.ln_k.weight"
    head_dim = shapes.size(norm, 0) if norm in shapes else _HEAD_DIM
    patch = shapes.size("x_embedder.proj.weight", 2)
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": shapes.size("x_embedder.proj.weight", 1),
        "out_channels": shapes.quotient("final_layer.linear.weight", 0, patch * patch),
        "num_layers": shapes.count(_BLOCK_PREFIX),
        "attention_head_dim": head_dim,
        "num_attention_heads": shapes.quotient("x_embedder.proj.weight", 0, head_dim),
        "joint_attention_dim": shapes.size("context_embedder.weight", 1),
        "caption_projection_dim": shapes.size("context_embedder.weight", 0),
        "pooled_projection_dim": shapes.size("y_embedder.mlp.0.weight", 1),
        "pos_embed_max_size": math.isqrt(shapes.size("pos_embed", 1)),
        "dual_attention_layers": sorted(shapes.numbers(_BLOCK_PREFIX + r"x_block\.attn2\.")),
        "qk_norm": "rms_norm" if norm in shapes else None,
    }

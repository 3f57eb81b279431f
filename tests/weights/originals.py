"""Names and shapes of the original checkpoints (Stability AI's), for any size: what the tests' single files hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.arrays import weight

Shapes = dict[str, tuple[int, ...]]

# What golden_weights.py converts with diffusers: two blocks or three, one head or two, with and without SD3.5's parts.
TINY_SD3 = {"dim": 128, "layers": 2, "context": 24, "pooled": 40, "channels": 4, "grid": 6}
TINY_SD35 = {
    "dim": 64,
    "layers": 3,
    "context": 32,
    "pooled": 24,
    "channels": 16,
    "grid": 8,
    "dual": (0, 1),
    "norm": True,
}
TINY_VAE = {"channels": (32, 64, 96), "latent": 4, "blocks": 1}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """Weight [outputs, inputs] and bias [outputs]."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    """Weight [outputs, inputs, kernel, kernel] and bias [outputs]."""
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> Shapes:
    """Weight and bias [channels]."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def transformer(
    dim: int, layers: int, context: int, pooled: int, channels: int, grid: int,
    dual: Iterable[int] = (), norm: bool = False,
) -> Shapes:  # fmt: skip
    """An MM-DiT of `layers` joint blocks; `grid` patches a side; `dual` blocks have attn2."""
    shapes = {"pos_embed": (1, grid * grid, dim)} | conv("x_embedder.proj", channels, dim, 2)
    for embedder, inputs in (("t_embedder", 256), ("y_embedder", pooled)):
        shapes |= linear(f"{embedder}.mlp.0", inputs, dim) | linear(f"{embedder}.mlp.2", dim, dim)
    shapes |= linear("context_embedder", context, dim)
    for i in range(layers):
        sides = {"x_block": 9 if i in dual else 6, "context_block": 2 if i == layers - 1 else 6}
        for side, modulations in sides.items():
            shapes |= _side(f"joint_blocks.{i}.{side}", dim, modulations, norm)
        if i in dual:
            shapes |= _attention(f"joint_blocks.{i}.x_block.attn2", dim, norm)
            shapes |= linear(f"joint_blocks.{i}.x_block.attn2.proj", dim, dim)
    shapes |= linear("final_layer.linear", dim, 4 * channels)
    return shapes | linear("final_layer.adaLN_modulation.1", dim, 2 * dim)


def _side(name: str, dim: int, modulations: int, norm: bool) -> Shapes:
    shapes = linear(f"{name}.adaLN_modulation.1", dim, modulations * dim) | _attention(f"{name}.attn", dim, norm)
    if modulations == 2:  # the last block's context: its attention is used, its output is not
        return shapes
    shapes |= linear(f"{name}.attn.proj", dim, dim)
    return shapes | linear(f"{name}.mlp.fc1", dim, 4 * dim) | linear(f"{name}.mlp.fc2", 4 * dim, dim)


def _attention(name: str, dim: int, norm: bool) -> Shapes:
    norms = {f"{name}.ln_q.weight": (64,), f"{name}.ln_k.weight": (64,)} if norm else {}
    return linear(f"{name}.qkv", dim, 3 * dim) | norms


def vae(channels: tuple[int, ...], latent: int, blocks: int) -> Shapes:
    """An autoencoder with `channels` by level, `blocks` residual blocks a level (one more in the decoder)."""
    first, last = channels[0], channels[-1]
    shapes = conv("encoder.conv_in", 3, first, 3) | conv("decoder.conv_in", latent, last, 3)
    for i, (before, after) in enumerate(zip((first, *channels), channels, strict=False)):
        for j in range(blocks):
            shapes |= _resnet(f"encoder.down.{i}.block.{j}", before if j == 0 else after, after)
        if i < len(channels) - 1:
            shapes |= conv(f"encoder.down.{i}.downsample.conv", after, after, 3)
    for i in reversed(range(len(channels))):
        before, after = channels[min(i + 1, len(channels) - 1)], channels[i]
        for j in range(blocks + 1):
            shapes |= _resnet(f"decoder.up.{i}.block.{j}", before if j == 0 else after, after)
        if i > 0:
            shapes |= conv(f"decoder.up.{i}.upsample.conv", after, after, 3)
    for side, width, outputs in (("encoder", last, 2 * latent), ("decoder", first, 3)):
        shapes |= norm(f"{side}.norm_out", width) | conv(f"{side}.conv_out", width, outputs, 3)
        shapes |= _middle(f"{side}.mid", last)
    return shapes


def _middle(name: str, channels: int) -> Shapes:
    shapes = _resnet(f"{name}.block_1", channels, channels) | _resnet(f"{name}.block_2", channels, channels)
    shapes |= norm(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.attn_1.{part}", channels, channels, 1)
    return shapes


def _resnet(name: str, before: int, after: int) -> Shapes:
    shapes = norm(f"{name}.norm1", before) | conv(f"{name}.conv1", before, after, 3)
    shapes |= norm(f"{name}.norm2", after) | conv(f"{name}.conv2", after, after, 3)
    return shapes | (conv(f"{name}.nin_shortcut", before, after, 1) if before != after else {})


def clip(dim: int, layers: int, vocabulary: int = 60, positions: int = 77, projected: bool = True) -> Shapes:
    """A CLIP text encoder; `projected`: with its text projection."""
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, dim),
        "text_model.embeddings.position_embedding.weight": (positions, dim),
    }
    for i in range(layers):
        layer = f"text_model.encoder.layers.{i}"
        shapes |= norm(f"{layer}.layer_norm1", dim) | norm(f"{layer}.layer_norm2", dim)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", dim, dim)
        shapes |= linear(f"{layer}.mlp.fc1", dim, 4 * dim) | linear(f"{layer}.mlp.fc2", 4 * dim, dim)
    shapes |= norm("text_model.final_layer_norm", dim)
    return shapes | ({"text_projection.weight": (dim, dim)} if projected else {})


def t5(dim: int, layers: int, heads: int, vocabulary: int = 70) -> Shapes:
    """A T5 encoder of version 1.1 with heads of 64."""
    shapes: Shapes = {"shared.weight": (vocabulary, dim), "encoder.final_layer_norm.weight": (dim,)}
    for i in range(layers):
        attention, feed = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{part}.weight": (64 * heads, dim) for part in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o.weight": (dim, 64 * heads), f"{attention}.layer_norm.weight": (dim,)}
        shapes |= {f"{feed}.DenseReluDense.{part}.weight": (2 * dim, dim) for part in ("wi_0", "wi_1")}
        shapes |= {f"{feed}.DenseReluDense.wo.weight": (dim, 2 * dim), f"{feed}.layer_norm.weight": (dim,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    return shapes


def values(shapes: Shapes, prefix: str = "") -> dict[str, np.ndarray]:
    """Deterministic values (tests.arrays.weight) by stored name; a value depends on the name without the prefix."""
    return {f"{prefix}{name}": weight(name, shape) for name, shape in shapes.items()}


def write(path: Path, *parts: dict[str, np.ndarray]) -> Path:
    """Writes one safetensors file from parts; returns its path."""
    merged = {name: np.ascontiguousarray(array) for part in parts for name, array in part.items()}
    save_file(merged, path)
    return path

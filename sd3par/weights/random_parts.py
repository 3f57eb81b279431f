"""Names and shapes of every tensor of SD3's parts, as their configs say, and what each is made of.

Linears and convolutions are PyTorch's default, with three factors: with the default alone even an attention that
averages all tokens passes for the true one in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sd3par.weights.random_tensors import Names, Positions

QUERY_KEY, QUERY_KEY_NORM, MODULATION = 3.0, 2.0, 4.0  # the norm undoes the first factor where there is one
_FREQUENCIES = 256  # size of the timestep's sinusoidal embedding


def transformer_names(config: Mapping[str, Any]) -> Names:
    """Returns the tensors of diffusers' `SD3Transformer2DModel`."""
    names, patch = Names(), config["patch_size"]
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    names["pos_embed.pos_embed"] = Positions(config["pos_embed_max_size"], config["sample_size"] // patch, dim)
    names.conv("pos_embed.proj", dim, config["in_channels"], patch)
    for name, inputs in (("timestep", _FREQUENCIES), ("text", config["pooled_projection_dim"])):
        names.linear(f"time_text_embed.{name}_embedder.linear_1", dim, inputs)
        names.linear(f"time_text_embed.{name}_embedder.linear_2", dim, dim)
    names.linear("context_embedder", dim, config["joint_attention_dim"])
    for index in range(config["num_layers"]):
        _joint_block(names, config, index, dim)
    names.linear("norm_out.linear", 2 * dim, dim)
    names.linear("proj_out", patch**2 * config["out_channels"], dim)
    return names


def _joint_block(names: Names, config: Mapping[str, Any], index: int, dim: int) -> None:
    block, last = f"transformer_blocks.{index}", index == config["num_layers"] - 1
    dual = index in config.get("dual_attention_layers", ())
    names.linear(f"{block}.norm1.linear", (9 if dual else 6) * dim, dim, MODULATION)
    names.linear(f"{block}.norm1_context.linear", (2 if last else 6) * dim, dim, MODULATION)
    names.linear(f"{block}.ff.net.0.proj", 4 * dim, dim)
    names.linear(f"{block}.ff.net.2", dim, 4 * dim)
    if not last:
        names.linear(f"{block}.ff_context.net.0.proj", 4 * dim, dim)
        names.linear(f"{block}.ff_context.net.2", dim, 4 * dim)
        names.linear(f"{block}.attn.to_add_out", dim, dim)
    norm = config["attention_head_dim"] if config.get("qk_norm") else 0
    _attention(names, f"{block}.attn", dim, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), norm)
    added = ("add_q_proj", "add_k_proj", "add_v_proj")
    _attention(names, f"{block}.attn", dim, added, ("norm_added_q", "norm_added_k"), norm)
    names.linear(f"{block}.attn.to_out.0", dim, dim)
    if dual:
        _attention(names, f"{block}.attn2", dim, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), norm)
        names.linear(f"{block}.attn2.to_out.0", dim, dim)


def _attention(
    names: Names, parent: str, dim: int, qkv: tuple[str, str, str], norms: tuple[str, str], head_dim: int
) -> None:
    """Adds queries, keys and values of one stream, and the norms of the first two unless `head_dim` is 0."""
    for name, scale in zip(qkv, (QUERY_KEY, QUERY_KEY, 1.0), strict=True):
        names.linear(f"{parent}.{name}", dim, dim, scale)
    for name in norms if head_dim else ():
        names.norm(f"{parent}.{name}", head_dim, QUERY_KEY_NORM, bias=False)


def vae_names(config: Mapping[str, Any]) -> Names:
    """Returns the tensors of diffusers' `AutoencoderKL` without quantization convolutions."""
    names, latent = Names(), config["latent_channels"]
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    _coder(names, "encoder", "down", (channels[0], *channels), config["in_channels"], 2 * latent, layers)
    upwards = channels[::-1]
    _coder(names, "decoder", "up", (upwards[0], *upwards), latent, config["out_channels"], layers + 1)
    return names


def _coder(names: Names, part: str, way: str, widths: tuple[int, ...], inputs: int, outputs: int, layers: int) -> None:
    """Adds an encoder or a decoder whose blocks have the widths `widths[1:]`, after a first convolution."""
    names.conv(f"{part}.conv_in", widths[0], inputs, 3)
    for level, (before, width) in enumerate(pairwise(widths)):
        block = f"{part}.{way}_blocks.{level}"
        for index in range(layers):
            _resnet(names, f"{block}.resnets.{index}", width if index else before, width)
        if level < len(widths) - 2:
            names.conv(f"{block}.{way}samplers.0.conv", width, width, 3)
    deepest = widths[-1] if way == "down" else widths[0]
    for index in range(2):
        _resnet(names, f"{part}.mid_block.resnets.{index}", deepest, deepest)
    names.norm(f"{part}.mid_block.attentions.0.group_norm", deepest)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        names.linear(f"{part}.mid_block.attentions.0.{name}", deepest, deepest)
    names.norm(f"{part}.conv_norm_out", widths[-1])
    names.conv(f"{part}.conv_out", outputs, widths[-1], 3)


def _resnet(names: Names, name: str, inputs: int, outputs: int) -> None:
    names.norm(f"{name}.norm1", inputs)
    names.conv(f"{name}.conv1", outputs, inputs, 3)
    names.norm(f"{name}.norm2", outputs)
    names.conv(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        names.conv(f"{name}.conv_shortcut", outputs, inputs, 1)


def clip_names(config: Mapping[str, Any]) -> Names:
    """Returns the tensors of transformers' `CLIPTextModelWithProjection`."""
    names, dim = Names(), config["hidden_size"]
    names.table("text_model.embeddings.token_embedding", config["vocab_size"], dim, 0.02)
    names.table("text_model.embeddings.position_embedding", config["max_position_embeddings"], dim, 0.02)
    for index in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{index}"
        names.norm(f"{layer}.layer_norm1", dim)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names.linear(f"{layer}.self_attn.{name}", dim, dim)
        names.norm(f"{layer}.layer_norm2", dim)
        names.linear(f"{layer}.mlp.fc1", config["intermediate_size"], dim)
        names.linear(f"{layer}.mlp.fc2", dim, config["intermediate_size"])
    names.norm("text_model.final_layer_norm", dim)
    names.linear("text_projection", config["projection_dim"], dim, bias=False)
    return names


def t5_names(config: Mapping[str, Any]) -> Names:
    """Returns the tensors of transformers' `T5EncoderModel` (gated GELU)."""
    names, dim, hidden = Names(), config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    names.table("shared", config["vocab_size"], dim, 1.0)
    buckets = config["relative_attention_num_buckets"]
    names.table("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", buckets, config["num_heads"], 1.0)
    for index in range(config["num_layers"]):
        attention, feed = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        names.norm(f"{attention}.layer_norm", dim, bias=False)
        for name in ("q", "k", "v"):
            names.linear(f"{attention}.SelfAttention.{name}", inner, dim, bias=False)
        names.linear(f"{attention}.SelfAttention.o", dim, inner, bias=False)
        names.norm(f"{feed}.layer_norm", dim, bias=False)
        for name in ("wi_0", "wi_1"):
            names.linear(f"{feed}.DenseReluDense.{name}", hidden, dim, bias=False)
        names.linear(f"{feed}.DenseReluDense.wo", dim, hidden, bias=False)
    names.norm("encoder.final_layer_norm", dim, bias=False)
    return names

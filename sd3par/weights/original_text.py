"""SD3's text encoders in a single file: transformers' names already; their configs from shapes."""

from __future__ import annotations

from typing import Any

from sd3par.weights.shapes import NUMBER, Shapes

_CLIP_HEAD_DIM = 64  # of CLIP-L and CLIP-G
_LAYER = rf"text_model\.encoder\.layers\.{NUMBER}\."


def clip_config(shapes: Shapes, hidden_act: str) -> dict[str, Any]:
    """Returns the config of transformers' `CLIPTextModelWithProjection`, from shapes.

    Args:
        hidden_act: quick_gelu for CLIP-L, gelu for CLIP-G; no shape tells it.

    Raises:
        CheckpointError: a tensor that tells it is missing, or its shape is impossible.
    """
    embedding = "text_model.embeddings.token_embedding.weight"
    projection = "text_projection.weight"
    return {
        "vocab_size": shapes.size(embedding, 0),
        "hidden_size": shapes.size(embedding, 1),
        "intermediate_size": shapes.size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "projection_dim": shapes.size(projection, 0) if projection in shapes else shapes.size(embedding, 1),
        "num_hidden_layers": shapes.count(_LAYER),
        "num_attention_heads": shapes.quotient(embedding, 1, _CLIP_HEAD_DIM),
        "max_position_embeddings": shapes.size("text_model.embeddings.position_embedding.weight", 0),
        "hidden_act": hidden_act,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,  # what SD3's own configs say: pooled at the largest token id, CLIP's real end of text
        "pad_token_id": 1,
    }


def t5_config(shapes: Shapes) -> dict[str, Any]:
    """Returns the config of transformers' `T5EncoderModel` (version 1.1: gated GELU), from shapes.

    Raises:
        CheckpointError: a tensor that tells it is missing, or its shape is impossible.
    """
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = shapes.size(f"{attention}.relative_attention_bias.weight", 1)
    return {
        "vocab_size": shapes.size("shared.weight", 0),
        "d_model": shapes.size("shared.weight", 1),
        "d_kv": shapes.quotient(f"{attention}.q.weight", 0, heads),
        "d_ff": shapes.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        "num_layers": shapes.count(rf"encoder\.block\.{NUMBER}\."),
        "num_heads": heads,
        "relative_attention_num_buckets": shapes.size(f"{attention}.relative_attention_bias.weight", 0),
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "eos_token_id": 1,
        "pad_token_id": 0,
    }

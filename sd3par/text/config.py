"""Shapes of the text encoders, as transformers writes them, and T5's buckets of distances."""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import Tensor

from sd3par.config import MAX_LAYERS, require

# Keys of transformers' CLIPTextConfig that matter in training only, or that the tokenizer's own files decide.
CLIP_IGNORED = frozenset(
    {"attention_dropout", "dropout", "initializer_factor", "initializer_range", "bos_token_id", "pad_token_id"}
)

# Keys of transformers' T5Config that concern training, the decoder or generation, or that follow from other keys.
T5_IGNORED = frozenset(
    {"classifier_dropout", "dropout_rate", "initializer_factor", "num_decoder_layers", "decoder_start_token_id",
     "is_decoder", "is_encoder_decoder", "use_cache", "output_past", "n_positions", "task_specific_params",
     "tie_word_embeddings", "scale_decoder_outputs", "dense_act_fn", "is_gated_act", "bos_token_id", "eos_token_id",
     "pad_token_id"}
)  # fmt: skip
ACTIVATIONS = ("quick_gelu", "gelu")  # of CLIP
T5_DTYPES = ("float32", "bfloat16")  # in float16 T5's activations overflow


@dataclass(frozen=True)
class CLIPTextConfig:
    """Shape of a CLIP text encoder; field names and defaults are those of transformers' `CLIPTextConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim",
                     "vocab_size", "max_position_embeddings"):  # fmt: skip
            value = getattr(self, name)
            require(1 <= value <= 1 << 20, name, value, f"1 to {1 << 20}")
        require(self.num_hidden_layers <= MAX_LAYERS, "num_hidden_layers", self.num_hidden_layers, f"1 to {MAX_LAYERS}")
        whole = self.hidden_size % self.num_attention_heads == 0
        require(whole, "num_attention_heads", self.num_attention_heads, f"a divisor of hidden_size {self.hidden_size}")
        require(self.hidden_act in ACTIVATIONS, "hidden_act", self.hidden_act, " or ".join(ACTIVATIONS))


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder; field names and defaults are those of transformers' `T5Config`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
            value = getattr(self, name)
            require(1 <= value <= 1 << 20, name, value, f"1 to {1 << 20}")
        require(self.num_layers <= MAX_LAYERS, "num_layers", self.num_layers, f"1 to {MAX_LAYERS}")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        require(4 <= buckets <= 256, "relative_attention_num_buckets", buckets, "4 to 256")
        require(buckets // 4 < distance <= 4096, "relative_attention_max_distance", distance,
                f"{buckets // 4 + 1} to 4096: more than a quarter of the buckets")  # fmt: skip
        require(self.feed_forward_proj == "gated-gelu", "feed_forward_proj", self.feed_forward_proj, "gated-gelu")


def relative_buckets(num_buckets: int, max_distance: int) -> list[int]:
    """Returns the bucket of every distance (key minus query) from -max_distance to max_distance, the last beyond.

    Half of the buckets are for keys after the query. Of each half, half are for one distance each, and the others
    widen as the logarithm of the distance. Their edges are found in whole numbers: no rounding can move them.
    """
    half = num_buckets // 2
    exact = half // 2
    steps = half - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        # log(distance / exact) / log(max_distance / exact) * steps >= k, without logarithms
        beyond = distance**steps
        passed = sum(beyond * exact**k >= max_distance**k * exact**steps for k in range(1, steps))
        return exact + passed

    before = [bucket(distance) for distance in range(max_distance, -1, -1)]
    after = [half + bucket(distance) for distance in range(1, max_distance + 1)]
    return before + after


def buckets_of(buckets: Tensor, reach: int, length: int) -> Tensor:
    """buckets: those of distances -reach to reach -> that of distance j - i of query i and key j: [L, L] int64."""
    position = paddle.arange(length)
    distance = position.unsqueeze(0) - position.unsqueeze(1)
    return paddle.index_select(buckets, (distance.clip(-reach, reach) + reach).flatten()).reshape([length, length])

"""T5's encoder (version 1.1, gated GELU): SD3's third text encoder, which it can do without.

Several processes may split it by heads and by columns of the feed forward, as they do the MM-DiT.
"""

from __future__ import annotations

import math
import re

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par.config import parse_config, require
from sd3par.layers import Embedding, Linear, RMSNorm
from sd3par.mesh import Axis, Mesh
from sd3par.plan import Share, Source, WeightPlan, runs
from sd3par.text.attention import self_attention
from sd3par.text.config import T5_DTYPES, T5_IGNORED, T5Config, buckets_of, relative_buckets
from sd3par.text.place import Place, t5_place
from sd3par.weights.fill import Component, fill


class T5Block(nn.Layer):
    """Self-attention with a position bias, then a gated feed forward, each after an RMS norm and with a residual.

    Each process of the axis has a run of the heads and of the columns of the feed forward; two sums put them together.
    """

    def __init__(self, config: T5Config, dtype: str, mesh: Mesh, axis: Axis) -> None:
        super().__init__()
        dim, plan = config.d_model, WeightPlan(config.num_heads, config.d_kv, axis.size, axis.rank)
        self.mesh, self.axis, self.heads = mesh, axis, plan.mixed.size // config.d_kv
        # Eights, where possible: rows of other lengths lie at addresses that fast products do not take.
        columns = runs(config.d_ff, axis.size, math.gcd(config.d_ff, 8))[axis.rank]
        gate_up = Share(2 * config.d_ff, (columns, range(config.d_ff + columns.start, config.d_ff + columns.stop)))
        self.attention_norm = RMSNorm(dim, config.layer_norm_epsilon, dtype)
        self.qkv = Linear(dim, plan.qkv, dtype, bias=False)
        self.out = Linear(plan.mixed, dim, dtype, bias=False)
        self.feed_forward_norm = RMSNorm(dim, config.layer_norm_epsilon, dtype)
        self.gate_up = Linear(dim, gate_up, dtype, bias=False)
        self.down = Linear(Share(config.d_ff, (columns,)), dim, dtype, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: [R, L, d_model], bias: [heads / n, L, L] fp32, of n processes -> [R, L, d_model]."""
        qkv = self.qkv(self.attention_norm(x))  # [R, L, 3 * heads / n * d_kv]
        x = x + self._sum(self.out(self_attention(qkv, self.heads, 1.0, bias)))  # [R, L, d_model]
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, axis=-1)  # [R, L, d_ff / n] each
        return x + self._sum(self.down(F.gelu(gate, approximate=True) * up))  # [R, L, d_model]

    def _sum(self, x: Tensor) -> Tensor:
        """x: [R, L, d_model], this process's part of a sum -> the sum."""
        return self.mesh.all_reduce(self.axis, x)


class T5Encoder(nn.Layer):
    """transformers' `T5EncoderModel` as SD3 uses it: padding is not masked.

    Args:
        config: the model's shape.
        dtype: of weights and activations.
        mesh: the processes.
        place: which of them split it, and call it together. Where it is not here, it has no weights.
    """

    def __init__(self, config: T5Config, dtype: str, mesh: Mesh = Mesh.single(), place: Place = Place()) -> None:
        super().__init__()
        self.config, self.dtype, self.place = config, dtype, place
        mine = runs(config.num_heads, place.axis.size)[place.axis.rank]
        self.heads = slice(mine.start, mine.stop)
        self.shared = Embedding(config.vocab_size, config.d_model, dtype)
        self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, config.num_heads, dtype)
        self.blocks = nn.LayerList([T5Block(config, dtype, mesh, place.axis) for _ in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon, dtype)
        self.reach = config.relative_attention_max_distance
        buckets = relative_buckets(config.relative_attention_num_buckets, self.reach)
        self.register_buffer("buckets", paddle.to_tensor(buckets, dtype="int64"), persistable=False)

    @classmethod
    def load(cls, component: Component, dtype: str, mesh: Mesh = Mesh.single()) -> T5Encoder:
        """Returns the encoder of a checkpoint, in float32 or bfloat16: in float16 T5's activations overflow.

        Each process reads its part alone.

        Raises:
            ConfigError: config.json describes something else, or float16 was asked for.
            CheckpointError: a tensor is missing, left over, of another shape, or not finite.
        """
        require(dtype in T5_DTYPES, "dtype of T5", dtype, " or ".join(T5_DTYPES))
        config = parse_config(T5Config, component.config, component.where, T5_IGNORED)
        encoder = cls(config, dtype, mesh, t5_place(mesh, config.num_heads))
        if encoder.place.here:
            fill(encoder, component.checkpoint, t5_source, ignored=("encoder.embed_tokens.weight",))
        return encoder

    def shapes(self, rows: int, length: int) -> list[list[int]]:
        """Returns the shape of what it gives for ids [rows, length], as the only one of a list."""
        return [[rows, length, self.config.d_model]]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [R, L] int64 -> [R, L, d_model]."""
        return self.encode(ids, buckets_of(self.buckets, self.reach, ids.shape[1]))

    def encode(self, ids: Tensor, buckets: Tensor) -> Tensor:
        """The same; buckets: [L, L] int64, of every distance between two tokens."""
        x = self.shared(ids)  # [R, L, d_model]
        bias = self.position_bias(buckets)  # [heads / n, L, L]
        for block in self.blocks:
            x = block(x, bias)
        return self.final_layer_norm(x)

    def position_bias(self, buckets: Tensor) -> Tensor:
        """buckets: [L, L] int64 -> [heads / n, L, L] fp32: what the scores of a query (row) and a key (column) get."""
        mine = self.relative_attention_bias.weight.astype("float32")[:, self.heads]  # [buckets, heads / n]
        return F.embedding(buckets, mine).transpose([2, 0, 1])


_KEYS = {
    "shared": "shared",
    "relative_attention_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_layer_norm": "encoder.final_layer_norm",
}
_BLOCK_KEYS = {
    "attention_norm": ("layer.0.layer_norm",),
    "qkv": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    "out": ("layer.0.SelfAttention.o",),
    "feed_forward_norm": ("layer.1.layer_norm",),
    "gate_up": ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
    "down": ("layer.1.DenseReluDense.wo",),
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(\w+)\.weight")


def t5_source(parameter: str) -> Source:
    """Returns the checkpoint keys (transformers' names) of `T5Encoder`'s parameter `parameter`."""
    if match := _BLOCK.fullmatch(parameter):
        index, part = match.groups()
        return Source(tuple(f"encoder.block.{index}.{key}.weight" for key in _BLOCK_KEYS[part]))
    return Source((f"{_KEYS[parameter.removesuffix('.weight')]}.weight",))

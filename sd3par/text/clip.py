"""CLIP's text encoder with projection: SD3's first two text encoders, CLIP-L and CLIP-G."""

from __future__ import annotations

import re

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par.config import parse_config
from sd3par.layers import Embedding, LayerNorm, Linear
from sd3par.plan import Source
from sd3par.text.attention import self_attention
from sd3par.text.config import CLIP_IGNORED, CLIPTextConfig
from sd3par.text.place import Place
from sd3par.weights.fill import Component, fill

# transformers wrote this end-of-text id into every config before its pull request 24773, whatever the vocabulary.
LEGACY_EOS = 2


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), OpenAI's approximation of GELU; any shape."""
    return x * F.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CLIPLayer(nn.Layer):
    """Causal self-attention, then a feed forward, each after a layer norm and with a residual."""

    def __init__(self, config: CLIPTextConfig, dtype: str) -> None:
        super().__init__()
        dim, epsilon = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.layer_norm1 = LayerNorm(dim, epsilon, dtype)
        self.qkv = Linear(dim, 3 * dim, dtype)
        self.out_proj = Linear(dim, dim, dtype)
        self.layer_norm2 = LayerNorm(dim, epsilon, dtype)
        self.fc1 = Linear(dim, config.intermediate_size, dtype)
        self.fc2 = Linear(config.intermediate_size, dim, dtype)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [R, L, width], mask: [L, L] fp32 -> [R, L, width]."""
        scale = (x.shape[-1] // self.heads) ** -0.5
        x = x + self.out_proj(self_attention(self.qkv(self.layer_norm1(x)), self.heads, scale, mask))  # [R, L, width]
        return x + self.fc2(self.activation(self.fc1(self.layer_norm2(x))))  # [R, L, width]


class CLIPTextEncoder(nn.Layer):
    """transformers' `CLIPTextModelWithProjection`, as SD3 uses it; without weights where another rank runs it."""

    def __init__(self, config: CLIPTextConfig, dtype: str, place: Place = Place()) -> None:
        super().__init__()
        dim = config.hidden_size
        self.config, self.dtype, self.place = config, dtype, place
        self.token_embedding = Embedding(config.vocab_size, dim, dtype)
        self.position_embedding = Embedding(config.max_position_embeddings, dim, dtype)
        self.layers = nn.LayerList([CLIPLayer(config, dtype) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = LayerNorm(dim, config.layer_norm_eps, dtype)
        self.text_projection = Linear(dim, config.projection_dim, dtype, bias=False)

    @classmethod
    def load(cls, component: Component, dtype: str, place: Place = Place()) -> CLIPTextEncoder:
        """Returns the encoder of a checkpoint, of which nothing is read where another rank runs it.

        Raises:
            ConfigError: config.json describes something else.
            CheckpointError: a tensor is missing, left over, of another shape, or not finite.
        """
        encoder = cls(parse_config(CLIPTextConfig, component.config, component.where, CLIP_IGNORED), dtype, place)
        if place.here:
            fill(encoder, component.checkpoint, clip_source, ignored=("text_model.embeddings.position_ids",))
        return encoder

    def shapes(self, rows: int, length: int) -> list[list[int]]:
        """Returns the shapes of what it gives for ids [rows, length]."""
        return [[rows, length, self.config.hidden_size], [rows, self.config.projection_dim]]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes prompts.

        Args:
            ids: [R, L] int64, L at most `config.max_position_embeddings`, each row with an end-of-text token.

        Returns:
            What the last layer but one puts out, [R, L, width], and the projected state of the end-of-text token
            after the last layer, [R, projection].
        """
        return self.encode(ids, paddle.arange(ids.shape[0]))

    def encode(self, ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The same; numbers: [R] int64, from 0 on, which a program cannot count."""
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # [R, L, width]
        mask = causal_mask(ids.shape[1])  # [L, L]
        for layer in self.layers[:-1]:
            x = layer(x, mask)
        last = self.layers[-1](x, mask)  # [R, L, width]
        return x, self.text_projection(self.final_layer_norm(self._at_end(last, ids, numbers)))

    def _at_end(self, x: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        """x: [R, L, width], ids: [R, L], numbers: [R] -> the states [R, width] of each row's first end."""
        legacy = self.config.eos_token_id == LEGACY_EOS
        # Where the id in the config is wrong, the end is the highest id of the row: so the vocabulary is ordered.
        position = ids.argmax(-1) if legacy else (ids == self.config.eos_token_id).astype("int32").argmax(-1)  # [R]
        return paddle.gather_nd(x, paddle.stack([numbers, position], axis=-1))


def causal_mask(length: int) -> Tensor:
    """[L, L] fp32: 0 where a token (row) may look at another (column), itself and those before it, else -inf."""
    return paddle.triu(paddle.full([length, length], float("-inf"), dtype="float32"), diagonal=1)


_KEYS = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "position_embedding": "text_model.embeddings.position_embedding",
    "final_layer_norm": "text_model.final_layer_norm",
    "text_projection": "text_projection",
}
_LAYER_KEYS = {
    "layer_norm1": ("layer_norm1",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out_proj": ("self_attn.out_proj",),
    "layer_norm2": ("layer_norm2",),
    "fc1": ("mlp.fc1",),
    "fc2": ("mlp.fc2",),
}
_LAYER = re.compile(r"layers\.(\d+)\.(\w+)\.(weight|bias)")


def clip_source(parameter: str) -> Source:
    """Returns the checkpoint keys (transformers' names) of `CLIPTextEncoder`'s parameter `parameter`."""
    if match := _LAYER.fullmatch(parameter):
        index, part, kind = match.groups()
        return Source(tuple(f"text_model.encoder.layers.{index}.{key}.{kind}" for key in _LAYER_KEYS[part]))
    part, kind = parameter.split(".")
    return Source((f"{_KEYS[part]}.{kind}",))

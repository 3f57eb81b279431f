"""Models of full size whose weights are made up: to measure with, and to test with, without a download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sd3par.errors import ConfigError
from sd3par.weights.fill import Component
from sd3par.weights.json_file import read_json
from sd3par.weights.random_parts import clip_names, t5_names, transformer_names, vae_names
from sd3par.weights.random_tensors import Names, RandomCheckpoint

PREFIX = "random:"
BUNDLED_FOLDER = Path(__file__).parent.parent / "tiny"

_TRANSFORMER: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3-medium": _TRANSFORMER,
    "sd3.5-medium": _TRANSFORMER
    | {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384},
    "sd3.5-large": _TRANSFORMER
    | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
}
_VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2, "norm_num_groups": 32, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_CLIP_G = _CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip

_NAMES: dict[str, Callable[[Mapping[str, Any]], Names]] = {
    "transformer": transformer_names,
    "vae": vae_names,
    "text_encoder": clip_names,
    "text_encoder_2": clip_names,
    "text_encoder_3": t5_names,
}
MODELS = (*_TRANSFORMERS, "tiny")


def is_random(path: object) -> bool:
    """Whether a caller who names `path` as the model asks for one of random weights: "random:sd3-medium"."""
    return isinstance(path, str) and path.startswith(PREFIX)


def random_component(path: str, part: str) -> Component:
    """Returns a part of the model `path`, a name with `PREFIX`.

    Args:
        part: "transformer", "vae", "text_encoder", "text_encoder_2" or "text_encoder_3".

    Raises:
        ConfigError: no such model.
    """
    config, where = _config(path, part), f"{path} ({part})"
    return Component(config, where, RandomCheckpoint(where, part, _NAMES[part](config)))


def _config(path: str, part: str) -> Mapping[str, Any]:
    model = path.removeprefix(PREFIX)
    if model not in MODELS:
        raise ConfigError("model", path, ", ".join(PREFIX + name for name in MODELS))
    bundled = read_json(BUNDLED_FOLDER / part / "config.json")
    if model == "tiny":
        return bundled
    config = {"transformer": _TRANSFORMERS[model], "vae": _VAE, "text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G,
              "text_encoder_3": _T5}[part]  # fmt: skip
    # The tokenizers are the bundled model's: their ids fit into the larger vocabularies, but the text ends elsewhere.
    return config | {"eos_token_id": bundled["eos_token_id"]} if "eos_token_id" in bundled else config

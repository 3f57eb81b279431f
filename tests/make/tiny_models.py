"""The shapes of the bundled model's networks: a whole SD3 in small, SD3.5-medium's dual attention included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

WIDTH, HEADS, LAYERS = 128, 4, 3
CLIP_WIDTHS = (32, 48)
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
# Wider than both CLIPs together, so that the zero padding of their joined states is at work as in the real SD3.
T5_WIDTH, T5_VOCAB = 96, 192


class Parts(NamedTuple):
    """The networks that are trained together."""

    transformer: SD3Transformer2DModel
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: T5EncoderModel

    def state(self) -> dict[str, torch.Tensor]:
        """All weights under the name of their part; shared ones once."""
        return {
            f"{part}.{name}": value
            for part, model in self._asdict().items()
            for name, value in model.state_dict().items()
            if name != "encoder.embed_tokens.weight"
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes the weights that ``state`` gave."""
        for part, model in self._asdict().items():
            own = {name.split(".", 1)[1]: value for name, value in state.items() if name.startswith(part + ".")}
            if "shared.weight" in own:
                own["encoder.embed_tokens.weight"] = own["shared.weight"]
            model.load_state_dict(own)


def new_vae() -> AutoencoderKL:
    """An autoencoder of SD3's kind: pictures [n, 3, H, W] to latents [n, 16, H / 8, W / 8]."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 48, 48],
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def new_transformer() -> SD3Transformer2DModel:
    """The joint transformer: latents [n, 16, 16, 16] and text states [n, tokens, 96] to velocities."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def new_clip(which: int, tokenizers: Path) -> CLIPTextModelWithProjection:
    """The first (0) or second (1) CLIP: ids [n, 77] to states [n, 77, width] and a pooled vector [n, width]."""
    folder = tokenizers / ("tokenizer", "tokenizer_2")[which]
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pad = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    width = CLIP_WIDTHS[which]
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=CLIP_ACTIVATIONS[which],
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab[pad],
    )
    return CLIPTextModelWithProjection(config)


def new_t5() -> T5EncoderModel:
    """The T5 encoder: ids [n, tokens] to states [n, tokens, 96]."""
    config = T5Config(
        vocab_size=T5_VOCAB,
        d_model=T5_WIDTH,
        d_kv=24,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def new_parts(tokenizers: Path) -> Parts:
    """Untrained networks that fit the tokenizers of the folder."""
    return Parts(new_transformer(), new_clip(0, tokenizers), new_clip(1, tokenizers), new_t5())

"""What both sides share: shapes of the models and of their inputs, how an error is taken, how many calls warm up."""

from __future__ import annotations

from typing import Any

import numpy as np

_SD3 = dict(
    sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64,
    num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
    pos_embed_max_size=192,
)  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3-medium": _SD3,
    "sd3.5-medium": _SD3 | dict(dual_attention_layers=tuple(range(13)), qk_norm="rms_norm", pos_embed_max_size=384),
    "sd3.5-large": _SD3 | dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"),
    # For a dry run on the CPU; its numbers are not published.
    "micro": _SD3 | dict(sample_size=16, num_layers=2, num_attention_heads=4, attention_head_dim=16,
                         joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=16,
                         dual_attention_layers=(0,), qk_norm="rms_norm", pos_embed_max_size=16),
}  # fmt: skip
_VAE = dict(
    in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32,
    sample_size=1024, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip
TEXT_TOKENS, TIMESTEP, GUIDANCE = 333, 700.0, 7.0
TEXT_LENGTHS = (TEXT_TOKENS, 154, 589)  # CLIP's 77 and T5's 256, 77 or 512
SIZES = ((1024, 1024), (528, 528), (1040, 784))  # height and width; the last two are odd numbers of patches
MICRO_SIZES = ((128, 128), (80, 80), (112, 48))
# rows, tokens of image and text, heads, head_dim: SD3-medium at 1024, its image alone (the second attention of a dual
# block), at 512, one row at 1024 (guidance over two cards), four pictures, and SD3.5-large
ATTENTION = (
    (2, (4096, 333), 24, 64), (2, (4096,), 24, 64), (2, (1024, 333), 24, 64), (1, (4096, 333), 24, 64),
    (8, (4096, 333), 24, 64), (2, (4096, 333), 38, 64),
)  # fmt: skip
WARM_UPS = 3  # calls that do not count


def vae(model: str) -> dict[str, Any]:
    """Returns the arguments of diffusers' AutoencoderKL."""
    return _VAE | dict(block_out_channels=(32, 32, 32, 32), sample_size=128) if model == "micro" else _VAE


def cases(model: str) -> list[tuple[int, int, int]]:
    """Returns height, width and text tokens of each case of the parity test; first the one that is timed."""
    sizes = MICRO_SIZES if model == "micro" else SIZES
    return [(*size, tokens) for size in sizes for tokens in TEXT_LENGTHS]


def case_name(height: int, width: int, tokens: int) -> str:
    """Returns a case's prefix in reference.npz."""
    return f"{height}x{width}x{tokens}"


def attention_name(rows: int, tokens: tuple[int, ...], heads: int, head_dim: int) -> str:
    """Returns an attention's shape in words."""
    return f"rows {rows} tokens {' + '.join(map(str, tokens))} heads {heads}x{head_dim}"


def attention_flops(rows: int, tokens: tuple[int, ...], heads: int, head_dim: int) -> int:
    """Returns the FLOPs of both of its products."""
    return 4 * rows * heads * sum(tokens) ** 2 * head_dim


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Returns |got - want| / |want| in the 2-norm."""
    return float(np.linalg.norm((got - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64)))

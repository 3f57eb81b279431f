"""Tiny MM-DiTs of every variant, and inputs with rows that differ: shared by the golden script and the tests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.arrays import array

_BASE = dict(
    sample_size=16, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4,
    joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20, out_channels=16, pos_embed_max_size=12,
    dual_attention_layers=(), qk_norm=None,
)  # fmt: skip
VARIANTS: dict[str, dict] = {
    "sd3-medium": _BASE,
    "sd3.5-medium": _BASE | dict(dual_attention_layers=(0, 1), qk_norm="rms_norm"),
    "sd3.5-large": _BASE | dict(qk_norm="rms_norm", num_layers=4, num_attention_heads=8, caption_projection_dim=64),
    "dual-last": _BASE | dict(dual_attention_layers=(1, 2)),
}


class Case(NamedTuple):
    """Rows, latent height and width, text tokens."""

    rows: int
    height: int
    width: int
    text: int


# 15, 60, 7 and 20 image tokens: not multiples of 16 nor of the shard counts; 77, 154 and 333 text tokens.
CASES = (Case(2, 10, 6, 77), Case(2, 12, 20, 154), Case(1, 2, 14, 333), Case(4, 8, 10, 5))


def inputs(variant: str, case: Case) -> dict[str, np.ndarray]:
    """latents [R, 16, h, w], context [R, Tc, J], pooled [R, P], timestep [R]."""
    shape, tag = VARIANTS[variant], f"{variant} {tuple(case)}"
    return {
        "latents": array(f"{tag} latents", (case.rows, 16, case.height, case.width)),
        "context": array(f"{tag} context", (case.rows, case.text, shape["joint_attention_dim"])),
        "pooled": array(f"{tag} pooled", (case.rows, shape["pooled_projection_dim"])),
        "timestep": np.linspace(937.5, 12.25, case.rows).astype(np.float32),
    }


def key(variant: str, case: Case) -> str:
    """Returns the name of the golden array."""
    return f"{variant}/" + "-".join(str(n) for n in case)

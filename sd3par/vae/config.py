"""Shape of the autoencoder, as diffusers' `AutoencoderKL` writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd3par.config import parse_config, require

# `sample_size` sets diffusers' tiles; `force_upcast` is for fp16, which the SD3 autoencoders stand.
IGNORED = frozenset({"sample_size", "force_upcast"})


@dataclass(frozen=True)
class VAEConfig:
    """Shape of an autoencoder; names and defaults are those of diffusers' `AutoencoderKL` config."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    norm_type: str = "group"
    norm_num_groups: int = 32
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        self._check_kind()
        self._check_channels()
        for name in ("layers_per_block", "latent_channels"):
            value = getattr(self, name)
            require(1 <= value <= 64, name, value, "a whole number from 1 to 64")
        scaling = self.scaling_factor
        require(math.isfinite(scaling) and scaling > 0, "scaling_factor", scaling, "a number above 0")
        require(math.isfinite(self.shift), "shift_factor", self.shift_factor, "a number or null")

    def _check_kind(self) -> None:
        """Refuses what only other autoencoders have."""
        levels = len(self.block_out_channels)
        for name, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            value = getattr(self, name)
            require(value == (only,) * levels, name, value, f"{only}, once for each of block_out_channels ({levels})")
        require(self.act_fn in ("silu", "swish"), "act_fn", self.act_fn, "silu")
        require(self.norm_type == "group", "norm_type", self.norm_type, "group")
        for name in ("in_channels", "out_channels"):
            value = getattr(self, name)
            require(value == 3, name, value, "3: red, green, blue")
        for name in ("latents_mean", "latents_std"):
            value = getattr(self, name)
            require(value is None, name, value, "null: statistics per channel are not supported")

    def _check_channels(self) -> None:
        channels, groups = self.block_out_channels, self.norm_num_groups
        require(1 <= len(channels) <= 8, "block_out_channels", channels, "1 to 8 levels")
        require(1 <= groups <= 1024, "norm_num_groups", groups, "a whole number from 1 to 1024")
        for count in channels:
            whole = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= 8192
            fits = whole and count % groups == 0
            require(fits, "block_out_channels", channels, f"multiples of norm_num_groups ({groups}), up to 8192")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> VAEConfig:
        """Returns the config in the parsed config.json `values` of file `where`.

        Raises:
            ConfigError: an unknown key, a wrong type, or an autoencoder that is not supported.
        """
        return parse_config(cls, values, where, IGNORED)

    @property
    def shift(self) -> float:
        """What is added to latents before they are decoded."""
        return 0.0 if self.shift_factor is None else self.shift_factor

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along height and along width (8 for all SD3 models)."""
        return 2 ** (len(self.block_out_channels) - 1)

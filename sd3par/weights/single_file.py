"""A whole model in one safetensors file, as Stability AI publishes SD3 and SD3.5: parts by prefix, configs by shape."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from sd3par.errors import CheckpointError
from sd3par.weights.fill import Component
from sd3par.weights.original_text import clip_config, t5_config
from sd3par.weights.original_transformer import is_bare, transformer_config, transformer_views
from sd3par.weights.original_vae import vae_config, vae_views
from sd3par.weights.safetensors_file import SafetensorsFile
from sd3par.weights.shapes import Shapes
from sd3par.weights.views import Identity, Same, View, ViewCheckpoint

_TRANSFORMER = "model.diffusion_model."
_PREFIXES = {
    "transformer": _TRANSFORMER,
    "vae": "first_stage_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
# Left by training and by ComfyUI; inference has no use for them.
_IGNORED = (
    "model_ema.*",
    "first_stage_model.loss.*",
    "denoiser.sigmas",
    "model_sampling.*",
    "*.position_ids",
    "*logit_scale",
)


class SingleFile:
    """The parts of a single-file checkpoint; weights are read later, by slice.

    Args:
        path: a safetensors file with Stability AI's names; the MM-DiT may stand alone, then also without a prefix.

    Raises:
        CheckpointError: no valid file, no MM-DiT in it, or a tensor that belongs to no part.
    """

    def __init__(self, path: Path) -> None:
        self._file = SafetensorsFile(path)
        self.where = self._file.where
        names = [name for name in self._file.shapes() if not _ignored(name)]
        if any(name.startswith("transformer_blocks.") for name in names):
            raise CheckpointError(self.where, "diffusers' names", "the folder that it stands in, with its config.json")
        self._prefixes = {"transformer": ""} if is_bare(names) else _PREFIXES
        self._names: dict[str, list[str]] = {part: [] for part in self._prefixes}
        for name in names:
            self._names[self._part_of(name)].append(name)
        if not self._names["transformer"]:
            raise CheckpointError(self.where, "no MM-DiT", f"a file with {_TRANSFORMER}joint_blocks.0...")

    def __contains__(self, part: str) -> bool:
        return bool(self._names.get(part))

    def transformer(self) -> Component:
        """Opens the MM-DiT.

        Raises:
            CheckpointError: a tensor that SD3 does not have, one that tells the config is missing, or fp8.
        """
        shapes = self._shapes("transformer")
        config = transformer_config(shapes)
        names, prefix = self._names["transformer"], self._prefixes["transformer"]
        views, unknown = transformer_views(names, prefix, config["num_layers"])
        return self._component("transformer", config, views, unknown)

    def vae(self) -> Component:
        """Opens the autoencoder.

        Raises:
            CheckpointError: as `transformer` does.
        """
        config = vae_config(self._shapes("vae"))
        views, unknown = vae_views(self._names["vae"], self._prefixes["vae"], len(config["block_out_channels"]))
        return self._component("vae", config, views, unknown)

    def clip(self, part: str) -> Component:
        """Opens `text_encoder` (CLIP-L) or `text_encoder_2` (CLIP-G).

        Raises:
            CheckpointError: as `transformer` does.
        """
        config = clip_config(self._shapes(part), "quick_gelu" if part == "text_encoder" else "gelu")
        views = self._same_names(part)
        if part == "text_encoder":  # SD3 takes CLIP-L's pooled state unprojected, and most files leave the matrix out
            views.setdefault("text_projection.weight", Identity(config["hidden_size"]))
        return self._component(part, config, views, [])

    def t5(self) -> Component:
        """Opens the T5 encoder.

        Raises:
            CheckpointError: as `transformer` does.
        """
        config = t5_config(self._shapes("text_encoder_3"))
        return self._component("text_encoder_3", config, self._same_names("text_encoder_3"), [])

    def _part_of(self, name: str) -> str:
        for part, prefix in self._prefixes.items():
            if name.startswith(prefix):
                return part
        raise CheckpointError(f"{self.where}: {name}", "belongs to no part of SD3", f"{', '.join(_PREFIXES.values())}")

    def _shapes(self, part: str) -> Shapes:
        prefix, shapes = self._prefixes[part], self._file.shapes()
        return Shapes(self.where, {name.removeprefix(prefix): shapes[name] for name in self._names[part]})

    def _same_names(self, part: str) -> dict[str, View]:
        return {name.removeprefix(self._prefixes[part]): Same(name) for name in self._names[part]}

    def _component(
        self, part: str, config: Mapping[str, object], views: Mapping[str, View], unknown: list[str]
    ) -> Component:
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise CheckpointError(f"{self.where}: {unknown[0]}", f"not a tensor of SD3's {part}{more}", "SD3 and SD3.5")
        self._file.check_fp8(self._names[part])
        return Component(config, f"{self.where} ({part})", ViewCheckpoint(self._file, views))


def _ignored(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED)

"""One component of a model: a folder with config.json and weights, as diffusers, transformers or ppdiffusers save."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from sd3par.errors import CheckpointError
from sd3par.weights.fill import Component
from sd3par.weights.json_file import read_json
from sd3par.weights.paddle_layout import PADDLE_STEM, is_paddle, torch_config, torch_layout
from sd3par.weights.safetensors_file import SafetensorsFile
from sd3par.weights.shards import ShardedCheckpoint

logger = logging.getLogger(__name__)

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pdparams", ".pkl")
CONVERT = (
    "safetensors: pickle files can run code and are never read; convert with "
    "`save_pretrained(folder, safe_serialization=True)` of the library that wrote them"
)


def open_component(folder: Path, stem: str) -> Component:
    """Opens a component's folder; of the weights only headers are read.

    Args:
        stem: how the weights' file names begin: `DIFFUSERS_STEM` (ppdiffusers' own is then known too) or
            `TRANSFORMERS_STEM`.

    Raises:
        CheckpointError: no folder, no or broken config.json, no safetensors, pickles alone, broken or fp8 weights.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "no such folder", "a folder with config.json and safetensors")
    weights = _choose(folder, (stem, PADDLE_STEM) if stem == DIFFUSERS_STEM else (stem,))
    config = read_json(folder / "config.json")
    stored = ShardedCheckpoint(weights) if weights.suffix == ".json" else SafetensorsFile(weights)
    files = stored.files.values() if isinstance(stored, ShardedCheckpoint) else (stored,)
    layouts = {is_paddle(file.where, Path(file.where).name, file.format) for file in files}
    if len(layouts) > 1:
        raise CheckpointError(weights, "shards of several formats", 'the same "format" in all of them')
    for file in files:
        file.check_fp8(file.shapes())
    return Component(torch_config(config), str(folder), torch_layout(stored, layouts.pop()))


def _choose(folder: Path, stems: tuple[str, ...]) -> Path:
    """Returns the weights' file or index: a plain one, else a variant (`.fp16`), which is logged."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(folder, f"cannot be read ({error.strerror})", "a readable folder") from None
    found = [match for match in map(re.compile(_pattern(stems)).fullmatch, names) if match]
    if not found:
        raise _nothing(folder, names, stems[0])
    best = min(found, key=lambda match: (match["variant"] or match["kind"] or "", match["index"] or ""))
    if variant := best["variant"] or best["kind"]:
        logger.info("%s: no plain weights stand there, the variant %s is read: %s", folder, variant, best.string)
    return folder / best.string


def _pattern(stems: tuple[str, ...]) -> str:
    """`model[.fp16].safetensors`, or the index of shards, where the variant stands before or after `safetensors`."""
    return rf"(?:{'|'.join(stems)})(?:\.(?P<variant>\w+))?\.safetensors(?P<index>\.index(?:\.(?P<kind>\w+))?\.json)?"


def _nothing(folder: Path, names: list[str], stem: str) -> CheckpointError:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(folder / pickles[0], "a pickle file, and no safetensors beside it", CONVERT)
    return CheckpointError(folder, "no weights", f"{stem}.safetensors, or shards and {stem}.safetensors.index.json")

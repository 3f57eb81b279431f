"""One component of a model: a folder with config.json and weights, as diffusers, transformers or ppdiffusers save."""

from __future__ import annotations

import logging
from pathlib import Path

from sd3par.errors import CheckpointError
from sd3par.weights.choice import choose
from sd3par.weights.fill import Component
from sd3par.weights.json_file import read_json
from sd3par.weights.paddle_layout import is_paddle, torch_config, torch_layout
from sd3par.weights.safetensors_file import SafetensorsFile
from sd3par.weights.shards import ShardedCheckpoint

logger = logging.getLogger(__name__)


def open_component(folder: Path, stem: str) -> Component:
    """Opens a component's folder; of the weights only headers are read.

    Args:
        stem: how the weights' file names begin, as `choose` takes it.

    Raises:
        CheckpointError: no folder, no or broken config.json, no safetensors, pickles alone, broken or fp8 weights.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "no such folder", "a folder with config.json and safetensors")
    choice = choose(folder, stem)
    weights = choice.path
    if choice.variant:
        what = choice.variant, weights.name
        logger.info("%s: no plain weights stand there, the variant %s is read: %s", folder, *what)
    config = read_json(folder / "config.json")
    stored = ShardedCheckpoint(weights) if choice.is_index else SafetensorsFile(weights)
    files = stored.files.values() if isinstance(stored, ShardedCheckpoint) else (stored,)
    layouts = {is_paddle(file.where, Path(file.where).name, file.format) for file in files}
    if len(layouts) > 1:
        raise CheckpointError(weights, "shards of several formats", 'the same "format" in all of them')
    for file in files:
        file.check_fp8(file.shapes())
    return Component(torch_config(config), str(folder), torch_layout(stored, layouts.pop()))

"""A model of made-up weights as a checkpoint's files: python -m sd3par.launch.bench.made sd3-medium FOLDER

What `--random_weights` names is made on the device, and read from nowhere: a start from it is faster than from files.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import paddle
from safetensors import SafetensorError
from safetensors.paddle import save_file

from sd3par.config import require
from sd3par.device import choose
from sd3par.errors import ConfigError
from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.weights.fill import Component
from sd3par.weights.folder import DIFFUSERS_STEM, TRANSFORMERS_STEM
from sd3par.weights.random_model import BUNDLED_FOLDER, MODELS, PREFIX, random_component

PARTS = {"transformer": DIFFUSERS_STEM, "vae": DIFFUSERS_STEM, "text_encoder": TRANSFORMERS_STEM,
         "text_encoder_2": TRANSFORMERS_STEM, "text_encoder_3": TRANSFORMERS_STEM}  # fmt: skip
SHARD = 1 << 30  # numbers in a file, as many as are held at a time


def write(name: str, folder: Path, shard: int = SHARD) -> None:
    """Writes a diffusers folder, T5 included, with the tokenizers of the bundled model.

    Args:
        name: of `random_model.MODELS`.
        folder: not there yet.
        shard: the most numbers in a file of several tensors.

    Raises:
        ConfigError: no such model, or its tensors cannot be written.
        OSError: other files cannot be written.
    """
    components = {part: random_component(PREFIX + name, part) for part in PARTS}
    shutil.copytree(BUNDLED_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, component in components.items():
        place = folder / part
        (place / "config.json").write_text(json.dumps(dict(component.config)), encoding="utf-8")
        _save(component, place, PARTS[part], shard)


def _save(component: Component, folder: Path, stem: str, most: int) -> None:
    """Writes a component's tensors, and where each is if they take several files."""
    shards = list(_shards(component, most))
    files = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = [f"{stem}.safetensors"] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        tensors = {name: component.checkpoint.read(name).cpu() for name in names}
        try:
            save_file(tensors, str(folder / file), {"format": "pt"})
        except SafetensorError as error:  # no OSError
            raise ConfigError("folder", folder, f"one that takes {file}: {error}") from None
    if len(files) > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(component: Component, most: int) -> Iterator[list[str]]:
    """Yields names of tensors that lie in a file together."""
    names: list[str] = []
    held = 0
    for name, shape in component.checkpoint.shapes().items():
        size = math.prod(shape)
        if names and held + size > most:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def main(argv: Sequence[str]) -> int:
    """Writes what `argv` names; returns the exit code."""
    require(len(argv) == 2, "arguments", shlex.join(argv), f"a model ({', '.join(MODELS)}) and a folder")
    choose().activate()
    with paddle.no_grad():
        write(argv[0], Path(argv[1]))
    return endings.DONE


if __name__ == "__main__":
    sys.exit(endings.run(lambda: main(sys.argv[1:]), Place()))

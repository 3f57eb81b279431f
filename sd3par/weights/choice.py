"""Which files of a folder hold a component's weights. Nothing here needs Paddle."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from sd3par.errors import CheckpointError, shorten
from sd3par.weights.json_file import read_json

DIFFUSERS_STEM, TRANSFORMERS_STEM, PADDLE_STEM = "diffusion_pytorch_model", "model", "diffusion_paddle_model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pdparams", ".pkl")
CONVERT = (
    "safetensors: pickle files can run code and are never read; convert with "
    "`save_pretrained(folder, safe_serialization=True)` of the library that wrote them"
)


class Choice(NamedTuple):
    """A file of weights, or the index of several; variant: "fp16" and the like, "" for plain ones."""

    path: Path
    variant: str

    @property
    def is_index(self) -> bool:
        """Returns whether it lists the files."""
        return self.path.suffix == ".json"


def choose(folder: Path, stem: str) -> Choice:
    """Returns the weights' file or index in a folder: a plain one, else a variant.

    Args:
        stem: how the file names begin: `DIFFUSERS_STEM` (ppdiffusers' own is then known too) or `TRANSFORMERS_STEM`.

    Raises:
        CheckpointError: there is none, or the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(folder, f"cannot be read ({error.strerror})", "a readable folder") from None
    stems = (stem, PADDLE_STEM) if stem == DIFFUSERS_STEM else (stem,)
    found = [match for match in map(re.compile(_pattern(stems)).fullmatch, names) if match]
    if not found:
        raise _nothing(folder, names, stem)
    best = min(found, key=lambda match: (match["variant"] or match["kind"] or "", match["index"] or ""))
    return Choice(folder / best.string, best["variant"] or best["kind"] or "")


def weight_map(index: Path) -> dict[str, str]:
    """Returns tensor -> shard. No name may lead out of the folder; a file may be a link: the Hub's cache has them.

    Raises:
        CheckpointError: the index is malformed, or names a file elsewhere.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index}: weight_map", "missing or empty", "an object {tensor: file name}")
    for key, name in found.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(f"{index}: {key}", f"shard {shorten(name)}", "a .safetensors file of this folder")
    return found


def _pattern(stems: tuple[str, ...]) -> str:
    """`model[.fp16].safetensors`, or the index of shards, where the variant stands before or after `safetensors`."""
    return rf"(?:{'|'.join(stems)})(?:\.(?P<variant>\w+))?\.safetensors(?P<index>\.index(?:\.(?P<kind>\w+))?\.json)?"


def _nothing(folder: Path, names: list[str], stem: str) -> CheckpointError:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(folder / pickles[0], "a pickle file, and no safetensors beside it", CONVERT)
    return CheckpointError(folder, "no weights", f"{stem}.safetensors, or shards and {stem}.safetensors.index.json")


def _is_plain(name: str) -> bool:
    """Whether `name` is a file name without any path, on every system."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return plain and name.endswith(".safetensors") and name.isprintable()

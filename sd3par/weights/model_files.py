"""From what a caller names as the model to its parts: the bundled one, a folder, a single file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3par.config import require
from sd3par.errors import CheckpointError, ConfigError, shorten
from sd3par.weights.export_files import Export
from sd3par.weights.fill import Component
from sd3par.weights.folder import CONVERT, DIFFUSERS_STEM, PICKLES, TRANSFORMERS_STEM, open_component
from sd3par.weights.json_file import read_json
from sd3par.weights.manifest import is_export
from sd3par.weights.random_model import BUNDLED_FOLDER, is_random, random_component
from sd3par.weights.single_file import SingleFile

BUNDLED = "tiny"

_PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
_CLASSES = {
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
}
_TEXT = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
_SCHEDULER = {"shift": 3.0, "num_train_timesteps": 1000}  # of every SD3 and SD3.5


@dataclass(frozen=True)
class ModelFiles:
    """The parts of one model; of the weights only headers were read. A part that is None was dropped from the model.

    export: the exported model that these are the configs of; then there are no weights here.
    """

    name: str
    transformer: Component
    vae: Component
    text_encoder: Component | None
    text_encoder_2: Component | None
    text_encoder_3: Component | None
    tokenizer: Path | None
    tokenizer_2: Path | None
    tokenizer_3: Path | None
    scheduler: Mapping[str, Any]
    export: Export | None = None


def open_model(
    path: str | Path, tokenizers: str | Path | None = None, text_encoder_3: bool = True, text_encoders: bool = True
) -> ModelFiles:
    """Opens a model.

    Args:
        path: "tiny", a folder of `sd3par export`, a diffusers (or ppdiffusers) folder, a single safetensors file, or
            "random:sd3-medium" (also sd3.5-medium, sd3.5-large, tiny): that shape with made-up weights. A diffusers
            folder has model_index.json, or transformer/ and vae/ alone: then prompts come as embeddings.
        tokenizers: a folder with tokenizer, tokenizer_2 and tokenizer_3 as diffusers has them: single files with text
            encoders need it, for a folder it stands in for the folder's own.
        text_encoder_3: False leaves out T5, which is larger than all the rest.
        text_encoders: False leaves out all three: prompts come as embeddings.

    Raises:
        ConfigError: no path or none that exists, a Hub id (says how to download it), or tokenizers are needed and not
            given.
        CheckpointError: a file of the model is missing, broken or of another model.
    """
    if is_export(path):
        require(tokenizers is None, "tokenizers", tokenizers, "nothing: an exported model has its own")
        return open_export(path, text_encoder_3, text_encoders)
    wanted = tuple(part for part in _TEXT if text_encoders and (text_encoder_3 or part != "text_encoder_3"))
    if is_random(path):
        return _open_random(str(path), BUNDLED_FOLDER if tokenizers is None else _tokenizers(tokenizers), wanted)
    place = _locate(path)
    given = None if tokenizers is None else _tokenizers(tokenizers)
    return _open_folder(place, given, wanted) if place.is_dir() else _open_file(place, given, wanted)


def open_export(path: str | Path, text_encoder_3: bool = True, text_encoders: bool = True) -> ModelFiles:
    """Opens what `sd3par export` wrote: configs without tensors, and tokenizers.

    Raises:
        CheckpointError: no manifest, another format, or a file is missing or of another size.
    """
    export = Export.open(path)
    wanted = tuple(part for part in _TEXT if text_encoders and (text_encoder_3 or part != "text_encoder_3"))
    texts = [part for part in wanted if part in export.manifest.configs]
    return _assemble(
        export.manifest.model,
        {part: export.component(part) for part in ("transformer", "vae")},
        {part: export.component(part) for part in texts},
        {part: _tokenizer(export.folder, _TEXT[part]) for part in texts},
        export.manifest.scheduler,
        export,
    )


def open_transformer(path: str | Path) -> Component:
    """Opens the MM-DiT alone.

    Args:
        path: a diffusers `transformer/` folder, or anything that `open_model` takes; a single file may hold it alone.

    Raises:
        ConfigError: no path, none that exists, or a Hub id.
        CheckpointError: a file of it is missing, broken or of another model.
    """
    if is_random(path):
        return random_component(str(path), "transformer")
    place = _locate(path)
    if not place.is_dir():
        return SingleFile(place).transformer()
    if (place / "model_index.json").exists():
        _read_index(place)
        return open_component(place / "transformer", DIFFUSERS_STEM)
    component = open_component(place, DIFFUSERS_STEM)
    found, wanted = component.config.get("_class_name"), _CLASSES["transformer"]
    if found not in (None, wanted):
        raise CheckpointError(place / "config.json", f"_class_name {shorten(found)}", wanted)
    return component


def _locate(path: str | Path) -> Path:
    """Returns the folder or file that `path` names."""
    place = _place("model", path, _missing(""))
    if path == BUNDLED or (str(place) == BUNDLED and not os.path.exists(place)):
        return BUNDLED_FOLDER
    if not os.path.exists(place):  # unlike Path.exists, False for what no path can be
        raise ConfigError("model", str(path), _missing(str(path)))
    if place.is_file() and place.suffix in PICKLES:
        raise CheckpointError(place, "a pickle file", CONVERT)
    if place.is_file() and place.suffix != ".safetensors":
        raise ConfigError("model", str(path), f"{BUNDLED}, a folder, or a .safetensors file")
    return place


def _place(field: str, path: object, allowed: str) -> Path:
    """Returns what the caller gave as a path."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        raise ConfigError(field, path, allowed)
    return Path(os.path.expanduser(name))  # Path.expanduser fails where no such user is


def _missing(path: str) -> str:
    allowed = f"{BUNDLED}, or a folder or file that exists"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path):
        folder = path.rpartition("/")[2]
        return f"{allowed}; a model of the Hub is downloaded first: hf download {path} --local-dir {folder}"
    return allowed


def _tokenizers(folder: str | Path) -> Path:
    allowed = f"a folder with {', '.join(_TEXT.values())}"
    place = _place("tokenizers", folder, allowed)
    if not os.path.isdir(place):  # unlike Path.is_dir, False for what no path can be
        raise ConfigError("tokenizers", str(folder), allowed)
    return place


def _open_random(path: str, tokenizers: Path, wanted: tuple[str, ...]) -> ModelFiles:
    return _assemble(
        path,
        {part: random_component(path, part) for part in ("transformer", "vae")},
        {part: random_component(path, part) for part in wanted},
        {part: _tokenizer(tokenizers, _TEXT[part]) for part in wanted},
        _SCHEDULER,
    )


def _open_folder(folder: Path, tokenizers: Path | None, wanted: tuple[str, ...]) -> ModelFiles:
    present = _parts(folder)
    texts = [part for part in wanted if part in present]
    return _assemble(
        folder.resolve().name,
        {part: open_component(folder / part, DIFFUSERS_STEM) for part in ("transformer", "vae")},
        {part: open_component(folder / part, TRANSFORMERS_STEM) for part in texts},
        {part: _tokenizer(tokenizers or folder, _TEXT[part]) for part in texts},
        read_json(folder / "scheduler" / "scheduler_config.json") if "scheduler" in present else _SCHEDULER,
    )


def _open_file(path: Path, tokenizers: Path | None, wanted: tuple[str, ...]) -> ModelFiles:
    file = SingleFile(path)
    if "vae" not in file:
        raise CheckpointError(path, "no VAE (first_stage_model.)", "a file with one; MMDiT.from_pretrained needs none")
    texts = [part for part in wanted if part in file]
    if texts and tokenizers is None:
        names = ", ".join(_TEXT[part] for part in texts)
        allowed = f"--tokenizers FOLDER (in Python tokenizers=), with {names} in it: a single file has none"
        raise ConfigError("tokenizers", None, allowed)
    return _assemble(
        path.stem,
        {"transformer": file.transformer(), "vae": file.vae()},
        {part: file.t5() if part == "text_encoder_3" else file.clip(part) for part in texts},
        {part: _tokenizer(tokenizers, _TEXT[part]) for part in texts if tokenizers},
        _SCHEDULER,
    )


def _assemble(
    name: str, models: Mapping[str, Component], texts: Mapping[str, Component], tokenizers: Mapping[str, Path],
    scheduler: Mapping[str, Any], export: Export | None = None,
) -> ModelFiles:  # fmt: skip
    return ModelFiles(
        name=name,
        transformer=models["transformer"],
        vae=models["vae"],
        text_encoder=texts.get("text_encoder"),
        text_encoder_2=texts.get("text_encoder_2"),
        text_encoder_3=texts.get("text_encoder_3"),
        tokenizer=tokenizers.get("text_encoder"),
        tokenizer_2=tokenizers.get("text_encoder_2"),
        tokenizer_3=tokenizers.get("text_encoder_3"),
        scheduler=dict(scheduler),
        export=export,
    )


def _parts(folder: Path) -> frozenset[str]:
    """Returns the parts of a model's folder, which its model_index.json names.

    Without one there may be a transformer and a VAE, saved one by one, and a scheduler. With text encoders it is a
    whole model whose index got lost.
    """
    if (folder / "model_index.json").exists():
        return _read_index(folder)
    present = frozenset(part for part in (*_CLASSES, *_TEXT.values()) if (folder / part).is_dir())
    if not {"transformer", "vae"} <= present <= {"transformer", "vae", "scheduler"}:
        allowed = "the folder of a whole model, as diffusers saves it, one with transformer/ and vae/ alone"
        allowed += "; an export has sd3par-export.json"
        raise CheckpointError(folder, "no model_index.json", allowed)
    return present


def _read_index(folder: Path) -> frozenset[str]:
    """Returns the parts that a folder's model_index.json has, all of classes that SD3 has."""
    path = folder / "model_index.json"
    index = read_json(path)
    if index.get("_class_name") not in _PIPELINES:
        raise CheckpointError(path, f"_class_name {shorten(index.get('_class_name'))}", " or ".join(_PIPELINES))
    parts = {key: _class_of(value) for key, value in index.items() if not key.startswith("_")}
    present = {key: name for key, name in parts.items() if name is not None}
    for key, name in present.items():
        if key not in (*_CLASSES, *_TEXT.values()):
            raise CheckpointError(f"{path}: {key}", "a part that is not supported", "null, or no such key")
        if name != _CLASSES.get(key, name):
            raise CheckpointError(f"{path}: {key}", f"class {shorten(name)}", _CLASSES[key])
    for key in ("transformer", "vae", "scheduler"):
        if key not in present:
            raise CheckpointError(f"{path}: {key}", "missing", _CLASSES[key])
    return frozenset(present)


def _class_of(value: Any) -> str | None:
    """Returns the class name of a [library, class] pair; None where the part was dropped."""
    name = value[1] if isinstance(value, list) and len(value) == 2 else value
    return None if name is None else str(name)


def _tokenizer(folder: Path, name: str) -> Path:
    if not (folder / name).is_dir():
        raise CheckpointError(folder / name, "no such folder", f"the tokenizer that diffusers keeps in {name}/")
    return folder / name

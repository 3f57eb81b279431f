"""Exports of the bundled model's shape, and requests to them: shared by the tests of this folder."""

from __future__ import annotations

import functools
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from sd3par.config import ParallelConfig
from sd3par.weights import ModelFiles, open_model
from sd3par.weights.manifest import Limits

if TYPE_CHECKING:
    from sd3par.static.program import Program

LIMITS = Limits(side=256, images=4, text=128)
_BASE: dict[str, Any] = dict(num_inference_steps=2, seed=3, progress=False, output_type="latent")
# Five shapes: token numbers that no mesh divides, one picture and several, with guidance and without, image-to-image.
CASES: dict[str, dict[str, Any]] = {
    "two images": dict(
        prompt="a star", num_inference_steps=1, num_images_per_prompt=2, height=48, width=112, max_sequence_length=77
    ),
    "four prompts": dict(
        prompt=["a", "b red", "c", "d green"], num_inference_steps=1, height=48, width=48, max_sequence_length=33
    ),
    "no guidance": dict(
        prompt=["a circle", "b", "c", "d"], num_inference_steps=1, guidance_scale=1.0, height=80, width=48
    ),
    "one": dict(prompt="a red circle", height=64, width=80, guidance_scale=3.0, max_sequence_length=5),
    "own size": dict(prompt=["a circle", "b"], num_inference_steps=1, negative_prompt="blurry", max_sequence_length=17),
}


def options(name: str) -> dict[str, Any]:
    """Returns the arguments of a case."""
    return dict(max_sequence_length=64) | _BASE | CASES[name]


def start() -> np.ndarray:
    """Returns a picture to begin with, [64, 80, 3] uint8."""
    return np.arange(64 * 80 * 3).reshape(64, 80, 3).astype(np.uint8)


def write(folder: Path, parallel: ParallelConfig = ParallelConfig(), trained: bool = False) -> Path:
    """Exports the bundled model, with its own weights or random ones, for the CPU; returns the folder."""
    from sd3par.static.export import Target, export  # not above: a process without the model's code reads this file

    export(files(trained), folder, Target(parallel, "float32", "cpu"), LIMITS)
    return folder


@functools.cache
def files(trained: bool) -> ModelFiles:
    """Returns what is exported: random weights do not magnify rounding as trained ones with guidance do."""
    from tests.pipeline_cases import random_files

    return open_model("tiny") if trained else random_files()


def loaded(program: Path) -> Program:
    """Returns a program with the parameters that lie beside it."""
    from sd3par.static.parameters import tensors
    from sd3par.static.program import Program
    from sd3par.static.reader import Reader
    from sd3par.weights.manifest import described

    found, name = Program(program), program.with_suffix(".pdiparams").name
    if (program.parent / name).exists():  # else it has none
        manifest: Any = SimpleNamespace(files=described(program.parent, [name]), target="cpu")
        with closing(Reader(program.parent, manifest, [name])) as reader:
            found.fill(tensors(reader, name))
    return found


def name_of(parallel: ParallelConfig) -> str:
    """Returns the name of a mesh's export."""
    return f"dp{parallel.dp}-mp{parallel.mp}-sp{parallel.sp}"

"""An export for a GPU on the dry device, from files to programs: python -m tests.static.ready DIR

Loads it twice: the first time compares its files, the second one reads them ahead. Prints one JSON object: of each time
which programs got ready, how many parameters there are, are wrong and were read ahead, and how often memory was pinned;
then the shape of latents that it makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sd3par import cuda_driver
from sd3par.config import ParallelConfig
from sd3par.pipeline import SD3Pipeline
from sd3par.static import checked
from sd3par.static.export import Target, export
from sd3par.static.parameters import _tensor
from sd3par.static.program import Program
from sd3par.static.reader import Reader
from sd3par.weights import ahead, open_model
from sd3par.weights.manifest import MANIFEST, Manifest, described
from tests.static import exports
from tests.static.launched import without_code


def written(folder: Path) -> Manifest:
    """Exports the bundled model, with what the dry driver wants in place of GPU code."""
    made = export(open_model("tiny"), folder, Target(ParallelConfig(), "bfloat16", "cuda", (90,)), exports.LIMITS)
    kernels = next(name for name in made.operators if not name.endswith(".so"))
    without_code(folder / kernels)
    text = json.loads((folder / MANIFEST).read_text("utf-8"))
    text["files"] |= described(folder, [kernels])
    (folder / MANIFEST).write_text(json.dumps(text), "utf-8")
    return Manifest.read(folder)


def wanted(folder: Path, manifest: Manifest) -> dict[str, list[np.ndarray]]:
    """Returns what is in each file of parameters, bit by bit."""
    names = [pair[1] for ranks in manifest.programs.values() for pair in ranks if pair is not None]
    with closing(Reader(folder, manifest, names)) as reader:
        return {name: [bits(_tensor(*part)) for part in reader.parts(name)] for name in names}


def bits(tensor: Any) -> np.ndarray:
    """Returns the bytes of a tensor."""
    return np.ascontiguousarray(tensor.cpu().reshape([-1]).view("uint8").numpy())


def noted(owner: Any, name: str, note: Callable[..., None]) -> None:
    """Has `note` called with the arguments of a function, before that is."""
    kept = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        note(*arguments)
        return kept(*arguments)

    setattr(owner, name, call)


def main(folder: Path) -> None:
    """Loads and counts."""
    manifest = written(folder)
    checked.SETTLED_NS, ahead._PINS = 1 << 60, 0  # nothing is old enough to be remembered
    parameters = wanted(folder, manifest)
    checked.SETTLED_NS = 0
    found: list[dict[str, Any]] = []

    def count(what: str, more: int = 1) -> None:
        found[-1][what] += more

    def compare(program: Program, tensors: Sequence[Any]) -> None:
        want = parameters[program._path.with_suffix(".pdiparams").name]
        right = [a.place.is_custom_place() and np.array_equal(bits(a), b) for a, b in zip(tensors, want, strict=True)]
        count("parameters", len(want))
        count("wrong", right.count(False))

    noted(Program, "get_ready", lambda program, length: found[-1]["ready"].append(program._path.stem))
    noted(Program, "fill", compare)
    noted(ahead.Ahead, "begin", lambda *_: count("ahead"))
    noted(cuda_driver, "pin", lambda *_: count("pinned"))
    noted(cuda_driver, "unpin", lambda *_: count("unpinned"))
    for _ in range(2):
        found.append({"ready": [], "parameters": 0, "wrong": 0, "ahead": 0, "pinned": 0, "unpinned": 0})
        pipe = SD3Pipeline.from_pretrained(folder, device="nvgpu")
    latents = pipe("a star", num_inference_steps=1, height=64, width=64, max_sequence_length=5, progress=False,
                   output_type="latent").images  # fmt: skip
    print(json.dumps({"found": found, "latents": latents.shape}))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "export")

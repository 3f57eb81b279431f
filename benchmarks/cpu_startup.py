"""Start to picture's file of a checkpoint and of its export, on the CPU: python -m benchmarks.cpu_startup

The model is the bundled one with a larger transformer (8 blocks of width 1024: 1.2 GB in fp32) and made-up weights, so
that reading them counts; the picture is as small as it can be. Both start in turn, in fresh processes, with all files
in the page cache. CPU seconds stand beside, as they count where other programs take the cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

from safetensors.numpy import save_file

from benchmarks.record import Run
from sd3par.launch.bench import startup
from sd3par.launch.report import table
from sd3par.weights.random_model import BUNDLED_FOLDER
from sd3par.weights.random_parts import transformer_names
from sd3par.weights.random_tensors import RandomCheckpoint

WIDER = {"num_layers": 8, "num_attention_heads": 16, "attention_head_dim": 64, "caption_projection_dim": 1024}


def checkpoint(folder: Path) -> Path:
    """Writes a diffusers folder; returns it."""
    shutil.copytree(BUNDLED_FOLDER, folder)
    place = folder / "transformer"
    config = json.loads((place / "config.json").read_text(encoding="utf-8")) | WIDER
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = RandomCheckpoint("made", "transformer", transformer_names(config))
    tensors = {name: made.read(name).astype("float32").numpy() for name in made.shapes()}
    save_file(tensors, place / "diffusion_pytorch_model.safetensors")
    return folder


def main() -> None:
    """Measures all starts and appends a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=7, help="of each warm start")
    parser.add_argument("--quiet_s", type=float, default=0.0, help="for so long, disturbed starts are repeated")
    options = parser.parse_args()
    run = Run(startup.NAME, "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        model = ["--model", str(checkpoint(Path(scratch) / "wide"))]
        request = startup.Request(size=64, tokens=1, steps=4)
        add = partial(run.add, who="sd3par", model="tiny, 1.2 GB")
        rows = startup.measure(model, request, options.repeats, lambda row: add(**row), options.quiet_s)
    print(table(startup.shown(rows)))


if __name__ == "__main__":
    main()

"""Loading a model never holds a second copy of the checkpoint, nor pages of its file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd3par.config import ModelConfig
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.plan import mmdit_source
from tests.ranks import ROOT

CONFIG = dict(
    sample_size=16, num_layers=4, attention_head_dim=64, num_attention_heads=8, joint_attention_dim=512,
    caption_projection_dim=512, pooled_projection_dim=512, pos_embed_max_size=16,
)  # fmt: skip
LOAD = """
import sys
from sd3par.device import Device
from sd3par.mesh import Axis, Mesh
from sd3par.mmdit import MMDiT
from sd3par.weights import open_transformer

def memory(kind):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(kind))
    return int(line.split()[1]) * 1024

mp = int(sys.argv[2])
Device("cpu", "float32").activate()
anonymous, resident = memory("RssAnon"), memory("VmRSS")
component = open_transformer(sys.argv[1])
model = MMDiT.load(component, "float32", Mesh(mp=Axis(mp, 0)))
held = sum(p.numel().item() for p in model.parameters()) * 4
print(memory("RssAnon") - anonymous, memory("VmHWM") - resident, held)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer folder of about 160 MB."""
    where = tmp_path_factory.mktemp("transformer")
    model = MMDiT(ModelConfig(**CONFIG), Mesh.single())  # type: ignore[arg-type]
    arrays = {}
    for name, parameter in model.named_parameters():
        keys = mmdit_source(name).keys
        shape = list(parameter.shape)
        if name.endswith("weight") and len(shape) == 2:
            shape = shape[::-1]
        for key in keys:
            arrays[key] = np.full([shape[0] // len(keys), *shape[1:]], 0.01, np.float32)
    save_file(arrays, where / "diffusion_pytorch_model.safetensors")
    (where / "config.json").write_text(json.dumps(CONFIG))
    return where


def loaded(folder: Path, mp: int) -> tuple[int, ...]:
    """Returns the bytes that a load takes afterwards, at most, and for parameters.

    Of several starts the least counts: on a busy machine 1 in 60 leaves 12 MB that are not given back yet.
    """
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(folder), str(mp)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return tuple(int(word) for word in done.stdout.split()[-3:])


@pytest.mark.parametrize("mp", [1, 4])
def test_no_second_copy(folder: Path, mp: int) -> None:
    grown, peak, held = min(loaded(folder, mp) for _ in range(3))
    largest = 3 * 4 * 512 * 512 * 4  # a modulation or MLP tensor, while it is read, cast and transposed
    assert held > 100e6 / mp * 0.9
    assert grown < held + largest
    assert peak < held + 2 * largest  # the file has 145 MB; some code of the libraries is touched here first

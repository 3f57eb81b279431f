"""One rank of tests/test_heads.py: models with 5 and 6 heads on meshes that do not divide them, against one process.

Run: python -m tests.heads_worker KIND (with the launcher's environment). Prints one JSON line a mesh.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle

from sd3par.config import ParallelConfig
from sd3par.device import Device
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.weights import Component
from sd3par.weights.random_parts import transformer_names
from tests.arrays import array
from tests.checkpoints import ArrayCheckpoint

_FIVE = dict(
    sample_size=16, patch_size=2, in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=5,
    joint_attention_dim=24, caption_projection_dim=40, pooled_projection_dim=20, out_channels=16, pos_embed_max_size=12,
    dual_attention_layers=(), qk_norm=None,
)  # fmt: skip
_NORM = _FIVE | dict(qk_norm="rms_norm")
MODELS: dict[str, dict] = {
    "5 heads": _FIVE,
    "5 heads, dual, QK norm": _NORM | dict(dual_attention_layers=(0, 1)),
    "6 heads, QK norm": _NORM | dict(num_attention_heads=6, caption_projection_dim=48),
}
MESHES = {
    2: (ParallelConfig(mp=2), ParallelConfig(sp=2)),
    3: (ParallelConfig(mp=3), ParallelConfig(sp=3)),
    4: (ParallelConfig(mp=4), ParallelConfig(sp=4), ParallelConfig(mp=2, sp=2)),
}
INPUTS = {"latents": (2, 16, 10, 6), "context": (2, 7, 24), "pooled": (2, 20)}  # 15 and 7 tokens


def model(config: dict, mesh: Mesh) -> MMDiT:
    """Returns a model of deterministic weights."""
    shapes = {name: made.shape for name, made in transformer_names(config).items()}
    return MMDiT.load(Component(config, "heads", ArrayCheckpoint.from_shapes(shapes)), "float32", mesh)


def predict(config: dict, mesh: Mesh) -> np.ndarray:
    """Returns the noise prediction [2, 16, 10, 6]."""
    x = [paddle.to_tensor(array(name, shape)) for name, shape in INPUTS.items()]
    with paddle.no_grad():
        return model(config, mesh)(*x, paddle.to_tensor([937.5, 12.25])).numpy()


def main() -> None:
    """Tests every mesh of this world."""
    kind, world = sys.argv[1], paddle.distributed.ParallelEnv()
    Device(kind if kind == "cpu" else f"{kind}:{world.rank}", "float32").activate()
    alone = {name: predict(config, Mesh.single()) for name, config in MODELS.items()}
    for parallel in MESHES[world.world_size]:
        mesh = Mesh.from_env(parallel)
        errors = {name: float(np.abs(predict(MODELS[name], mesh) - alone[name]).max()) for name in MODELS}
        print("RESULT", json.dumps({"mesh": mesh.describe(), "errors": errors}), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()

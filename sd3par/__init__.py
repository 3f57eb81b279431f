"""Stable Diffusion 3 on PaddlePaddle: one image on many cards, the same image whatever their number."""

from __future__ import annotations

import importlib
import os.path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd3par.config import GenerationRequest, ModelConfig, ParallelConfig
    from sd3par.errors import Cancelled, CheckpointError, ConfigError, OutOfMemory, RankFailure, Sd3parError
    from sd3par.inputs import Inputs
    from sd3par.mesh import Mesh
    from sd3par.mmdit import MMDiT
    from sd3par.pipeline import GenerationOutput, SD3Pipeline

__version__ = "0.1.0"

# A plain checkout has kernels/ and launch/ beside this folder; installed, they are inside it (setup.py).
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.exists(os.path.join(_ROOT, name)) for name in ("setup.py", "kernels", "launch")):
    __path__.append(_ROOT)

__all__ = [
    "Cancelled", "CheckpointError", "ConfigError", "GenerationOutput", "GenerationRequest", "Inputs", "MMDiT", "Mesh",
    "ModelConfig", "OutOfMemory", "ParallelConfig", "RankFailure", "SD3Pipeline", "Sd3parError",
]  # fmt: skip
_HOME = {
    "config": ("GenerationRequest", "ModelConfig", "ParallelConfig"),
    "errors": ("Cancelled", "CheckpointError", "ConfigError", "OutOfMemory", "RankFailure", "Sd3parError"),
    "inputs": ("Inputs",),
    "mesh": ("Mesh",),
    "mmdit": ("MMDiT",),
    "pipeline": ("GenerationOutput", "SD3Pipeline"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `import sd3par` itself loads no Paddle."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"sd3par.{module}"), name)
    raise AttributeError(f"module 'sd3par' has no attribute {name!r}")

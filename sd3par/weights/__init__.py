"""Reading weights: safetensors only, strict, by slice."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd3par.weights.fill import Checkpoint, Component
    from sd3par.weights.model_files import ModelFiles, open_model, open_transformer

__all__ = ["Checkpoint", "Component", "ModelFiles", "open_model", "open_transformer"]
_HOME = {
    "Checkpoint": "fill",
    "Component": "fill",
    "ModelFiles": "model_files",
    "open_model": "model_files",
    "open_transformer": "model_files",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: an export's files are read while Paddle is imported."""
    if name in _HOME:
        return getattr(importlib.import_module(f"sd3par.weights.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sd3par.weights' has no attribute {name!r}")

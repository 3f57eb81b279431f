"""Reading weights: safetensors only, strict, by slice."""

from sd3par.weights.fill import Checkpoint, Component, fill
from sd3par.weights.model_files import ModelFiles, open_model, open_transformer

__all__ = ["Checkpoint", "Component", "ModelFiles", "fill", "open_model", "open_transformer"]

"""Reading weights: safetensors only, strict, by slice."""

from sd3par.weights.fill import Checkpoint, Component, fill

__all__ = ["Checkpoint", "Component", "fill"]

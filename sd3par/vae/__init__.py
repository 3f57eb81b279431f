"""The autoencoder between images and latents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sd3par.vae.config import VAEConfig

if TYPE_CHECKING:
    from sd3par.vae.autoencoder import VAE

__all__ = ["VAE", "VAEConfig"]


def __getattr__(name: str) -> Any:
    """Imports the model when it is first used: an exported one does without."""
    if name == "VAE":
        return importlib.import_module("sd3par.vae.autoencoder").VAE
    raise AttributeError(f"module 'sd3par.vae' has no attribute {name!r}")

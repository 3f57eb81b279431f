"""The autoencoder between images and latents."""

from sd3par.vae.autoencoder import VAE
from sd3par.vae.config import VAEConfig

__all__ = ["VAE", "VAEConfig"]

"""Encoder, decoder and the two together, with the scale of latents that the denoiser works on."""

from __future__ import annotations

from itertools import pairwise

import paddle
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.captured import Captured, ways
from sd3par.errors import ConfigError
from sd3par.layers import Conv2D, MapLayer
from sd3par.mesh import Mesh
from sd3par.vae.blocks import DownBlock, MidBlock, UpBlock, activated, norm
from sd3par.vae.config import VAEConfig
from sd3par.vae.strips import Strips
from sd3par.weights.fill import Component, fill

# Tensors that only `encode` needs.
ENCODER = ("encoder.*", "quant_conv.*")


class Encoder(nn.Layer):
    """Images to the moments of the posterior, s (`VAEConfig.scale_factor`) pixels to one position."""

    def __init__(self, config: VAEConfig, dtype: str) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = Conv2D(config.in_channels, channels[0], 3, dtype, padding=1)
        last = len(channels) - 1
        widths = enumerate(pairwise((channels[0], *channels)))
        self.down_blocks = nn.LayerList([DownBlock(config, *pair, i == last, dtype) for i, pair in widths])
        self.mid_block = MidBlock(config, dtype)
        self.conv_norm_out = norm(config, channels[-1], dtype)
        self.conv_out = Conv2D(channels[-1], 2 * config.latent_channels, 3, dtype, padding=1)

    def forward(self, x: Tensor, numbers: Tensor | None = None) -> Tensor:
        """x: [B, 3, H, W] -> [B, 2C, H/s, W/s], mean and log-variance; numbers: as the attention wants them."""
        x = self.conv_in(x)  # [B, width 0, H, W]
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x, None, numbers)  # [B, last width, H/s, W/s]
        return self.conv_out(self.conv_norm_out(x, silu=True))


class Decoder(nn.Layer):
    """Latents to images: each layer maps [B, C, H, W], and only norms and attention look beyond 3x3 positions.

    With `strips`, each process works on its rows, and has all of the latents before and of the images behind.
    """

    def __init__(self, config: VAEConfig, dtype: str) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = Conv2D(config.latent_channels, channels[0], 3, dtype, padding=1)
        self.mid_block = MidBlock(config, dtype)
        last = len(channels) - 1
        widths = enumerate(pairwise((channels[0], *channels)))
        self.up_blocks = nn.LayerList([UpBlock(config, *pair, i == last, dtype) for i, pair in widths])
        self.conv_norm_out = norm(config, channels[-1], dtype)
        self.conv_out = Conv2D(channels[-1], config.out_channels, 3, dtype, padding=1)

    def forward(self, x: Tensor, strips: Strips | None = None, numbers: Tensor | None = None) -> Tensor:
        """x: [B, C, H/s, W/s] -> [B, 3, H, W]; numbers: as the attention wants them."""
        halo = strips is not None
        x = self.conv_in(x if strips is None else strips.own(x, halo), halo=halo)  # [B, last width, H/s, W/s]
        x = self.mid_block(x, strips, numbers)  # [B, last width, H/s, W/s]
        for block in self.up_blocks:
            x = block(x, strips)
        x = self.conv_out(activated(self.conv_norm_out, x, strips), halo=halo)  # [B, 3, H, W]
        return x if strips is None else strips.whole(x)


class VAE(MapLayer):
    """diffusers' `AutoencoderKL`, with the denoiser's scale of latents taken care of.

    Its maps are [B, C, H, W]; with channels last, those within are [B, H, W, C].

    Args:
        encoder: whether `encode` is wanted; text-to-image only decodes.
        mesh: the processes that `decode_together`; each holds all weights.
    """

    def __init__(self, config: VAEConfig, dtype: str, encoder: bool = True, mesh: Mesh = Mesh.single()) -> None:
        super().__init__()
        self.config, self.dtype, self.mesh = config, dtype, mesh
        channels = config.latent_channels
        self.encoder = Encoder(config, dtype) if encoder else None
        self.quant_conv = Conv2D(2 * channels, 2 * channels, 1, dtype) if encoder and config.use_quant_conv else None
        self.post_quant_conv = Conv2D(channels, channels, 1, dtype) if config.use_post_quant_conv else None
        self.decoder = Decoder(config, dtype)

    @classmethod
    def load(cls, component: Component, dtype: str, encoder: bool = True, mesh: Mesh = Mesh.single()) -> VAE:
        """Returns the autoencoder of a checkpoint; without `encoder` its tensors are not read.

        Raises:
            ConfigError: a config.json that is wrong or not supported.
            CheckpointError: tensors that do not fit the config.
        """
        model = cls(VAEConfig.parse(component.config, component.where), dtype, encoder, mesh)
        fill(model, component.checkpoint, ignored=() if encoder else ENCODER)
        model.eval()
        if kernels.wants_channels_last(dtype) or mesh.world.size > 1:  # strips lie in one run so, and are known so only
            model.to_channels_last()
        return model

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along height and along width."""
        return self.config.scale_factor

    def to_channels_last(self) -> None:
        """Changes the layout of all maps within; the weights hold their values already."""
        super().to_channels_last()
        for layer in self.sublayers():
            if isinstance(layer, MapLayer):
                layer.to_channels_last()

    def forward(self, latents: Tensor) -> Tensor:
        """The same as `decode`."""
        return self.decode(latents)

    def decode(self, latents: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Returns images [B, 3, H, W] in the model's dtype, -1 to 1 but not clamped.

        Args:
            latents: [B, C, H/s, W/s] at the denoiser's scale, any floating dtype.
            numbers: [B, H/s, W/s] int64, from 0 on, where this is traced; else None.
        """
        return self._decode(latents, None, numbers)

    def decode_together(self, latents: Tensor) -> Tensor:
        """The same by all processes of the mesh, which call it with the same latents; each gets all of the images.

        Each makes a strip of rows of every map. With fewer rows of latents than processes, each makes all.
        """
        return self._decode(latents, Strips.cut(self.mesh, latents.shape[2]))

    def decode_each(self, latents: Tensor, captured: Captured | None = None) -> Tensor:
        """The same for many images, one after the other in as little memory as one takes, by calls that are recorded.

        While there is an image for each process, each makes one; the processes make the last ones together.
        """
        alone, together = ways(captured)
        images, world = latents.split(latents.shape[0]), self.mesh.world
        share = len(images) // world.size if world.size > 1 else 0
        made = [alone(self.decode, one) for one in images[world.rank * share : (world.rank + 1) * share]]
        if made:
            made = [self.mesh.all_gather(world, paddle.concat(made)).flatten(0, 1)]
        made += [together(self.decode_together, one) for one in images[world.size * share :]]
        return paddle.concat(made)

    def _decode(self, latents: Tensor, strips: Strips | None, numbers: Tensor | None = None) -> Tensor:
        """latents: [B, C, H/s, W/s] -> [B, 3, H, W]."""
        z = latents.astype("float32") / self.config.scaling_factor + self.config.shift
        z = self._inner(z.astype(self.dtype))  # [B, C, H/s, W/s]
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self._outer(self.decoder(z, strips, numbers))

    def encode(self, images: Tensor, noise: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        """Returns latents [B, C, H/s, W/s] at the denoiser's scale, fp32.

        Args:
            images: [B, 3, H, W] from -1 to 1, any floating dtype; H and W are multiples of s.
            noise: [B, C, H/s, W/s] standard normal, for a sample of the posterior; None for its mean.
            numbers: [B, H/s, W/s] int64, from 0 on, where this is traced; else None.

        Raises:
            ConfigError: this autoencoder was made without its encoder.
        """
        if self.encoder is None:
            raise ConfigError("encoder", False, "True: this autoencoder was made to decode only")
        moments = self.encoder(self._inner(images.astype(self.dtype)), numbers)  # [B, 2C, H/s, W/s]
        moments = self._outer(moments if self.quant_conv is None else self.quant_conv(moments))
        z, log_variance = moments.astype("float32").chunk(2, axis=1)  # [B, C, H/s, W/s] each
        if noise is not None:
            # The limits are those of diffusers' DiagonalGaussianDistribution.
            z = z + paddle.exp(0.5 * log_variance.clip(-30.0, 20.0)) * noise.astype("float32")
        return (z - self.config.shift) * self.config.scaling_factor

    def _inner(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> the same map as the layers take it."""
        return x.transpose([0, 2, 3, 1]).contiguous() if self.channels_last else x

    def _outer(self, x: Tensor) -> Tensor:
        """x: a map as the layers give it -> [B, C, H, W]."""
        return x.transpose([0, 3, 1, 2]) if self.channels_last else x

"""What is traced: each layer becomes one program, whose inputs are tensors alone and whose lengths are all open.

The forwards of the model run as they are: nothing below `forward` is rewritten by Paddle, a length that is not known is
-1, and code that would compute with it is not called.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from sd3par import kernels
from sd3par.conditions import Conditions, Layout
from sd3par.embeddings import frequencies, sinusoids
from sd3par.mmdit import MMDiT
from sd3par.static.exchange import Numbers
from sd3par.static.mesh import TracedMesh
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.vae import VAE


class Part(nn.Layer):
    """A part of a model that becomes a program.

    inputs: what it takes, in order. unread: collectives whose results nothing reads; Paddle leaves them out.
    """

    inputs: list[InputSpec]

    def __init__(self) -> None:
        super().__init__()
        self.unread: Counter[str] = Counter()

    def forward(self, inputs: list[Tensor]) -> Any:
        """inputs: as `self.inputs` says -> a tensor or several."""
        return self.run(*inputs)

    def run(self, *inputs: Tensor) -> Any:
        """The same, not rewritten."""
        raise NotImplementedError


def _input(name: str, shape: list[int | None], dtype: str) -> InputSpec:
    return InputSpec(shape, dtype, name)


class Prepare(Part):
    """What no step changes: text tokens, positions and all steps' modulations."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self.model, config = model, model.config
        waves = paddle.to_tensor(frequencies())
        waves.name = "frequencies"  # not a number of this process's
        self.register_buffer("frequencies", waves)
        self.inputs = [
            _input("context", [None, None, config.joint_attention_dim], model.dtype),
            _input("timesteps", [None, None], "float32"),
            _input("pooled", [None, config.pooled_projection_dim], model.dtype),
            _input("places", [None], "int64"),
        ]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """context: [R, tc, J], timesteps: [N, R] fp32, pooled: [R, P], places: [ti] int64 in the table of positions.

        Returns the context [R, tc, D], positions [ti, D] fp32 and modulations [N, R, k, D].
        """
        context, timesteps, pooled, places = inputs
        model = self.model
        temb = model.time_text_embed.embed(sinusoids(timesteps, self.frequencies), pooled)
        positions = paddle.index_select(model.pos_embed.pos_embed, places, axis=1).squeeze(0)
        return model.context_embedder(context), positions, model.modulated(temb)


class Step(Part):
    """One denoising step: prediction, guidance, Euler."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self.model, config, dtype = model, model.config, model.dtype
        self.inputs = [
            _input("tokens", [None, None, config.patch_size**2 * config.in_channels], "float32"),
            _input("context", [None, None, config.dim], dtype),
            _input("positions", [None, config.dim], "float32"),
            _input("modulations", [1, None, model.modulation_count, config.dim], dtype),
            _input("guidance_scale", [], "float32"),
            _input("delta", [], "float32"),
            *(_input(name, [None], "int64") for name in ("image_of", "uncond", "cond")),
        ]
        if model.mesh.sp.size > 1:
            assert isinstance(model.mesh, TracedMesh)
            self.unread["all_gather" if model.mesh.cpu else "all_to_all"] = 1  # text tokens' last way back
            self.inputs += [_input(name, [None, None], "int64") for name in ("join_image", "join_context")]
            shape = [model.mesh.sp.size, None, None]
            self.inputs += [_input(name, shape, "int64") for name in ("split_image", "split_context")]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> Tensor:
        """Tokens [B', ti, W] fp32 of this rank -> the same after the step.

        inputs: tokens; context: [R, tc, D], positions: [ti, D] fp32 and the step's modulations [1, R, k, D], as
        `Prepare` gives them; guidance_scale and delta: [] fp32; image_of: [R] int64, the image of each row; uncond and
        cond: [B'] int64, the rows of each image's predictions among those of all dp ranks (the same, without guidance:
        then the scale has no effect). Under sp also the `Numbers` of both streams.
        """
        tokens, context, positions, modulations, scale, delta, image_of, uncond, cond, *rest = inputs
        join_image, join_context, split_image, split_context = rest or [None] * 4
        layout: Any = Layout(Numbers(join_image, split_image), Numbers(join_context, split_context))  # type: ignore[arg-type]
        rows = paddle.index_select(tokens, image_of)  # [R, ti, W]
        prediction = self.model.step(rows, Conditions(context, positions, modulations, layout), 0)
        mesh = self.model.mesh
        if mesh.dp.size > 1:
            prediction = mesh.all_gather(mesh.dp, prediction).flatten(0, 1)  # [dp * R, ti, W]
        first, second = (paddle.index_select(prediction, one) for one in (uncond, cond))
        return kernels.guidance_euler(tokens, first, second, scale, delta)


class ClipText(Part):
    """A CLIP text encoder."""

    def __init__(self, encoder: CLIPTextEncoder, length: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.inputs = [_input("ids", [None, length], "int64"), _input("numbers", [None], "int64")]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """ids: [R, L] int64, numbers: [R] int64, from 0 on -> hidden [R, L, width], pooled [R, projection]."""
        return self.encoder.encode(*inputs)


class T5Text(Part):
    """T5, or a rank's part of it."""

    def __init__(self, encoder: T5Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.inputs = [_input("ids", [None, None], "int64"), _input("buckets", [None, None], "int64")]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> Tensor:
        """ids: [R, L] int64, buckets: [L, L] int64 of distances -> [R, L, d_model]."""
        return self.encoder.encode(*inputs)


class Decode(Part):
    """The decoder of an autoencoder."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        latents = _input("latents", [None, vae.config.latent_channels, None, None], "float32")
        self.inputs = [latents, _input("numbers", [None, None, None], "int64")]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> Tensor:
        """latents: [B, C, h, w] fp32, numbers: [B, h, w] int64, from 0 on -> [B, 3, H, W], -1 to 1."""
        return self.vae.decode(*inputs)


class Encode(Part):
    """The encoder of an autoencoder, for image-to-image."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        self.inputs = [
            _input("images", [None, 3, None, None], "float32"),
            _input("noise", [None, vae.config.latent_channels, None, None], "float32"),
            _input("numbers", [None, None, None], "int64"),
        ]

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> Tensor:
        """images: [1, 3, H, W] fp32, noise: [B, C, h, w] fp32, numbers: [1, h, w] int64 -> latents [B, C, h, w]."""
        return self.vae.encode(*inputs)

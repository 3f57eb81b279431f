"""What a request may bring besides numbers and texts, and the checks at the door that need no weights."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from sd3par.config import GenerationRequest, ModelConfig, ParallelConfig, parse_config, require
from sd3par.errors import ConfigError
from sd3par.images import load_image
from sd3par.plan import Rows, rows_for
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.text import TextStates
from sd3par.vae import VAEConfig
from sd3par.weights import ModelFiles

ENCODERS = ("", "_2", "_3")  # how the fields of a request end that CLIP-L, CLIP-G and T5 read


@dataclass(frozen=True)
class PromptEmbeds:
    """Text states of n prompts from outside; the negative ones may be left to the text encoders."""

    prompt: Tensor  # [n, Tc, J]
    pooled: Tensor  # [n, P]
    negative: Tensor | None = None  # [n, Tc, J]
    negative_pooled: Tensor | None = None  # [n, P]

    @classmethod
    def of(cls, prompt: Any, pooled: Any, negative: Any, negative_pooled: Any) -> PromptEmbeds | None:
        """Returns the four arguments of diffusers' pipeline as one value, None if none was given.

        Raises:
            ConfigError: one of a pair is missing, or something is not an array of finite numbers.
        """
        names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
        given = (prompt, pooled, negative, negative_pooled)
        arrays = [_array(name, value) for name, value in zip(names, given, strict=True)]
        if all(array is None for array in arrays):
            return None
        for first, second in ((0, 1), (1, 0), (2, 3), (3, 2)):
            both = arrays[first] is None or arrays[second] is not None
            require(both, names[second], None, f"an array: {names[first]} is given")
        require(arrays[0] is not None, names[0], None, f"an array: {names[2]} is given")
        return cls(*arrays)  # type: ignore[arg-type]

    def check(self, request: GenerationRequest, model: ModelConfig) -> None:
        """Raises ConfigError where the shapes do not fit the model or each other, or prompts are given as well."""
        for name in ("prompt", "prompt_2", "prompt_3"):
            require(getattr(request, name) is None, name, getattr(request, name), "nothing: prompt_embeds are given")
        for name in ("negative_prompt", "negative_prompt_2", "negative_prompt_3"):
            self._check_negative(name, getattr(request, name))
        count, tokens = self.prompt.shape[0], self.prompt.shape[1]
        want = {
            "prompt_embeds": (self.prompt, [count, tokens, model.joint_attention_dim]),
            "pooled_prompt_embeds": (self.pooled, [count, model.pooled_projection_dim]),
            "negative_prompt_embeds": (self.negative, [count, tokens, model.joint_attention_dim]),
            "negative_pooled_prompt_embeds": (self.negative_pooled, [count, model.pooled_projection_dim]),
        }
        for name, (array, shape) in want.items():
            fits = array is None or list(array.shape) == shape
            require(fits, name, f"shape {None if array is None else list(array.shape)}", f"shape {shape}")

    def _check_negative(self, name: str, texts: tuple[str, ...] | None) -> None:
        if texts is not None:
            require(self.negative is None, name, texts, "nothing: negative_prompt_embeds are given")
            count = self.prompt.shape[0]
            require(len(texts) in (1, count), name, f"{len(texts)} texts", f"one, or one for each of {count} embeds")

    def states(self, rows: Rows, per_prompt: int, negative: bool) -> TextStates | None:
        """Returns one row per image of this rank, of one half, or None where that half was not given."""
        context, pooled = (self.negative, self.negative_pooled) if negative else (self.prompt, self.pooled)
        if context is None or pooled is None:
            return None
        index = paddle.to_tensor([image // per_prompt for image in rows.images], dtype="int64")
        return TextStates(context.index_select(index, 0), pooled.index_select(index, 0))


def _array(name: str, value: Any) -> Tensor | None:
    """Returns an array of finite numbers as a tensor."""
    if value is None:
        return None
    try:
        array = value.astype("float32").numpy() if isinstance(value, Tensor) else np.asarray(value)
        if np.iscomplexobj(array):
            raise TypeError
        array = array.astype(np.float32, copy=False)
    except (TypeError, ValueError):
        raise ConfigError(name, type(value).__name__, "a Paddle tensor or numpy array of real numbers") from None
    require(array.ndim >= 2 and array.size > 0, name, f"shape {list(array.shape)}", "at least two axes, none empty")
    require(bool(np.isfinite(array).all()), name, "NaN or infinity", "finite numbers")
    return paddle.to_tensor(array)


@dataclass(frozen=True)
class Start:
    """What the loop begins with where it is not noise: latents [B, C, h, w] fp32, or a picture [1, 3, H, W]."""

    latents: Tensor | None = None
    picture: Tensor | None = None

    def digest(self) -> int | None:
        """Returns a number of 32 bits that tells it from others, None for noise."""
        given = self.picture if self.latents is None else self.latents
        return None if given is None else zlib.crc32(given.numpy())


@dataclass(frozen=True)
class Inputs:
    """image: path, PIL image or [H, W, 3] array. latents: [B, C, h, w] to begin with in place of noise.

    embeds: text states in place of prompts. sigmas: one per step, in place of the scheduler's.
    """

    image: Any = None
    latents: Any = None
    embeds: PromptEmbeds | None = None
    sigmas: Sequence[float] | None = None

    def count(self, request: GenerationRequest) -> int:
        """Returns B, the number of images: prompts times images per prompt."""
        prompts = len(request.prompt or ()) if self.embeds is None else self.embeds.prompt.shape[0]
        return prompts * request.num_images_per_prompt

    def strength(self, request: GenerationRequest) -> float:
        """Returns the part of the schedule that runs: all of it without an image."""
        return 1.0 if self.image is None else request.strength

    def footprint(self, request: GenerationRequest) -> tuple[Hashable, ...]:
        """Returns what else than the latents' shape and the steps decides how much memory a request takes."""
        halves = (False, True) if request.guidance else (False,)
        texts = [len({text for half in halves for text in texts_read(request, half, which)}) for which in ENCODERS]
        return request.guidance, request.max_sequence_length, *texts, self._shape_of_embeds(), self.image is None

    def described(self) -> Hashable:
        """Returns what ranks with the same inputs agree in, but for what the loop begins with.

        Of embeds their shapes alone: the last bits may differ where each rank has computed them.
        """
        sigmas = None if self.sigmas is None else tuple(map(float, self.sigmas))
        return sigmas, self._shape_of_embeds(), self.image is None

    def _shape_of_embeds(self) -> Hashable:
        return None if self.embeds is None else (tuple(self.embeds.prompt.shape), self.embeds.negative is None)

    def start(self, shape: tuple[int, ...], height: int, width: int) -> Start:
        """Opens what was given to begin with.

        Args:
            shape: (B, C, h, w) of the request's latents.
            height: of the picture in pixels, and width; another image is resized.

        Raises:
            ConfigError: latents of another shape or not finite, or an image that cannot be read.
        """
        if self.image is not None:
            return Start(picture=paddle.to_tensor(load_image(self.image, height, width)))
        latents = _array("latents", self.latents)
        if latents is not None:
            require(tuple(latents.shape) == shape, "latents", f"shape {list(latents.shape)}", f"shape {list(shape)}")
        return Start(latents=latents)


def preflight(
    files: ModelFiles, request: GenerationRequest, parallel: ParallelConfig, inputs: Inputs = Inputs()
) -> GenerationRequest:
    """Checks all that needs no weights, alike on every rank; returns the request with the model's size filled in.

    Raises:
        ConfigError, CheckpointError: what is asked for is not possible with this model on this mesh.
    """
    model = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    vae = VAEConfig.parse(files.vae.config, files.vae.where)
    model.check_mesh(parallel)
    request = request.sized(model, vae.scale_factor)
    if inputs.embeds is not None:
        inputs.embeds.check(request, model)
    else:
        require(request.prompt is not None, "prompt", None, "a text, or prompt_embeds and pooled_prompt_embeds")
    _check_encoders(files, request, inputs)
    _check_sigmas(inputs.sigmas)
    require(inputs.image is None or inputs.latents is None, "latents", "an array", "nothing: image is given")
    rows_for(0, parallel.dp, inputs.count(request), request.guidance)
    if files.export is not None:
        files.export.manifest.most.check(request, inputs.count(request))
    config = SchedulerConfig.parse(files.scheduler, "scheduler")
    schedule(config, request.num_inference_steps, inputs.strength(request), inputs.sigmas)
    return request


def _check_encoders(files: ModelFiles, request: GenerationRequest, inputs: Inputs) -> None:
    given = inputs.embeds is not None and (inputs.embeds.negative is not None or not request.guidance)
    if files.text_encoder is None and not given:
        allowed = "prompt_embeds and pooled_prompt_embeds (with guidance the negative ones too)"
        raise ConfigError("prompt", request.prompt, f"{allowed}: {files.name} has no text encoders")
    if inputs.embeds is not None and inputs.embeds.negative is None and request.guidance and files.text_encoder:
        tokens, clip = inputs.embeds.prompt.shape[1], files.text_encoder.config.get("max_position_embeddings", 77)
        allowed = f"{clip} + max_sequence_length tokens, as the negative prompt has, or negative_prompt_embeds"
        require(tokens == clip + request.max_sequence_length, "prompt_embeds", f"{tokens} tokens", allowed)


def _check_sigmas(sigmas: Any) -> None:
    listed = sigmas is None or isinstance(sigmas, (list, tuple, np.ndarray))
    require(listed, "sigmas", sigmas, "a list of numbers, one per step")


def texts_read(request: GenerationRequest, negative: bool, which: str) -> tuple[str, ...]:
    """Returns what one of `ENCODERS` reads, one text for all or one per prompt: its own, else what CLIP-L reads."""
    kind = "negative_prompt" if negative else "prompt"
    return getattr(request, kind + which) or getattr(request, kind) or ("",)


def spread(texts: tuple[str, ...], rows: Rows, per_prompt: int) -> list[str]:
    """Returns the text of each image of this rank, from one text for all or one per prompt."""
    return [texts[0] if len(texts) == 1 else texts[image // per_prompt] for image in rows.images]


def texts(field: str, given: Any) -> tuple[str, ...] | None:
    """Returns one text or several as a tuple; an empty one, but for the prompt, is none, as in diffusers.

    Raises:
        ConfigError: neither.
    """
    if isinstance(given, str) and not given and field != "prompt":
        return None
    if given is None or isinstance(given, (list, tuple)):
        return given if given is None else tuple(given)
    require(isinstance(given, str), field, given, "a text, or a list of texts")
    return (given,)

"""Frozen configurations; every limit is checked once, here, before any weight is read."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sd3par.errors import ConfigError

T = TypeVar("T")
TRANSPORTS = ("auto", "peer", "collective")
MAX_LAYERS = 256  # of a model that is read: the largest SD3 has 38, and thousands would take minutes to be refused

# Written into every config.json by save_pretrained of diffusers, transformers and ppdiffusers; not about the model.
BOOKKEEPING = frozenset(
    {"_class_name", "_diffusers_version", "_ppdiffusers_version", "_name_or_path", "_commit_hash", "architectures",
     "transformers_version", "paddlenlp_version", "torch_dtype", "paddle_dtype", "dtype", "model_type"}
)  # fmt: skip


def parse_config(cls: type[T], values: Mapping[str, Any], where: str, ignored: frozenset[str] = frozenset()) -> T:
    """Returns the frozen dataclass `cls` filled from a config.json's `values`.

    Args:
        values: the parsed JSON object.
        where: the file's path, for messages.
        ignored: keys that may stand there and have no meaning for inference, besides `BOOKKEEPING`.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or what `cls.__post_init__` refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, "a JSON object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)  # type: ignore[arg-type]
    chosen = {}
    for key, value in values.items():
        if key in fields:
            chosen[key] = _typed(f"{where}: {key}", value, hints[key])
        elif key not in ignored and key not in BOOKKEEPING:
            raise ConfigError(f"{where}: {key}", value, f"keys {', '.join(sorted(fields))}")
    missing = [name for name, field in fields.items() if name not in chosen and _required(field)]
    if missing:
        raise ConfigError(f"{where}: {missing[0]}", None, "a value: the key is missing")
    try:
        return cls(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.field}", error.value, error.allowed) from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Returns the types of a class's fields, once: reading the annotations took 1.2 ms of each request's checks."""
    return typing.get_type_hints(cls)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _typed(field: str, value: Any, hint: Any) -> Any:
    """Returns `value` as type `hint` (int, float, bool, str, tuple, or a union with None)."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is tuple and isinstance(value, (list, tuple)):
            return tuple(value)
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kind) and (kind is bool) == isinstance(value, bool):
            return value
    raise ConfigError(field, value, " or ".join(getattr(option, "__name__", str(option)) for option in options))


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises ConfigError(field, value, allowed) unless `condition` holds."""
    if not condition:
        raise ConfigError(field, value, allowed)


@dataclass(frozen=True)
class ParallelConfig:
    """Sizes of the mesh: `dp` splits rows, `mp` splits weights, `sp` splits tokens; `world = dp * mp * sp`.

    transport: how mp and sp ranks hand each other what they compute: "peer", kernels store to the other GPU's memory;
    "collective", NCCL or gloo; "auto", peer where it can be.
    """

    dp: int = 1
    mp: int = 1
    sp: int = 1
    transport: str = "auto"

    def __post_init__(self) -> None:
        for axis in ("dp", "mp", "sp"):
            value = getattr(self, axis)
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            require(whole and 1 <= value <= 1024, f"{axis}_size", value, "a whole number from 1 to 1024")
            object.__setattr__(self, axis, int(value))  # numpy's have other names in messages and files
        require(self.transport in TRANSPORTS, "transport", self.transport, " or ".join(TRANSPORTS))

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.dp * self.mp * self.sp


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an MM-DiT; field names are those of diffusers' `SD3Transformer2DModel` config."""

    sample_size: int
    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    caption_projection_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int):
                require(1 <= value <= 1 << 20, field.name, value, f"a whole number from 1 to {1 << 20}")
        require(self.num_layers <= MAX_LAYERS, "num_layers", self.num_layers, f"1 to {MAX_LAYERS}")
        largest = 1 << 14  # of the square, int32 counts all
        require(self.pos_embed_max_size <= largest, "pos_embed_max_size", self.pos_embed_max_size, f"1 to {largest}")
        require(self.patch_size <= 16, "patch_size", self.patch_size, "1 to 16")
        require(self.qk_norm in (None, "rms_norm"), "qk_norm", self.qk_norm, "null or rms_norm")
        require(self.dim % 4 == 0, "num_attention_heads * attention_head_dim", self.dim, "a multiple of 4")
        caption, allowed = self.caption_projection_dim, f"{self.dim}, num_attention_heads * attention_head_dim"
        require(caption == self.dim, "caption_projection_dim", caption, allowed)
        layers = self.dual_attention_layers
        inside = all(isinstance(i, int) and 0 <= i < self.num_layers for i in layers)
        require(inside, "dual_attention_layers", layers, f"block numbers from 0 to {self.num_layers - 1}")

    @property
    def dim(self) -> int:
        """Hidden size D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def channels_out(self) -> int:
        """Channels of the noise prediction."""
        return self.out_channels or self.in_channels

    def check_batch(self, shapes: Mapping[str, Sequence[int]], dp: int) -> None:
        """Raises ConfigError where the inputs of a whole batch do not fit the model, each other, or dp.

        shapes: of latents [R, C, h, w], context [R, Tc, J], pooled [R, P] and timestep [R].
        """
        latents = list(shapes["latents"])
        require(len(latents) == 4, "latents", f"shape {latents}", "four axes: [rows, channels, height, width]")
        rows, _, height, width = latents
        require(rows >= 1 and rows % dp == 0, "latents", f"{rows} rows", f"a multiple of dp_size {dp}")
        patch, most = self.patch_size, self.patch_size * self.pos_embed_max_size
        for side in (height, width):
            fits = side % patch == 0 and patch <= side <= most
            require(fits, "latents", f"shape {latents}", f"sides that are multiples of {patch} up to {most}")
        tokens = shapes["context"][1] if len(shapes["context"]) == 3 else 1
        want = {
            "latents": [rows, self.in_channels, height, width],
            "context": [rows, max(tokens, 1), self.joint_attention_dim],
            "pooled": [rows, self.pooled_projection_dim],
            "timestep": [rows],
        }
        for name, shape in want.items():
            require(list(shapes[name]) == shape, name, f"shape {list(shapes[name])}", f"shape {shape}")

    def check_mesh(self, parallel: ParallelConfig) -> None:
        """Raises ConfigError unless each of `mp * sp` ranks gets a head."""
        parts, heads = parallel.mp * parallel.sp, self.num_attention_heads
        allowed = f"at most {heads}, the model's attention heads"
        require(parts <= heads, "mp_size * sp_size", f"{parallel.mp} * {parallel.sp} = {parts}", allowed)


# Limits that do not depend on the model. A prompt beyond 16 kB is a mistake: T5 reads 512 tokens at most.
MAX_STEPS, MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT_BYTES, MAX_SEED = 1000, 100.0, 64, 16_384, 2**63 - 1
RANK_TIMEOUTS_S = 2.0, 3600.0  # the shortest and the longest silence of a rank that may be allowed


@dataclass(frozen=True)
class GenerationRequest:
    """What one call of the pipeline renders; names and defaults are those of diffusers' `StableDiffusion3Pipeline`.

    prompt and the other texts: one per prompt (a tuple), or None where `prompt_embeds` are given. prompt_2 and prompt_3
    go to CLIP-G and T5 (default: prompt). height, width: pixels, None for the model's own size. Image i of a request
    draws its noise from `seed + i`.
    """

    prompt: tuple[str, ...] | None
    prompt_2: tuple[str, ...] | None = None
    prompt_3: tuple[str, ...] | None = None
    negative_prompt: tuple[str, ...] | None = None
    negative_prompt_2: tuple[str, ...] | None = None
    negative_prompt_3: tuple[str, ...] | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 28
    guidance_scale: float = 7.0
    num_images_per_prompt: int = 1
    seed: int = 0
    strength: float = 0.6
    max_sequence_length: int = 256

    def __post_init__(self) -> None:
        _check_whole("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_whole("num_images_per_prompt", self.num_images_per_prompt, 1, MAX_IMAGES)
        _check_whole("seed", self.seed, 0, MAX_SEED)
        _check_whole("max_sequence_length", self.max_sequence_length, 1, 512)
        check_number("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        check_number("strength", self.strength, 0.0, 1.0)
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1, 1 << 16)
        self._check_texts()
        images = self.num_images_per_prompt * (1 if self.prompt is None else len(self.prompt))
        most = MAX_SEED + 1 - images
        require(self.seed <= most, "seed", self.seed, f"at most {most}, for the last picture's to be in range")
        self._plain_numbers()

    def _plain_numbers(self) -> None:
        """numpy's numbers are as good as Python's, but JSON does not know them."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, numbers.Integral):
                object.__setattr__(self, field.name, int(value))
            elif isinstance(value, numbers.Real):
                object.__setattr__(self, field.name, float(value))

    def _check_texts(self) -> None:
        count = None if self.prompt is None else len(self.prompt)
        require(count is None or 1 <= count <= MAX_IMAGES, "prompt", f"{count} prompts", f"1 to {MAX_IMAGES} prompts")
        for name in ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3"):
            for text in getattr(self, name) or ():
                _check_text(name, text)
            given = getattr(self, name)
            require(
                given is None or count is None or len(given) in (1, count), name, f"{len(given or ())} texts",
                f"one, or one for each of the {count} prompt(s)",
            )  # fmt: skip

    @property
    def guidance(self) -> bool:
        """Whether unconditional rows are rendered too (diffusers: guidance_scale > 1)."""
        return self.guidance_scale > 1.0

    def sized(self, model: ModelConfig, scale: int = 8) -> GenerationRequest:
        """Returns the request with height and width filled in and checked for `model`.

        Args:
            scale: pixels per latent pixel of the VAE, on each side.

        Raises:
            ConfigError: a side that is not a multiple of the patch in pixels, or larger than the position table.
        """
        own, step = model.sample_size * scale, model.patch_size * scale
        largest = model.pos_embed_max_size * step
        height, width = self.height or own, self.width or own
        for name, side in (("height", height), ("width", width)):
            require(side % step == 0 and side <= largest, name, side, f"multiples of {step} from {step} to {largest}")
        return dataclasses.replace(self, height=height, width=width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, of a request that is `sized`."""
        if self.height is None or self.width is None:
            raise ConfigError("height", self.height, "a sized request: GenerationRequest.sized(model)")
        return self.height, self.width


def _check_whole(field: str, value: object, low: int, high: int) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(whole and low <= value <= high, field, value, f"a whole number from {low} to {high}")  # type: ignore[operator]


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raises ConfigError unless a value is a number within these limits."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    require(number and low <= value <= high, field, value, f"a number from {low:g} to {high:g}")  # type: ignore[operator]


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str):
        raise ConfigError(field, text, "text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ConfigError(field, text, "text that UTF-8 can encode (no lone surrogates)") from None
    require(size <= MAX_PROMPT_BYTES, field, f"{size} bytes", f"at most {MAX_PROMPT_BYTES} bytes of UTF-8")

"""Every operator that programs for GPUs hold: a function of `kernels`, as the model calls it, and sizes for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor
from paddle.static import InputSpec

import sd3par
import tests
from sd3par import kernels
from sd3par.config import ModelConfig
from sd3par.kernels import Stream
from sd3par.kernels.static import Maps

DIM, HEADS, HEAD_DIM, PATCH, CHANNELS = 1536, 24, 64, 2, 16
MODEL = ModelConfig(
    sample_size=128, num_layers=3, attention_head_dim=HEAD_DIM, num_attention_heads=HEADS, joint_attention_dim=4096,
    caption_projection_dim=DIM, pooled_projection_dim=2048, pos_embed_max_size=192, patch_size=PATCH,
    in_channels=CHANNELS, dual_attention_layers=(0,), qk_norm="rms_norm",
)  # fmt: skip
MAPS = Maps(groups=32, epsilon=1e-6, channels=(256,), outputs=(3,))
# R rows, T image tokens, C text tokens, H x W a map: pictures of 1024 x 1024, 512 x 512 and 528 x 272.
SIZES = ({"R": 2, "T": 4096, "C": 333, "H": 256, "W": 256}, {"R": 2, "T": 1024, "C": 154, "H": 64, "W": 64},
         {"R": 3, "T": 561, "C": 77, "H": 33, "W": 165})  # fmt: skip


def untranslated() -> None:
    """Lets Paddle trace our functions as they are, in this process. It searches all that is named, hence packages."""
    paddle.jit.ignore_module([sd3par, kernels, tests])


class Case(NamedTuple):
    """A function of tensors, its operator's kernel, and of each tensor a dtype ("half" or "float32") and a shape.

    Sides of a shape are numbers, or letters of SIZES that a program leaves open.
    """

    name: str
    function: Callable[..., list[Tensor]]
    given: dict[str, tuple[str, tuple[int | str, ...]]]


IMAGE, TEXT = ("half", ("R", "T", DIM)), ("half", ("R", "C", DIM))
MODS = ("half", (1, "R", 17, DIM))
PACKED, PACKED_TEXT = ("half", ("R", "T", 3 * DIM)), ("half", ("R", "C", 3 * DIM))
LATENTS, PREDICTION = ("float32", ("R", "T", 64)), ("half", ("R", "T", 64))
MAP = ("half", ("R", "H", "W", 256))
NUMBER, NORM = ("float32", ()), ("half", (HEAD_DIM,))


def _flat(results: list[tuple[Tensor, ...]], first: int) -> list[Tensor]:
    return [x for stream in results for x in stream[first:]]


def _norms(image: Tensor, text: Tensor, mods: Tensor) -> list[Tensor]:
    """As the first block begins: no branch yet, so x itself comes back."""
    shift, scale, *_ = mods[0, :, :6].unbind(1)
    shift_c, scale_c, *_ = mods[0, :, 6:12].unbind(1)
    streams = [Stream(image, None, None, ((scale, shift),)), Stream(text, None, None, ((scale_c, shift_c),))]
    return _flat(kernels.adaln(streams), 1)


def _norms_of_sums(image: Tensor, text: Tensor, x: Tensor, c: Tensor, mods: Tensor) -> list[Tensor]:
    _, _, gate, shift, scale, _ = mods[0, :, 5:11].unbind(1)
    scale_c, shift_c = mods[0, :, 15:].unbind(1)
    return _flat(
        kernels.adaln([Stream(image, x, gate, ((scale, shift),)), Stream(text, c, gate, ((scale_c, shift_c),))]), 0
    )


def _norm_of_a_sum(image: Tensor, x: Tensor, mods: Tensor) -> list[Tensor]:
    shift, scale, gate = mods[0, :, :3].unbind(1)
    return _flat(kernels.adaln([Stream(image, x, gate, ((scale, shift),))]), 0)


def _two_norms(image: Tensor, text: Tensor, mods: Tensor) -> list[Tensor]:
    shift, scale, _, shift2, scale2 = mods[0, :, :5].unbind(1)
    both = ((scale, shift), (scale2, shift2))
    return _flat(kernels.adaln([Stream(image, None, None, both), Stream(text, None, None, both[:1])]), 1)


def _two_norms_of_sums(image: Tensor, text: Tensor, x: Tensor, c: Tensor, mods: Tensor, other: Tensor) -> list[Tensor]:
    """Vectors of two tensors, one of which is no slice."""
    shift, scale, gate, shift2, scale2 = mods[0, :, 4:9].unbind(1)
    both = ((scale, shift), (scale2, shift2))
    return _flat(kernels.adaln([Stream(image, x, gate, both), Stream(text, c, other, both[:1])]), 0)


def _norms_of_gated(image: Tensor, text: Tensor, x: Tensor, c: Tensor, mods: Tensor) -> list[Tensor]:
    shift, scale, gate = mods[0, :, 1:4].unbind(1)
    return _flat(
        kernels.adaln([Stream(image, x, None, ((scale, shift),)), Stream(text, c, gate, ((scale, shift),))]), 0
    )


def _attention(image: Tensor, text: Tensor) -> list[Tensor]:
    return kernels.attention([kernels.split_heads(x, HEAD_DIM, None, None) for x in (image, text)])


def _attention_alone(image: Tensor) -> list[Tensor]:
    return kernels.attention([kernels.split_heads(image, HEAD_DIM, None, None)])


def _normed_heads(image: Tensor, norm_q: Tensor, norm_k: Tensor) -> list[Tensor]:
    return [kernels.split_heads(image, HEAD_DIM, norm_q, norm_k)]


def _gated_sum(x: Tensor, x2: Tensor, mods: Tensor) -> list[Tensor]:
    *_, gate, gate2 = mods[0, :, :9].unbind(1)
    return [kernels.gated_sum(x, gate, x2, gate2)]


def _rows(x: Tensor) -> int:
    """Of x: [R, ...]: in a function that Paddle does not translate, as the model's, -1."""
    return int(x.shape[0])


def _patch_embed(latents: Tensor, weight: Tensor, bias: Tensor, positions: Tensor) -> list[Tensor]:
    return [kernels.patch_embed(latents, weight, bias, positions, _rows(latents))]


def _guided(latents: Tensor, uncond: Tensor, cond: Tensor, scale: Tensor, delta: Tensor) -> list[Tensor]:
    return [kernels.guidance_euler(latents, uncond, cond, scale, delta)]


def _unguided(latents: Tensor, cond: Tensor, delta: Tensor) -> list[Tensor]:
    return [kernels.guidance_euler(latents, None, cond, 1.0, delta)]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [kernels.linear(x, weight, bias), kernels.linear_gelu(x, weight, bias)]


def _convolutions(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    plain = kernels.conv3x3(x, weight, bias, None)
    return [plain, kernels.conv3x3(x, weight, bias, plain)]


def _last_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [kernels.conv3x3(x, weight, bias, None)]


def _enlarged(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [kernels.upsample_conv3x3(x, weight, bias)]


def _map_norm(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [kernels.group_norm_silu(x, MAPS.groups, weight, bias, MAPS.epsilon, False)]


def _map_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [kernels.group_norm_silu(x, MAPS.groups, weight, bias, MAPS.epsilon, True)]


def _linear_pair(x: Tensor, weight: Tensor, bias: Tensor, c: Tensor, weight_c: Tensor, bias_c: Tensor) -> list[Tensor]:
    return kernels.linears([kernels.Product(x, weight, bias), kernels.Product(c, weight_c, bias_c)])


def _gelu_pair(x: Tensor, weight: Tensor, bias: Tensor, c: Tensor, weight_c: Tensor, bias_c: Tensor) -> list[Tensor]:
    return kernels.linears([kernels.Product(x, weight, bias), kernels.Product(c, weight_c, bias_c)], gelu=True)


PAIR = {
    "x": IMAGE, "weight": ("half", (DIM, 1536)), "bias": ("half", (1536,)),
    "c": TEXT, "weight_c": ("half", (DIM, 1536)), "bias_c": ("half", (1536,)),
}  # fmt: skip
CASES = (
    Case("norms", _norms, {"image": IMAGE, "text": TEXT, "mods": MODS}),
    Case("norms of sums", _norms_of_sums, {"image": IMAGE, "text": TEXT, "x": IMAGE, "c": TEXT, "mods": MODS}),
    Case("norm of a sum", _norm_of_a_sum, {"image": IMAGE, "x": IMAGE, "mods": MODS}),
    Case("two norms", _two_norms, {"image": IMAGE, "text": TEXT, "mods": MODS}),
    Case("two norms of sums", _two_norms_of_sums,
         {"image": IMAGE, "text": TEXT, "x": IMAGE, "c": TEXT, "mods": MODS, "other": ("half", ("R", DIM))}),
    Case("norms of gated sums", _norms_of_gated, {"image": IMAGE, "text": TEXT, "x": IMAGE, "c": TEXT, "mods": MODS}),
    Case("attention", _attention, {"image": PACKED, "text": PACKED_TEXT}),
    Case("attention alone", _attention_alone, {"image": PACKED}),
    Case("normed heads", _normed_heads, {"image": PACKED, "norm_q": NORM, "norm_k": NORM}),
    Case("gated sum", _gated_sum, {"x": IMAGE, "x2": IMAGE, "mods": MODS}),
    Case("patch embedding", _patch_embed,
         {"latents": LATENTS, "weight": ("half", (DIM, CHANNELS, PATCH, PATCH)), "bias": ("half", (DIM,)),
          "positions": ("float32", ("T", DIM))}),
    Case("guidance", _guided,
         {"latents": LATENTS, "uncond": PREDICTION, "cond": PREDICTION, "scale": NUMBER, "delta": NUMBER}),
    Case("no guidance", _unguided, {"latents": LATENTS, "cond": PREDICTION, "delta": NUMBER}),
    Case("convolutions", _convolutions,
         {"x": ("half", ("R", "H", "W", 256)), "weight": ("half", (256, 3, 3, 256)), "bias": ("half", (256,))}),
    Case("last convolution", _last_convolution,
         {"x": ("half", ("R", "H", "W", 256)), "weight": ("half", (3, 3, 3, 256)), "bias": ("half", (3,))}),
    Case("enlarged", _enlarged,
         {"x": ("half", ("R", "H", "W", 256)), "weight": ("half", (4, 256, 2, 2, 256)), "bias": ("half", (256,))}),
    Case("norm of a map", _map_norm, {"x": MAP, "weight": ("half", (256,)), "bias": ("half", (256,))}),
    Case("SiLU of a norm", _map_norm_silu, {"x": MAP, "weight": ("half", (256,)), "bias": ("half", (256,))}),
    Case("two linears", _linear_pair, PAIR),
    Case("two linears with a GELU", _gelu_pair, PAIR),
    Case("linear", _linear, {"x": IMAGE, "weight": ("half", (DIM, 512)), "bias": ("half", (512,))}),
)  # fmt: skip


def save(case: Case, path: Path, dtype: str) -> None:
    """Writes the case's program to `path`, without an ending."""
    specs = [
        InputSpec([side if isinstance(side, int) else None for side in shape], dtype if kind == "half" else kind, name)
        for name, (kind, shape) in case.given.items()
    ]
    traced = paddle.jit.to_static(case.function, full_graph=True, input_spec=specs)
    paddle.jit.save(traced, str(path))


def zeros(case: Case, sizes: dict[str, int], dtype: str) -> list[Tensor]:
    """Returns tensors of these sizes on the current device."""
    kinds = [(dtype if kind == "half" else kind, shape) for kind, shape in case.given.values()]
    return [paddle.zeros(_sides(shape, sizes), kind) for kind, shape in kinds]


def inputs(case: Case, sizes: dict[str, int], dtype: str) -> list[Tensor]:
    """The same with Gaussian numbers, which are the same in every process."""
    made = []
    for number, like in enumerate(zeros(case, sizes, dtype)):
        values = np.random.default_rng(number).standard_normal(like.shape, dtype=np.float32)
        made.append(paddle.to_tensor(values).astype(like.dtype))
    return made


def _sides(shape: tuple[int | str, ...], sizes: dict[str, int]) -> list[int]:
    return [side if isinstance(side, int) else sizes[side] for side in shape]

"""Every kernel on a GPU, against fp64 on the CPU and beside the plain-Paddle reference in the same dtype.

`check(device)` yields rows; a kernel is right if its error is at most that of the reference, with a little room.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Device, Event
from sd3par.kernels import attention, gated_sum
from sd3par.kernels.adaln import Stream, adaln_reference, adaln_triton
from sd3par.kernels.attention import Tiles, attention_reference, attention_triton, query_scale
from sd3par.kernels.attention_hopper import attention_hopper, fits
from sd3par.kernels.gated_sum import gated_sum_reference
from sd3par.kernels.group_norm_silu import group_norm_silu_reference, group_norm_silu_triton
from sd3par.kernels.guidance_euler import guidance_euler_reference, guidance_euler_triton
from sd3par.kernels.linear import (
    fuses,
    fuses_gelu,
    linear_fused,
    linear_gelu_fused,
    linear_gelu_reference,
    linear_reference,
)
from sd3par.kernels.patch_embed import patch_embed_reference, patch_embed_triton
from sd3par.kernels.qkv import split_heads_reference, split_heads_triton
from tests.kernels.gpu_attention import MAIN, SHAPES, case, error, host

UNIT = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-18}  # allowed where the reference does not run
ROOM = 1.05  # times the reference's error, both root mean squares
NORMS = [(2, 4096, 1536), (2, 333, 1536), (2, 4096, 2432), (3, 37, 48), (1, 1, 1536)]
LINEARS = [((2, 4096, 1536), 6144), ((2, 333, 1536), 6144), ((2, 4096, 6144), 1536), ((3, 37, 50), 136),
           ((1, 1, 1536), 1536), ((2, 5, 13), 7)]  # fmt: skip
FP32_SUMS = 4e-6  # allowed in fp32 at least: 6144 products in any order; TF32 would be at 3e-4
SWEEP = [Tiles(128, 64, 4, 3), Tiles(128, 64, 4, 2), Tiles(128, 64, 4, 4), Tiles(128, 128, 8, 2), Tiles(128, 128, 8, 3),
         Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 3), Tiles(64, 128, 4, 2), Tiles(128, 32, 4, 3)]  # fmt: skip
Row = dict[str, Any]


def check(device: Device) -> Iterator[Row]:
    """Yields a row for every kernel, shape and dtype: errors, what is allowed, microseconds of both, and `ok`."""
    device.activate()
    with paddle.no_grad():
        for dtype in ("bfloat16", "float16"):
            yield from _kernels(dtype)
        for dtype in ("bfloat16", "float16", "float32"):
            yield from _linears(dtype)
        yield _captured(device)
        yield _sized("torch stays out of the process", float("torch" in sys.modules), 0.0)


def sweep(device: Device) -> list[Row]:
    """Returns attention's time at the main shape for other ways to cut its work."""
    device.activate()
    rows, tokens, heads, head_dim = MAIN
    segments = [_on_device(_draw(count, rows, count, 3, heads, head_dim), "bfloat16") for count in tokens]
    flops = 4 * rows * heads * sum(tokens) ** 2 * head_dim
    found = []
    for tiles in SWEEP:
        us = time_us(lambda tiles=tiles: attention_triton(segments, tiles=tiles))
        found.append(
            {"kernel": "attention", "tiles": list(tiles), "us": round(us, 1), "tflops": round(flops / us / 1e6)}
        )
    return found


def time_us(call: Callable[[], object], repeats: int = 20) -> float:
    """Returns microseconds a call by events, after three calls that do not count."""
    for _ in range(3):
        call()
    begin, end = Event(), Event()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    return 1e3 * begin.elapsed_ms(end) / repeats


def _kernels(dtype: str) -> Iterator[Row]:
    for shape in SHAPES:
        yield from _attention(dtype, *shape)
    for shape in NORMS:
        yield from _norms(dtype, *shape)
    for shape in [(2, 4096, 24, 64), (2, 333, 24, 64), (1, 5, 38, 64), (1, 3, 5, 24)]:
        yield _split_heads(dtype, *shape)
    for guided in (True, False):
        yield _guidance(dtype, guided)
    for shape in [(1, 4096, 16, 1536, 2), (2, 37, 16, 1536, 4), (3, 50, 5, 200, 3)]:
        yield _patch_embed(dtype, *shape)
    for shape in [(1, 128, 128, 512), (1, 256, 256, 256), (2, 33, 35, 128), (1, 1, 1, 64)]:
        yield _group_norm(dtype, *shape)


def _attention(dtype: str, *shape: Any) -> Iterator[Row]:
    known = case(dtype, *shape)

    def reference() -> list[Tensor]:
        return attention_reference(known.segments)

    kernels: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {"attention": attention_triton}
    if fits(known.segments):
        kernels["attention on Hopper"] = attention_hopper
    for name, kernel in kernels.items():
        yield _row(
            name, known.name, dtype, known.want, lambda kernel=kernel: kernel(known.segments), reference, known.chosen
        )  # fmt: skip


def _norms(dtype: str, rows: int, tokens: int, dim: int) -> Iterator[Row]:
    """x is half of a longer buffer and the modulations are slices of one, as the model has them."""
    buffer = _on_device(_draw(1, rows, tokens + 3, dim) + 2.0, dtype)
    x, branch = buffer[:, :tokens], _on_device(_draw(2, rows, tokens, dim), dtype)
    mods = _on_device(_draw(3, rows, 6, dim), dtype)
    shift, scale, gate, *_ = mods.unbind(1)
    x64, branch64 = host(buffer)[:, :tokens], host(branch)
    shift64, scale64, gate64, *_ = (host(mods)[:, i : i + 1] for i in range(6))
    sum64 = x64 + gate64 * branch64
    normed, half = _norm(sum64) * (1 + scale64) + shift64, -(-tokens // 2)
    plain64, once, twice = x64 + branch64, ((scale, shift),), ((scale, shift), (shift, gate))
    first, second = (_norm(plain64) * (1 + one) + other for one, other in ((scale64, shift64), (shift64, gate64)))
    cases = {
        "adaln": ([Stream(x, None, None, once)], [x64, _norm(x64) * (1 + scale64) + shift64]),
        "adaln, gated": ([Stream(x, branch, gate, once)], [sum64, normed]),
        "adaln, gated, and a shorter stream": (
            [Stream(x, branch, gate, once), Stream(branch[:, :half], x[:, :half], None, twice[1:])],
            [sum64, normed, plain64[:, :half], second[:, :half]],
        ),
        "adaln, gated already, twice": ([Stream(x, branch, None, twice)], [plain64, first, second]),
    }
    name = f"rows {rows} tokens {tokens} dim {dim}"
    for kernel, (streams, want) in cases.items():
        yield _row(
            kernel, name, dtype, np.concatenate(want, 1), lambda streams=streams: adaln_triton(streams),
            lambda streams=streams: adaln_reference(streams), _all,
        )  # fmt: skip
    yield _row(
        "gated_sum", name, dtype, gate64 * x64 + scale64 * branch64,
        lambda: gated_sum(x.clone(), gate, branch, scale), lambda: gated_sum_reference(x, gate, branch, scale),
        host,
    )  # fmt: skip


def _norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def _all(outputs: list[tuple[Tensor, ...]]) -> np.ndarray:
    return np.concatenate([host(one) for stream in outputs for one in stream], 1)


def _split_heads(dtype: str, rows: int, tokens: int, heads: int, dim: int) -> Row:
    """The kernel works in place: what is timed are norms of norms."""
    packed = _on_device(_draw(4, rows, tokens, 3 * heads * dim), dtype)
    norms = _on_device(1.0 + 0.3 * _draw(5, 2, dim), dtype)
    want, weights = host(packed).reshape(rows, tokens, 3, heads, dim), host(norms)
    weights[0] *= query_scale(dim)
    for part in range(2):
        x = want[:, :, part]
        want[:, :, part] = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weights[part]
    return _row(
        "split_heads", f"rows {rows} tokens {tokens} heads {heads}x{dim}", dtype, want,
        lambda: split_heads_triton(packed, dim, norms[0], norms[1]),
        lambda: split_heads_reference(packed, dim, norms[0], norms[1]), host,
    )  # fmt: skip


def _patch_embed(dtype: str, images: int, tokens: int, channels: int, dim: int, rows: int) -> Row:
    latents = _on_device(_draw(20, images, tokens, 4 * channels), "float32")
    weight = _on_device(_draw(21, dim, channels, 2, 2) * (4 * channels) ** -0.5, dtype)
    bias, positions = _on_device(_draw(22, dim), dtype), _on_device(_draw(23, tokens, dim), "float32")
    patches = host(latents.astype(dtype)).reshape(images, tokens, 2, 2, channels)
    want = np.einsum("btpqc,dcpq->btd", patches, host(weight)) + host(bias) + host(positions)
    arguments = (latents, weight, bias, positions, rows)
    return _row(
        "patch_embed", f"images {images} tokens {tokens} channels {channels} dim {dim} rows {rows}", dtype,
        np.concatenate([want] * (rows // images)), lambda: patch_embed_triton(*arguments),
        lambda: patch_embed_reference(*arguments), host,
    )  # fmt: skip


def _group_norm(dtype: str, *shape: int) -> Row:
    """Means of four deviations, unlike from group to group."""
    x = _on_device(_draw(24, *shape) * 0.5 + 2.0 * np.sin(np.arange(shape[-1], dtype=np.float32)), dtype)
    weight, bias = (_on_device(_draw(seed, shape[-1]), dtype) for seed in (25, 26))
    parts = host(x).reshape(shape[0], -1, 32, shape[-1] // 32)
    centred = parts - parts.mean((1, 3), keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(shape)
    y = normed * host(weight) + host(bias)
    arguments = (x, 32, weight, bias, 1e-6, True)
    return _row(
        "group_norm_silu", f"{list(shape)}", dtype, y / (1 + np.exp(-y)),
        lambda: group_norm_silu_triton(*arguments), lambda: group_norm_silu_reference(*arguments), host,
    )  # fmt: skip


def _guidance(dtype: str, guided: bool) -> Row:
    latents = _on_device(_draw(6, 1, 4096, 64), "float32")
    cond, uncond = (_on_device(_draw(seed, 1, 4096, 64), dtype) for seed in (7, 8))
    delta = paddle.to_tensor(np.float32([0.5, -0.0371, 0.25]))[1]
    prediction = host(uncond) + 7.0 * (host(cond) - host(uncond)) if guided else host(cond)
    want = host(latents) + host(delta) * prediction
    arguments = (latents, uncond if guided else None, cond, 7.0, delta)  # latents are written after the reference ran
    return _row(
        "guidance_euler", "guided" if guided else "unguided", dtype, want,
        lambda: guidance_euler_triton(*arguments), lambda: guidance_euler_reference(*arguments), host,
    )  # fmt: skip


def _linears(dtype: str) -> Iterator[Row]:
    """Where there is a fused product for the dtype: some tokens of each row are compared."""
    for shape, columns in LINEARS:
        x = _on_device(_draw(14, *shape), dtype)
        if fuses(x):
            yield from _linear(x, columns, f"{list(shape)} x [{shape[-1]}, {columns}]", dtype)


def _linear(x: Tensor, columns: int, name: str, dtype: str) -> Iterator[Row]:
    """Weights of about 1 / sqrt(in), so that the results lie where GELU bends."""
    width, every = x.shape[-1], -(-x.shape[1] // 40)
    weight = _on_device(_draw(15, width, columns) * width**-0.5, dtype)
    bias = _on_device(_draw(16, columns), dtype)

    def chosen(out: Tensor) -> np.ndarray:
        return host(out)[:, ::every]

    want = chosen(x) @ host(weight) + host(bias)
    least = FP32_SUMS if dtype == "float32" else 1e-7
    yield _row(
        "linear", name, dtype, want,
        lambda: linear_fused(x, weight, bias), lambda: linear_reference(x, weight, bias), chosen, least,
    )  # fmt: skip
    if fuses_gelu(x, weight):
        yield _row(
            "linear_gelu", name, dtype, _gelu(want),
            lambda: linear_gelu_fused(x, weight, bias), lambda: linear_gelu_reference(x, weight, bias), chosen, least,
        )  # fmt: skip


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _row(
    kernel: str, shape: str, dtype: str, want: np.ndarray, ours: Callable[[], Any], reference: Callable[[], Any],
    values: Callable[[Any], np.ndarray], least: float = 1e-7,
) -> Row:  # fmt: skip
    beside: Row = {}
    try:
        allowed = ROOM * error(values(reference()), want) + least
        beside["reference_us"] = time_us(reference, 5)
    except Exception as failure:  # an op that the device lacks says nothing about the kernel
        allowed, beside["reference_failed"] = UNIT[dtype], f"{type(failure).__name__}: {failure}"[:200]
    row = _sized(kernel, error(values(ours()), want), allowed)
    return {**row, "shape": shape, "dtype": dtype, "us": time_us(ours), **beside}


def _sized(kernel: str, error: float, allowed: float) -> Row:
    return {"kernel": kernel, "error": error, "allowed": allowed, "ok": bool(error <= allowed)}


def _captured(device: Device) -> Row:
    """A recorded norm, linear and attention, replayed on new inputs, equal what runs without recording, bit for bit."""
    draws = [_on_device(_draw(seed, 1, 77, 1536), "bfloat16") for seed in (10, 11)]
    x = draws[0].clone()
    mods = _on_device(_draw(12, 1, 2, 1536), "bfloat16")
    weight, bias = (_on_device(_draw(13, *shape) * 0.03, "bfloat16") for shape in ((1536, 4608), (4608,)))

    def function() -> Tensor:
        ((_, normed),) = adaln_triton([Stream(x, None, None, ((mods[:, 0], mods[:, 1]),))])
        return attention([linear_fused(normed, weight, bias).reshape([1, 77, 3, 24, 64])])[0]

    graph = CapturedGraph(device, function)
    differences = []
    for draw in (*draws, draws[0]):
        paddle.assign(draw, x)
        replayed = host(graph())
        differences.append(np.abs(replayed - host(function())).max())
    graph.reset()
    moved = np.abs(host(draws[0]) - host(draws[1])).max() > 0
    return _sized("captured graph of kernels", max(differences) if moved else float("inf"), 0.0)


def _draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _on_device(values: np.ndarray, dtype: str) -> Tensor:
    return paddle.to_tensor(values.astype(np.float32)).astype(dtype)

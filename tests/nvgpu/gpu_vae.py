"""The autoencoder and the text encoders of SD3 on a GPU: right, and how fast. One JSON object a line; 1 if wrong.

    python -m tests.nvgpu.gpu_vae [PART...]

cudnn: PyTorch's convolutions, where it is installed. conv: ours, tiles swept. decode: against fp32, eager and captured,
by stage and by operator. text: each encoder, eager and captured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par import device, kernels
from sd3par.captured import EAGER_CALLS, Captured
from sd3par.device import Device, Event
from sd3par.kernels.conv import Tiles, conv3x3_triton, fold, tiles_for, upsample_conv3x3_triton
from sd3par.text import CLIPTextEncoder, T5Encoder
from sd3par.vae import VAE
from sd3par.weights.random_model import random_component

MODEL = "random:sd3-medium"
HALF = "bfloat16"
# (pixels on a side, channels, outputs, kind): all that take time at 1024 x 1024; "up" gives twice as many pixels.
CONVOLUTIONS = [
    (128, 512, 512, "add"), (256, 512, 512, "add"), (512, 512, 256, ""), (512, 256, 256, "add"), (1024, 256, 128, ""),
    (1024, 128, 128, "add"), (128, 512, 512, "up"), (256, 512, 512, "up"), (512, 256, 256, "up"), (1024, 128, 3, ""),
    (128, 16, 512, ""),
]  # fmt: skip
WIDE = [Tiles(128, 256, 64, 8, 3), Tiles(128, 256, 64, 8, 4), Tiles(128, 256, 64, 8, 3, 132),
        Tiles(128, 256, 64, 8, 4, 132)]  # fmt: skip
MIDDLE = [Tiles(128, 128, 64, 4, 3), Tiles(128, 128, 64, 8, 4), Tiles(128, 128, 64, 8, 3, 264),
          Tiles(128, 128, 64, 4, 3, 264), Tiles(256, 128, 64, 8, 3), Tiles(256, 128, 64, 8, 4),
          Tiles(256, 128, 64, 8, 4, 132)]  # fmt: skip
THIN = [Tiles(128, 16, 64, 4, 3), Tiles(128, 16, 128, 4, 3), Tiles(256, 16, 64, 4, 4), Tiles(256, 16, 64, 8, 3)]
TEXTS: list[tuple[str, Any, int]] = [
    ("text_encoder", CLIPTextEncoder, 77), ("text_encoder_2", CLIPTextEncoder, 77), ("text_encoder_3", T5Encoder, 256)
]  # fmt: skip
ROOM = 1.2  # times the error to fp32 that the operators of Paddle have, one by one and channels first
TORCH = """
import json, sys, torch
for tune in (False, True):
    torch.backends.cudnn.benchmark = tune
    for side, channels, outputs, kind in json.loads(sys.argv[1]):
        side *= 2 if kind == "up" else 1
        x = torch.randn(1, channels, side, side, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(outputs, channels, 3, 3, device="cuda", dtype=torch.bfloat16)
        for last in (False, True):
            form = torch.channels_last if last else torch.contiguous_format
            a, b = x.to(memory_format=form), w.to(memory_format=form)
            def run(): return torch.nn.functional.conv2d(a, b, padding=1)
            for _ in range(3): run()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(10): run()
            end.record()
            torch.cuda.synchronize()
            ms = begin.elapsed_time(end) / 10
            row = {"bench": "cudnn", "tuned": tune, "channels_last": last, "shape": [side, channels, outputs]}
            print(json.dumps(row | {"us": round(1e3 * ms, 1), "tflops": round(18e-9 * side**2 * channels * outputs / ms)}))
    shape = json.loads(sys.argv[1])[1]
    x = torch.randn(1, shape[1], shape[0], shape[0], device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.randn(shape[2], shape[1], 3, 3, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        torch.nn.functional.conv2d(x, w, padding=1)
        torch.cuda.synchronize()
    print(json.dumps({"bench": "cudnn", "tuned": tune, "kernels": [one.key[:100] for one in seen.key_averages()]}))
"""  # noqa: E501
Row = dict[str, Any]


def milliseconds(call: Callable[..., object], *arguments: object) -> float:
    """Returns the time of one call, of ten in a row behind three."""
    for _ in range(3):
        call(*arguments)
    begin, end = Event(), Event()
    begin.record()
    for _ in range(10):
        call(*arguments)
    end.record()
    return round(begin.elapsed_ms(end) / 10, 4)


def error(got: Tensor, want: Tensor) -> float:
    """Returns |got - want| / |want| in the 2-norm."""
    got, want = got.astype("float32"), want.astype("float32")
    return float(((got - want).norm() / want.norm()).item())


def cudnn() -> Iterator[Row]:
    """PyTorch's, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TORCH, json.dumps(CONVOLUTIONS)], capture_output=True, text=True, check=False, timeout=90
    )
    yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    if done.returncode:
        yield {"bench": "cudnn", "failed": done.stderr[-300:]}


def conv() -> Iterator[Row]:
    """Each shape with each of the tiles that fit it; tiles null is what the model uses."""
    for side, channels, outputs, kind in CONVOLUTIONS:
        x = paddle.randn([1, side, side, channels]).astype(HALF)
        filters = (paddle.randn([outputs, 3, 3, channels]) / (3 * channels**0.5)).astype(HALF)
        bias = paddle.randn([outputs]).astype(HALF)
        residual = paddle.randn([1, side, side, outputs]).astype(HALF) if kind == "add" else None
        want = wanted(x, filters, bias, residual, kind)
        call = partial(conv3x3_triton, x, filters, bias, residual)
        if kind == "up":
            call = partial(upsample_conv3x3_triton, x, fold(filters), bias)
        flops = (8 if kind == "up" else 18) * side**2 * channels * outputs * (4 if kind == "up" else 1)
        some = THIN if outputs <= 16 else [one for one in WIDE + MIDDLE if outputs % one.outputs == 0]
        for tiles in [None, *(one for one in some if channels % one.channels == 0)]:
            row = {"bench": "conv", "shape": [side, channels, outputs], "kind": kind, "tiles": tiles}
            if tiles is None:
                row["chosen"] = tiles_for((4 if kind == "up" else 1) * side, side, channels, outputs)
            try:
                off = error(call(tiles), want)
                ms = milliseconds(call, tiles)
                yield row | {"ms": ms, "tflops": round(1e-9 * flops / ms), "error": off, "ok": off < 4e-3}
            except Exception as failure:
                yield row | {"failed": f"{type(failure).__name__}: {failure}"[:300], "ok": tiles is not None}


def wanted(x: Tensor, filters: Tensor, bias: Tensor, residual: Tensor | None, kind: str) -> Tensor:
    """Returns cuDNN's result in fp32: [1, H, W, O]."""
    x, filters, bias = (one.astype("float32") for one in (x, filters, bias))
    x = x.transpose([0, 3, 1, 2])
    if kind == "up":
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    y = F.conv2d(x, filters.transpose([0, 3, 1, 2]), bias, padding=1).transpose([0, 2, 3, 1])
    return y if residual is None else y + residual.astype("float32")


def decode(card: Device) -> Iterator[Row]:
    """The decoder, at sizes that tiles divide and one that they do not."""
    component = random_component(MODEL, "vae")
    vae = VAE.load(component, HALF, encoder=False)
    exact = VAE.load(component, "float32", encoder=False)
    with mock.patch.object(kernels, "wants_channels_last", lambda dtype: False):
        plain = VAE.load(component, HALF, encoder=False)
    for height, width in ((1024, 1024), (512, 512), (1040, 784)):
        latents = paddle.randn([1, 16, height // 8, width // 8])
        row: Row = {"bench": "decode", "size": [height, width], "channels_last": vae.channels_last}
        want = exact.decode(latents)
        off, allowed = error(vae.decode(latents), want), ROOM * error(plain.decode(latents), want)
        captured = Captured(card, must=True)
        for _ in range(EAGER_CALLS + 1):
            first = captured(vae.decode, latents)
        other = paddle.randn(latents.shape)
        same = all(
            bool((captured(vae.decode, one).astype("float32") == vae.decode(one).astype("float32")).all().item())
            for one in (latents, other, latents)
        )
        row |= {"error": off, "allowed": allowed, "captured_equals_eager": same}
        row["ok"] = off < allowed and same and list(first.shape[2:]) == [height, width]
        row["channels_first_ms"] = milliseconds(plain.decode, latents)
        row["eager_ms"] = milliseconds(vae.decode, latents)
        row["captured_ms"] = milliseconds(captured, vae.decode, latents)
        row["graph_mib"] = next(iter(captured._recordings.values())).bytes >> 20
        captured.clear()
        yield row
        if (height, width) == (1024, 1024):
            yield {"bench": "stages", "ms": stages(vae, latents)}
            yield from operators(vae, latents)


def stages(vae: VAE, latents: Tensor) -> dict[str, float]:
    """Returns milliseconds of the decoder's parts, the third time through."""
    decoder = vae.decoder
    parts = [("conv_in", decoder.conv_in), ("mid", decoder.mid_block)]
    parts += [(f"up_{i}", block) for i, block in enumerate(decoder.up_blocks)]
    parts += [("norm_out", lambda x: decoder.conv_norm_out(x, silu=True)), ("conv_out", decoder.conv_out)]
    for _ in range(3):
        x, times = vae._inner(latents.astype(HALF)), [Event()]
        times[0].record()
        for _, part in parts:
            x = part(x)
            times.append(Event())
            times[-1].record()
    spans = [before.elapsed_ms(after) for before, after in zip(times, times[1:], strict=False)]
    return {name: round(span, 3) for (name, _), span in zip(parts, spans, strict=True)}


def operators(vae: VAE, latents: Tensor) -> Iterator[Row]:
    """Milliseconds by what the decoder calls and the shape that it calls it with, largest first."""
    names = ("conv3x3", "upsample_conv3x3", "group_norm_silu", "linear")
    plain = {name: getattr(kernels, name) for name in names}
    seen: list[tuple[str, Event, Event]] = []

    def timed(name: str, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Any, *more: Any) -> Tensor:
            begin, end = Event(), Event()
            begin.record()
            y = call(x, weight, *more)
            end.record()
            seen.append((f"{name} {list(x.shape)} {y.shape[-1]}", begin, end))
            return y

        return run

    try:
        for name, call in plain.items():
            setattr(kernels, name, timed(name, call))
        for _ in range(3):
            seen.clear()
            begin, end = Event(), Event()
            begin.record()
            vae.decode(latents)
            end.record()
        whole = begin.elapsed_ms(end)
    finally:
        for name, call in plain.items():
            setattr(kernels, name, call)
    totals: dict[str, list[float]] = {}
    for name, begin, end in seen:
        totals.setdefault(name, []).append(begin.elapsed_ms(end))
    rest = whole - sum(sum(spans) for spans in totals.values())
    for name, spans in sorted(totals.items(), key=lambda item: -sum(item[1])):
        yield {"bench": "operator", "what": name, "calls": len(spans), "ms": round(sum(spans), 3)}
    yield {"bench": "operator", "what": "all else", "ms": round(rest, 3), "whole_ms": round(whole, 3)}


def text(card: Device) -> Iterator[Row]:
    """The three encoders on one prompt each."""
    for part, layer, length in TEXTS:
        encoder: Any = layer.load(random_component(MODEL, part), HALF)
        ids = [paddle.randint(0, 1000, [1, length], dtype="int64") for _ in range(2)]
        captured = Captured(card, must=True)
        for _ in range(EAGER_CALLS + 1):
            captured(encoder, ids[0])
        pairs = [
            (a, b)
            for one in (*ids, ids[0])
            for a, b in zip(parts_of(captured(encoder, one)), parts_of(encoder(one)), strict=True)
        ]
        same = all(bool((a.astype("float32") == b.astype("float32")).all().item()) for a, b in pairs)
        times = {"eager_ms": milliseconds(encoder, ids[0]), "captured_ms": milliseconds(captured, encoder, ids[0])}
        row: Row = {"bench": "text", "part": part, "tokens": length, "captured_equals_eager": same, "ok": same}
        yield row | times
        captured.clear()


def parts_of(result: Any) -> tuple[Tensor, ...]:
    """Returns what an encoder gives as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def main(names: list[str]) -> int:
    """Runs the parts named, or all."""
    card = Device(f"{device.choose().kind}:0", HALF)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "decode": lambda: decode(card), "text": lambda: text(card), "conv": conv, "cudnn": cudnn,
    }  # fmt: skip
    card.activate()
    paddle.seed(0)
    wrong = 0
    with paddle.no_grad():
        for name in names or parts:
            try:
                for row in parts[name]():
                    wrong += not row.get("ok", True)
                    print(json.dumps(row), flush=True)
            except Exception:
                wrong += 1
                print(json.dumps({"bench": name, "failed": traceback.format_exc()[-1500:]}), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

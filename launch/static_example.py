"""Runs an exported denoiser with Paddle Inference alone: how another program, in any language, would use an export.

    sd3par export --model sd3 --out sd3-export
    python launch/static_example.py sd3-export --device nvgpu --out latents.npy

Nothing of sd3par is imported. Text states and noise come from --inputs FILE.npz (context [2B, Tc, J] and pooled
[2B, P], unconditional rows first, and latents [B, C, h, w]), or are random. An export for several processes needs their
groups too, which sd3par makes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.inference as inference


def predictor(folder: Path, names: list[str], device: str) -> Any:
    """Returns the predictor of a program; names: its program and its parameters."""
    config = inference.Config(str(folder / names[0]), str(folder / names[1]))
    config.disable_glog_info()
    config.switch_ir_optim(False)  # the program has its kernels already
    kind, _, index = device.partition(":")
    if kind == "cpu":
        config.disable_gpu()
        config.disable_onednn()  # its passes give wrong numbers (Paddle 3.3.1)
    elif kind == "gpu":
        config.enable_use_gpu(100, int(index or 0))
    else:
        config.enable_custom_device(kind, int(index or 0))
    return inference.create_predictor(config)


def sigmas(steps: int, scheduler: dict[str, Any]) -> np.ndarray:
    """Returns [steps + 1] fp32, from 1 to 0: flow matching, moved towards noise by the model's shift, as SD3 has it."""
    shift, trained = scheduler.get("shift", 1.0), scheduler.get("num_train_timesteps", 1000)
    first, last = (shift * end / (1 + (shift - 1) * end) for end in (1.0, 1.0 / trained))
    even = np.linspace(first, last, steps)
    return np.append(shift * even / (1 + (shift - 1) * even), 0.0).astype(np.float32)


def patches(latents: np.ndarray, patch: int) -> np.ndarray:
    """latents: [B, C, h, w] -> tokens [B, (h / p) * (w / p), p * p * C]."""
    images, channels, height, width = latents.shape
    x = latents.reshape(images, channels, height // patch, patch, width // patch, patch).transpose(0, 2, 4, 3, 5, 1)
    return x.reshape(images, -1, patch * patch * channels)


def pictures(tokens: np.ndarray, shape: tuple[int, ...], patch: int) -> np.ndarray:
    """tokens: [B, T, p * p * C] -> latents of a shape, [B, C, h, w]."""
    images, channels, height, width = shape
    x = tokens.reshape(images, height // patch, width // patch, patch, patch, channels).transpose(0, 5, 1, 3, 2, 4)
    return x.reshape(shape)


def places(height: int, width: int, patch: int, most: int) -> np.ndarray:
    """Returns where the patches of latents height x width lie in the table of positions: [T] int64, its centre."""
    down, across = height // patch, width // patch
    rows, columns = (most - down) // 2 + np.arange(down), (most - across) // 2 + np.arange(across)
    return (rows[:, None] * most + columns[None, :]).reshape(-1).astype(np.int64)


def denoise(folder: Path, manifest: dict[str, Any], given: dict[str, np.ndarray], options: Any) -> np.ndarray:
    """Returns the latents [B, C, h, w] after all steps, with guidance."""
    config, latents = manifest["configs"]["transformer"], given["latents"].astype(np.float32)
    images, (height, width), patch = latents.shape[0], latents.shape[2:], config.get("patch_size", 2)
    levels, rows = sigmas(options.steps, manifest["scheduler"]), 2 * images
    times = np.repeat(1000 * levels[:-1, None], rows, axis=1)  # [N, R]
    prepare, step = (predictor(folder, manifest["programs"][name][0], options.device) for name in ("prepare", "step"))
    states = [paddle.to_tensor(given[name]).astype(manifest["dtype"]) for name in ("context", "pooled")]
    where = places(height, width, patch, config["pos_embed_max_size"])
    context, positions, modulations = prepare.run(
        [states[0], paddle.to_tensor(times), states[1], paddle.to_tensor(where)]
    )
    own = np.arange(images)
    numbers = [paddle.to_tensor(one) for one in (np.tile(own, 2), own, images + own)]  # image of a row; both halves
    tokens, scale = paddle.to_tensor(patches(latents, patch)), paddle.full([], options.guidance_scale, "float32")
    for index, delta in enumerate(np.diff(levels)):
        modulation = modulations[index : index + 1].contiguous()
        change = paddle.full([], float(delta), "float32")
        (tokens,) = step.run([tokens.clone(), context, positions, modulation, scale, change, *numbers])
    return pictures(tokens.numpy(), latents.shape, patch)


def random_inputs(manifest: dict[str, Any], height: int, width: int) -> dict[str, np.ndarray]:
    """Returns made-up text states and noise for one picture, height x width in pixels."""
    config, draw = manifest["configs"]["transformer"], np.random.default_rng(0).standard_normal
    shapes = {
        "context": (2, 154, config["joint_attention_dim"]),
        "pooled": (2, config["pooled_projection_dim"]),
        "latents": (1, config.get("in_channels", 16), height // 8, width // 8),
    }
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what sd3par export wrote, for one process")
    parser.add_argument("--device", default="cpu", help="cpu, gpu:0, nvgpu:0")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance_scale", type=float, default=7.0)
    parser.add_argument("--height", type=int, default=128, help="pixels, of random inputs")
    parser.add_argument("--width", type=int, default=128, help="pixels, of random inputs")
    parser.add_argument("--inputs", type=Path, help="an .npz file with context, pooled and latents")
    parser.add_argument("--out", type=Path, help="an .npy file for the latents")
    options = parser.parse_args()
    manifest = json.loads((options.folder / "sd3par-export.json").read_text(encoding="utf-8"))
    if (manifest["dp"], manifest["mp"], manifest["sp"]) != (1, 1, 1):
        sys.exit("this export is for several processes")
    paddle.set_device(options.device)
    for name in manifest["operators"]:
        if name.endswith(".so"):
            paddle.utils.cpp_extension.load_op_meta_info_and_register_op(str(options.folder / name))
    given = dict(np.load(options.inputs)) if options.inputs else random_inputs(manifest, options.height, options.width)
    latents = denoise(options.folder, manifest, given, options)
    sys.stdout.write(f"latents {list(latents.shape)}, mean {latents.mean():.4f}, deviation {latents.std():.4f}\n")
    if options.out:
        np.save(options.out, latents)


if __name__ == "__main__":
    main()

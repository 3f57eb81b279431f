"""Runs an exported denoiser with Paddle Inference alone: how another program, in any language, would use an export.

    sd3par export --model sd3 --out sd3-export
    python launch/static_example.py sd3-export --out latents.npy

Nothing of sd3par is imported. Text states and noise come from --inputs FILE.npz (context [2B, Tc, J] and pooled
[2B, P], unconditional rows first, and latents [B, C, h, w]), or are random. An export for several processes needs their
groups too, which sd3par makes. What cannot be run is one line on stderr, before anything runs, and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import paddle
import paddle.inference as inference

MANIFEST, FORMAT = "sd3par-export.json", 2
BLOCK = 64 << 20  # bytes: a file has a SHA-256 of each
CLIP_TOKENS, SIDE, MAX_STEPS, MAX_GUIDANCE = 77, 128, 1000, 100.0


class Refused(Exception):
    """What was asked for cannot be run; its text is one line."""


def require(condition: bool, what: str, got: object, allowed: str) -> None:
    """Raises Refused unless `condition` holds."""
    if not condition:
        text = ascii(str(got))[1:-1]
        raise Refused(f"{what}: got {text if len(text) <= 120 else f'{text[:117]}...'}; allowed: {allowed}")


class Parser(argparse.ArgumentParser):
    """Raises Refused where others write their usage and leave."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found."""
        raise Refused(" ".join(message.split())[:300])


class Export:
    """What an export for one process says of itself; sides are in pixels.

    programs: name -> a program and its parameters. files: name -> bytes and SHA-256. scale: pixels per latent. patch:
    latents along a side. places: of the table of positions, along a side. step: what sides are multiples of. side,
    images, tokens: the most.

    Raises:
        Refused: the folder has no manifest, or that of something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / MANIFEST
        require(os.path.isfile(path), "folder", folder, f"what sd3par export wrote, with {MANIFEST} in it")
        try:
            self._read(json.loads(path.read_bytes()))
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise Refused(f"{path}: {why[:200]}; allowed: what sd3par export wrote, unchanged") from None

    def _read(self, manifest: dict[str, Any]) -> None:
        require(manifest["format"] == FORMAT, f"{self.folder / MANIFEST}: format", manifest["format"], str(FORMAT))
        mesh = "dp {dp} x mp {mp} x sp {sp}".format(**manifest)
        require(mesh == "dp 1 x mp 1 x sp 1", "folder", f"{self.folder}, for the processes of {mesh}",
                "an export for one process; sd3par generate runs the others")  # fmt: skip
        model, vae, most = manifest["configs"]["transformer"], manifest["configs"]["vae"], manifest["limits"]
        self.dtype, self.target = str(manifest["dtype"]), str(manifest["target"])
        self.programs = {name: [str(file) for file in manifest["programs"][name][0]] for name in ("prepare", "step")}
        self.operators = [str(name) for name in manifest["operators"]]
        self.files = dict(manifest["files"])
        self.patch, self.places = int(model.get("patch_size", 2)), int(model["pos_embed_max_size"])
        self.channels, self.joint = int(model.get("in_channels", 16)), int(model["joint_attention_dim"])
        self.pooled = int(model["pooled_projection_dim"])
        self.scale = 2 ** (len(vae["block_out_channels"]) - 1)
        self.step = self.patch * self.scale
        self.side = min(int(most["side"]), self.places * self.step) // self.step * self.step
        self.images, self.tokens = int(most["images"]), CLIP_TOKENS + int(most["text"])
        self.shift = float(manifest["scheduler"].get("shift", 1.0))
        self.trained = int(manifest["scheduler"].get("num_train_timesteps", 1000))

    def check_side(self, name: str, side: int) -> None:
        """Raises Refused where a side, in pixels, is none that the programs take."""
        fits = side % self.step == 0 and self.step <= side <= self.side
        require(fits, name, side, f"multiples of {self.step} from {self.step} to {self.side}")

    def check_files(self) -> None:
        """Raises Refused where a file that is loaded is not what was exported."""
        for name in [*self.operators, *(file for pair in self.programs.values() for file in pair)]:
            path, found = self.folder / name, list[str]()
            inside = path.resolve().is_relative_to(self.folder.resolve())
            require(inside and os.path.isfile(path), "folder", f"no file {path}", "all files of the export")
            try:
                with path.open("rb") as file:
                    while block := file.read(BLOCK):
                        found.append(hashlib.sha256(block).hexdigest())
                same = self.files.get(name) == {"bytes": path.stat().st_size, "sha256": found}
            except OSError as error:
                raise Refused(f"{path}: {error.strerror}; allowed: a file that can be read") from None
            require(same, "folder", f"{path}, changed since it was exported", f"a file as {MANIFEST} has it")


def choose_device(wanted: str | None, target: str) -> str:
    """Returns the device to use: what is wanted, else the first one that an export is for; target: cpu or cuda.

    Raises:
        Refused: there is no such device, or the export is not for it.
    """
    gpu = "gpu" if paddle.device.is_compiled_with_cuda() else "nvgpu"
    device = wanted or ("cpu" if target == "cpu" else gpu)
    kind, _, index = device.partition(":")
    fits = device == "cpu" if target == "cpu" else kind in ("gpu", "nvgpu")
    own = "cpu" if target == "cpu" else "gpu or nvgpu"
    require(fits, "--device", device, f"{own}, for which it was exported")
    count = {"cpu": 1, "gpu": paddle.device.cuda.device_count() if gpu == "gpu" else 0}.get(
        kind, sum(name.split(":")[0] == kind for name in paddle.device.get_available_custom_device() or ())
    )
    there = re.fullmatch("[0-9]{0,4}", index) is not None and int(index or 0) < count
    require(there, "--device", device, f"one of the {count} of this machine, as {kind}:0")
    return device


def check_options(options: argparse.Namespace) -> None:
    """Raises Refused where a flag is out of range or beside another one, or --out cannot be written."""
    require(1 <= options.steps <= MAX_STEPS, "--steps", options.steps, f"1 to {MAX_STEPS}")
    scale = options.guidance_scale
    require(0 <= scale <= MAX_GUIDANCE, "--guidance_scale", scale, f"0 to {MAX_GUIDANCE:g}")
    for name in ("height", "width"):
        alone = getattr(options, name) is None or options.inputs is None
        require(alone, f"--{name}", getattr(options, name), "nothing beside --inputs, which has a size")
    if options.out is not None:
        require(options.out.suffix == ".npy", "--out", options.out, "a name that ends in .npy")
        require(not os.path.isdir(options.out), "--out", options.out, "a file; this is a folder")
        save(options.out, None)


def save(path: Path, latents: np.ndarray | None) -> None:
    """Writes latents [B, C, h, w] into a file that is there once it is whole; of None only tries whether it could.

    Raises:
        Refused: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            if latents is not None:
                np.save(file, latents)
        if latents is not None:
            part.replace(path)
    except OSError as error:
        raise Refused(f"--out: got {path}; allowed: a file that can be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def random_inputs(export: Export, height: int | None, width: int | None) -> dict[str, np.ndarray]:
    """Returns made-up text states and noise for one picture, height x width in pixels.

    Raises:
        Refused: a size that the programs do not take.
    """
    draw, tokens = np.random.default_rng(0).standard_normal, min(2 * CLIP_TOKENS, export.tokens)
    high, wide = (min(SIDE, export.side) if side is None else side for side in (height, width))
    export.check_side("--height", high)
    export.check_side("--width", wide)
    shapes = {
        "context": (2, tokens, export.joint),
        "pooled": (2, export.pooled),
        "latents": (1, export.channels, high // export.scale, wide // export.scale),
    }
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def read_inputs(path: Path, export: Export) -> dict[str, np.ndarray]:
    """Returns context [2B, Tc, J], pooled [2B, P] and latents [B, C, h, w] of an .npz file, fp32.

    Raises:
        Refused: it is no such file, or has something else in it.
    """
    names, given = ("context", "pooled", "latents"), {}
    require(
        os.path.isfile(path) and zipfile.is_zipfile(path), "--inputs", path, "an .npz file, as numpy.savez writes it"
    )
    try:
        with np.load(path) as arrays:
            for name in names:
                require(name in arrays, "--inputs", f"{path} without {name}", f"one with {', '.join(names)}")
                given[name] = arrays[name]
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = " ".join(str(error).split())
        raise Refused(f"--inputs: got {path}; allowed: an .npz file that is whole and of numbers ({why})") from None
    for name, array in given.items():
        require(isinstance(array, np.ndarray) and array.dtype.kind in "fiu", f"{path}: {name}",
                getattr(array, "dtype", "no array"), "an array of numbers")  # fmt: skip
        with np.errstate(over="ignore"):
            given[name] = array.astype(np.float32)
        require(bool(np.isfinite(given[name]).all()), f"{path}: {name}", "NaN or infinity", "finite numbers")
    _check_shapes(given, export, str(path))
    return given


def _check_shapes(given: dict[str, np.ndarray], export: Export, where: str) -> None:
    """Raises Refused where shapes do not fit the programs or each other."""
    for name, axes in (("context", 3), ("latents", 4)):
        require(given[name].ndim == axes, f"{where}: {name}", f"shape {list(given[name].shape)}", f"{axes} axes")
    (images, _, height, width), tokens = given["latents"].shape, given["context"].shape[1]
    require(1 <= images <= export.images, f"{where}: latents", f"{images} pictures", f"1 to {export.images}")
    require(1 <= tokens <= export.tokens, f"{where}: context", f"{tokens} tokens", f"1 to {export.tokens}")
    export.check_side(f"{where}: latents: pixels of height", height * export.scale)
    export.check_side(f"{where}: latents: pixels of width", width * export.scale)
    wanted = {
        "context": [2 * images, tokens, export.joint],
        "pooled": [2 * images, export.pooled],
        "latents": [images, export.channels, height, width],
    }
    for name, shape in wanted.items():
        require(list(given[name].shape) == shape, f"{where}: {name}", f"shape {list(given[name].shape)}", str(shape))


def predictor(export: Export, name: str, device: str) -> Any:
    """Returns the predictor of a program."""
    config = inference.Config(*(str(export.folder / file) for file in export.programs[name]))
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


def sigmas(steps: int, shift: float, trained: int) -> np.ndarray:
    """Returns [steps + 1] fp32, from 1 to 0: flow matching, moved towards noise by the model's shift, as SD3 has it."""
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


def denoise(export: Export, given: dict[str, np.ndarray], device: str, steps: int, guidance: float) -> np.ndarray:
    """Returns the latents [B, C, h, w] after all steps, with guidance."""
    latents, patch = given["latents"], export.patch
    images, (height, width) = latents.shape[0], latents.shape[2:]
    levels, rows = sigmas(steps, export.shift, export.trained), 2 * images
    times = np.repeat(1000 * levels[:-1, None], rows, axis=1)  # [N, R]
    prepare, step = (predictor(export, name, device) for name in ("prepare", "step"))
    states = [paddle.to_tensor(given[name]).astype(export.dtype) for name in ("context", "pooled")]
    where = places(height, width, patch, export.places)
    context, positions, modulations = prepare.run(
        [states[0], paddle.to_tensor(times), states[1], paddle.to_tensor(where)]
    )
    own = np.arange(images)
    numbers = [paddle.to_tensor(one) for one in (np.tile(own, 2), own, images + own)]  # image of a row; both halves
    tokens, scale = paddle.to_tensor(patches(latents, patch)), paddle.full([], guidance, "float32")
    for index, delta in enumerate(np.diff(levels)):
        modulation = modulations[index : index + 1].contiguous()
        change = paddle.full([], float(delta), "float32")
        (tokens,) = step.run([tokens.clone(), context, positions, modulation, scale, change, *numbers])
    return pictures(tokens.numpy(), latents.shape, patch)


def parser() -> Parser:
    """Returns the parser of the command line."""
    found = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    found.add_argument("folder", type=Path, help="what sd3par export wrote, for one process")
    found.add_argument("--device", help="cpu, gpu:0, nvgpu:0 (default: the first one that the export is for)")
    found.add_argument("--steps", type=int, default=28, help=f"1 to {MAX_STEPS}")
    found.add_argument("--guidance_scale", type=float, default=7.0, help=f"0 to {MAX_GUIDANCE:g}")
    found.add_argument("--height", type=int, help=f"pixels, of random inputs (default: {SIDE})")
    found.add_argument("--width", type=int, help=f"pixels, of random inputs (default: {SIDE})")
    found.add_argument("--inputs", type=Path, help="an .npz file with context, pooled and latents")
    found.add_argument("--out", type=Path, help="an .npy file for the latents")
    return found


def run(options: argparse.Namespace) -> None:
    """Runs what the command line asks for.

    Raises:
        Refused: it cannot be run.
    """
    export = Export(options.folder)
    check_options(options)
    device = choose_device(options.device, export.target)
    if options.inputs is None:
        given = random_inputs(export, options.height, options.width)
    else:
        given = read_inputs(options.inputs, export)
    export.check_files()
    paddle.set_device(device)
    for name in export.operators:
        if name.endswith(".so"):
            paddle.utils.cpp_extension.load_op_meta_info_and_register_op(str(options.folder / name))
    latents = denoise(export, given, device, options.steps, options.guidance_scale)
    sys.stdout.write(f"latents {list(latents.shape)}, mean {latents.mean():.4f}, deviation {latents.std():.4f}\n")
    if options.out is not None:
        save(options.out, latents)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what `argv` asks for; returns the exit code."""
    try:
        run(parser().parse_args(argv))
    except Refused as error:
        sys.stderr.write(f"static_example.py: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

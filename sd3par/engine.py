"""What runs a model: its own code, recorded or not, or the programs that were exported of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from paddle import Tensor

from sd3par import device
from sd3par.auto import check_transport, resolved
from sd3par.captured import Captured
from sd3par.config import ModelConfig, ParallelConfig, parse_config, require
from sd3par.device import Device
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.plan import check_world
from sd3par.text.config import T5_DTYPES
from sd3par.weights import ModelFiles

if TYPE_CHECKING:
    from sd3par.denoise import Transformer
    from sd3par.text import TextEncoders
    from sd3par.weights.fill import Component

ENGINES = ("auto", "eager", "graph", "static")


class Autoencoder(Protocol):
    """What the pipeline asks of an autoencoder: a model, or the programs of an exported one."""

    config: Any

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along height and along width."""
        ...

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """images: [1, 3, H, W], noise: [B, C, h, w] -> latents [B, C, h, w]."""
        ...

    def decode_each(self, latents: Tensor, captured: Captured | None = None) -> Tensor:
        """latents: [B, C, h, w] -> [B, 3, H, W]."""
        ...


def load_parts(files: ModelFiles, target: Device, mesh: Mesh) -> tuple[Transformer, Autoencoder, TextEncoders | None]:
    """Returns transformer, autoencoder and text encoders of opened files; each rank has its parts of them.

    An exported model is loaded without the code of the model's layers, which is imported here for this reason.
    """
    if files.export is not None:
        from sd3par.static import load

        return load.load_parts(files, files.export, target, mesh)
    from sd3par.mmdit import MMDiT
    from sd3par.text.load import load_text
    from sd3par.vae import VAE

    transformer = MMDiT.load(files.transformer, target.dtype, mesh)
    return transformer, VAE.load(files.vae, target.dtype, mesh=mesh), load_text(files, target.dtype, mesh)


def check_engine(engine: str, files: ModelFiles) -> None:
    """Raises ConfigError where an engine is unknown or does not run what was opened."""
    require(engine in ENGINES, "engine", engine, " or ".join(ENGINES))
    if files.export is None:
        allowed = f"auto, eager or graph: {files.name} is a checkpoint; sd3par export makes of it what static runs"
        require(engine != "static", "engine", engine, allowed)
    else:
        require(engine in ("auto", "static"), "engine", engine, "auto or static: the model is an exported one")


def choose_device(files: ModelFiles, dtype: str = "auto", kind: str = "auto") -> Device:
    """Returns the device to use, as `device.choose`; an exported model has a kind of device and a dtype of its own.

    Raises:
        ConfigError: no such device here, or the model is not for it, or not for the dtype.
    """
    if files.export is None:
        target = device.choose(dtype, kind)
        possible = files.text_encoder_3 is None or target.dtype in T5_DTYPES
        require(possible, "dtype", target.dtype, f"{' or '.join(T5_DTYPES)}; float16 without T5 (--no_t5) only")
        return target
    manifest = files.export.manifest
    if kind == "auto":
        kind = device.available()[0] if manifest.target == "cuda" else "cpu"
    manifest.check_device(kind, dtype)
    return device.choose(manifest.dtype, kind)


def check_memory(files: ModelFiles) -> None:
    """Refuses a checkpoint for one process on the CPU whose weights in float32 are more than this machine's memory.

    Linux gives memory that it does not have: the process would be killed after a minute, without a word.

    Raises:
        ConfigError: memory and swap together are smaller.
    """
    others = (files.transformer, files.vae, files.text_encoder, files.text_encoder_2)
    text_encoder_3, rest = _float32_bytes(files.text_encoder_3), sum(map(_float32_bytes, others))
    limit = _memory_and_swap()
    without = f", or without T5 (--no_t5, text_encoder_3=False), then {_gb(rest)}" if rest < limit else ""
    allowed = f"what fits into {_gb(limit)} of memory and swap: its weights take {_gb(rest + text_encoder_3)}{without}"
    require(rest + text_encoder_3 <= limit, "model", files.name, allowed)


def _float32_bytes(part: Component | None) -> int:
    return 0 if part is None else 4 * sum(map(math.prod, part.checkpoint.shapes().values()))


def _memory_and_swap() -> int:
    """Returns bytes, of Linux."""
    with open("/proc/meminfo", encoding="ascii") as file:
        kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in file)}
    return 1024 * (kilobytes["MemTotal"] + kilobytes.get("SwapTotal", 0))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def choose_mesh(files: ModelFiles, parallel: ParallelConfig | str, target: Device, world: int) -> ParallelConfig:
    """Returns the mesh of `world` processes: what was asked for, or for "auto" what there can be.

    Raises:
        ConfigError: no mesh, or one that the model cannot have.
    """
    if files.export is None:
        model = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
        return resolved(parallel, model, target, world)
    own = files.export.manifest.parallel
    chosen = own if parallel == "auto" else parallel
    if not isinstance(chosen, ParallelConfig):
        raise ConfigError("parallel", parallel, 'a ParallelConfig(dp=..., mp=..., sp=...), or "auto"')
    files.export.manifest.check_mesh(chosen)
    check_transport(chosen, target)
    check_world(chosen, world)
    return chosen

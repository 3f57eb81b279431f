"""Triton kernels and collectives inside programs: operators of our own, which only programs for GPUs have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import paddle

from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.kernels import static
from sd3par.plan import WeightPlan
from sd3par.vae.config import VAEConfig
from sd3par.weights import ModelFiles

_GPUS = "cuda"


def why_not_traceable(kind: str, dtype: str) -> str:
    """Returns why this Paddle cannot trace a program in a dtype for a kind of target, "" where it can.

    It writes only operators that it has kernels for, and the CPU build has none in half precision; no GPU is needed.
    """
    half = kind == _GPUS and dtype != "float32"
    known = paddle.device.is_compiled_with_cuda() or "nvgpu" in paddle.device.get_all_custom_device_type()
    return (
        "" if known or not half else "python -m sd3par.kernels.nvgpu build, which needs no GPU, brings half precision"
    )


def tracing(kind: str, dtype: str, architectures: Sequence[int]) -> AbstractContextManager[None]:
    """Returns what to trace within, for a kind of target ("cpu" or "cuda") and GPUs of these architectures."""
    return static.tracing(dtype, architectures) if kind == _GPUS else nullcontext()


def write(
    folder: Path, kind: str, dtype: str, architectures: Sequence[int], files: ModelFiles, parallel: ParallelConfig
) -> list[str]:
    """Writes the operators that programs for a target call into their folder; returns the names of the files."""
    if kind != _GPUS:
        return []
    from sd3par.vae.blocks import EPSILON  # the model's code, which who loads an export does without

    model = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    vae = VAEConfig.parse(files.vae.config, files.vae.where)
    channels = sorted({vae.latent_channels, *vae.block_out_channels})
    pictures = sorted({vae.out_channels, 2 * vae.latent_channels} - set(channels))
    maps = static.Maps(vae.norm_num_groups, EPSILON, tuple(channels), tuple(pictures))
    peers = parallel.mp if parallel.transport == "peer" else 0
    return static.write_operators(folder, dtype, architectures, model, _heads(model, parallel), maps, peers)


def _heads(model: ModelConfig, parallel: ParallelConfig) -> list[int]:
    """Returns how many heads ranks attend over, in all ways that the mesh has."""
    plans = [
        WeightPlan(model.num_attention_heads, model.attention_head_dim, parallel.mp, rank, parallel.sp)
        for rank in range(parallel.mp)
    ]
    return sorted({len(heads) for plan in plans for heads in plan.groups})


def load(folder: Path, names: Sequence[str]) -> None:
    """Makes the operators of a folder known to Paddle.

    Raises:
        ConfigError: they have no kernels for the current GPU.
    """
    if names:
        static.load_operators(folder)


def triton_version(kind: str) -> str | None:
    """Returns the version of Triton that compiles the operators of a target, None where there are none."""
    return static.triton_version() if kind == _GPUS else None

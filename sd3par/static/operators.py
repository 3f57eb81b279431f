"""Triton kernels inside programs: operators compiled ahead of time, which only programs for GPUs have."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sd3par.weights import ModelFiles


def tracing(kind: str, dtype: str, architectures: Sequence[int]) -> AbstractContextManager[None]:
    """Returns what to trace within, for a kind of target ("cpu" or "cuda") and GPUs of these architectures."""
    return nullcontext()


def write(folder: Path, kind: str, dtype: str, architectures: Sequence[int], files: ModelFiles) -> list[str]:
    """Writes the operators that programs for a target call into their folder; returns the names of the files."""
    return []


def load(folder: Path, names: Sequence[str]) -> None:
    """Makes the operators of a folder known to Paddle."""


def triton_version(kind: str) -> str | None:
    """Returns the version of Triton that compiles the operators of a target, None where there are none."""
    return None

"""Whether a program is being traced, and for what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import paddle
from paddle import Tensor

_HALF = (paddle.bfloat16, paddle.float16)


@dataclass(frozen=True)
class Target:
    """What a program is traced for: the model's dtype, and compute capabilities of GPUs, 90 for 9.0."""

    dtype: str
    architectures: tuple[int, ...]


_target: ContextVar[Target | None] = ContextVar("target", default=None)


@contextmanager
def targeted(target: Target) -> Iterator[None]:
    """Within it, `target()` returns this one."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def target() -> Target | None:
    """Returns what programs are traced for, None where none is for a GPU."""
    return _target.get()


def traced(x: Tensor) -> bool:
    """Returns whether `x` is a value of a program that is traced for a GPU, in half precision."""
    return _target.get() is not None and not paddle.in_dynamic_mode() and x.dtype in _HALF


def traced_for_cpu() -> bool:
    """Returns whether a program is traced that is for no GPU."""
    return _target.get() is None and not paddle.in_dynamic_mode()

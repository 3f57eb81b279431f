"""Other functions in the place of the model's kernels, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sd3par import kernels


def names() -> list[str]:
    """Returns the names of all functions that the model calls for its work and that do it for any device."""
    return [name for name in kernels.__all__ if hasattr(kernels, f"{name}_reference")]


@contextmanager
def swapped(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within it `kernels.NAME` is `functions[NAME]`."""
    right = {name: getattr(kernels, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(kernels, name, function)
        yield
    finally:
        for name, function in right.items():
            setattr(kernels, name, function)


def references() -> dict[str, Callable[..., Any]]:
    """Returns the plain-Paddle reference of each function."""
    return {name: getattr(kernels, f"{name}_reference") for name in names()}

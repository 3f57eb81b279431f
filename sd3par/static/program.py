"""Runs one exported program; the only place that knows by what."""

from __future__ import annotations

from pathlib import Path

import paddle
from paddle import Tensor


class Program:
    """A program and its parameters on the current device, run by the executor behind `paddle.jit.load`.

    Takes and returns tensors of that device; the work goes to its stream. No pass rewrites what was traced. Paddle
    Inference runs the same files (launch/static_example.py), but its predictor keeps Python's lock for the whole run,
    so that the watchdog could not beat, and writes each result into the memory of the one before (Paddle 3.3.1).
    """

    def __init__(self, program: Path, parameters: Path) -> None:
        self._layer = paddle.jit.load(
            str(program.parent), model_filename=program.name, params_filename=parameters.name
        )  # both are in one folder

    @paddle.no_grad()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the program gives for `inputs`."""
        found = self._layer(*(one.contiguous() for one in inputs))
        return list(found) if isinstance(found, (list, tuple)) else [found]

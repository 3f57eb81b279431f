"""Runs one exported program; the only place that knows by what."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import paddle
from paddle import Tensor

from sd3par.device import current


class Program:
    """A program and its parameters on the current device, run by the executor behind `paddle.jit.load`.

    Takes and returns tensors of that device; the work goes to its stream. No pass rewrites what was traced. Paddle
    Inference runs the same files (launch/static_example.py), but its predictor keeps Python's lock for the whole run,
    so that the watchdog could not beat, and writes each result into the memory of the one before (Paddle 3.3.1).
    """

    def __init__(self, program: Path, parameters: Path) -> None:
        if current() != "cpu":  # by its own threads, what a recording makes would not lie in the recording's memory
            paddle.set_flags({"FLAGS_enable_pir_in_executor_trace_run": True})
        self._layer = paddle.jit.load(
            str(program.parent), model_filename=program.name, params_filename=parameters.name
        )  # both are in one folder

    @paddle.no_grad()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the program gives for `inputs`; may be recorded."""
        with _recordable():
            found = self._layer(*(one.contiguous() for one in inputs))
        return list(found) if isinstance(found, (list, tuple)) else [found]


def _recordable() -> AbstractContextManager[None]:
    """Paddle waits behind each run on a custom device, which would break a recording."""
    if not current().startswith("nvgpu"):
        return nullcontext()
    from sd3par.kernels.nvgpu import waits  # late: its package asks for compilers

    return waits.skipped()

"""Runs one exported program; the only place that knows by what."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor
from paddle.jit.dy2static.pir_partial_program import PartialProgramLayer
from paddle.jit.pir_translated_layer import _load_pir_program, _PirProgramHolder

from sd3par.device import current
from sd3par.errors import CheckpointError

_REAL = (paddle.bfloat16, paddle.float16, paddle.float32, paddle.float64)


class Program:
    """A program on the current device, run by the executor behind `paddle.jit.load`; `fill` gives it its parameters.

    Takes and returns tensors of that device; the work goes to its stream. No pass rewrites what was traced. Paddle
    Inference runs the same files (launch/static_example.py), but its predictor keeps Python's lock for the whole run,
    so that the watchdog could not beat, and writes each result into the memory of the one before (Paddle 3.3.1).
    `paddle.jit.load` itself reads parameters by one thread, with that lock held, and copies them twice.
    """

    def __init__(self, program: Path) -> None:
        # By threads of the executor, what a recording makes would not lie in the recording's memory; on the CPU they
        # wait at a core's cost, and a step of 0.5 s took 0.1 s longer.
        paddle.set_flags({"FLAGS_enable_pir_in_executor_trace_run": True})
        self._path, self._parameters = program, list[Tensor]()
        self._holder = holder = _PirProgramHolder(*_load_pir_program(str(program)))
        self._layer = PartialProgramLayer(
            holder.infer_program, holder.input_vars, holder.output_vars, (self._parameters, holder.persistable_vars)
        )
        self._layer.training = False
        self._layer._prepare_attributes()  # what the first run would do else, while others read parameters

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Takes the parameters, in the order of their file: that of their names.

        Raises:
            CheckpointError: there are more, or fewer.
        """
        known = self._holder._suffix_varname_dict  # name in this process -> name when it was exported
        found = list(tensors)
        if len(found) != len(known):
            raise CheckpointError(self._path, f"{len(known)} parameters", f"{len(found)}, as its file of them has")
        places = {name: place for place, name in enumerate(sorted(known.values()))}
        self._parameters[:] = [found[places[known[name]]] for name in self._holder.persistable_names]

    def get_ready(self, length: int) -> None:
        """Runs it once with other numbers for parameters, on zeros whose open lengths are all `length`; before `fill`.

        A first run makes the executor, which takes as long as a step of 0.2 s; here other threads read parameters
        meanwhile. For programs that meet no other rank. Without rows and tokens, of length 0, it computes nothing.
        """
        self._parameters[:] = _stand_ins(self._holder.persistable_vars)
        shapes = [[length if side < 0 else side for side in one.shape] for one in self._holder.input_vars]
        self(*(paddle.zeros(shape, one.dtype) for shape, one in zip(shapes, self._holder.input_vars, strict=True)))
        self._parameters.clear()

    @paddle.no_grad()
    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the program gives for `inputs`; may be recorded."""
        with _recordable():
            found = self._layer([one.contiguous() for one in inputs])
        return list(found) if isinstance(found, (list, tuple)) else [found]


def _stand_ins(variables: Sequence[Any]) -> list[Tensor]:
    """Returns a tensor of the shape of each, of the same memory where they have the same dtype; whole numbers are 0."""
    most: dict[Any, int] = {}
    for one in variables:
        most[one.dtype] = max(most.get(one.dtype, 0), math.prod(one.shape))
    rooms = {dtype: (paddle.empty if dtype in _REAL else paddle.zeros)([count], dtype) for dtype, count in most.items()}
    return [rooms[one.dtype][: math.prod(one.shape)].view(one.shape) for one in variables]


def _recordable() -> AbstractContextManager[None]:
    """Paddle waits behind each run on a custom device, which would break a recording."""
    if not current().startswith("nvgpu"):
        return nullcontext()
    from sd3par.kernels.nvgpu import waits  # late: its package asks for compilers

    return waits.skipped()

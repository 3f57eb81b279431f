"""Operators of programs on a GPU beside the eager kernels: the same bits, and times of recorded graphs of both.

    python -m tests.static.gpu_operators [--dtype bfloat16] [--layers 24] [--parts step operators] [--only NAME]

Prints a line for each case and size, PASS if all results are bit for bit those of the eager kernels, then a JSON line
of what failed; the exit code is 1 if anything did. `step` is a whole step of SD3-medium with random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.static import InputSpec

from sd3par import cuda_driver, kernels
from sd3par.device import CapturedGraph, choose, stream_handle, synchronize
from sd3par.kernels import static
from sd3par.mesh import Mesh
from sd3par.mmdit import Conditions, Layout, MMDiT
from sd3par.plan import tokens_for
from tests.static.operator_cases import CASES, MAPS, MODEL, SIZES, inputs, save, untranslated

REPEATS = 30
STEP_SIZES = SIZES


def times(functions: list[Callable[[], Any]], target: Any) -> list[float]:
    """Returns the milliseconds of each as a recorded graph, medians, all in turns."""
    graphs = [CapturedGraph(target, function) for function in functions]
    found: list[list[float]] = [[] for _ in graphs]
    for _ in range(REPEATS):
        for graph, own in zip(graphs, found, strict=True):
            start, end = cuda_driver.Event(0), cuda_driver.Event(0)
            start.record(stream_handle())
            graph()
            end.record(stream_handle())
            synchronize()
            own.append(start.elapsed_ms(end))
    for graph in graphs:
        graph.reset()
    return [statistics.median(own) for own in found]


def skipped() -> contextlib.AbstractContextManager[None]:
    """Lets a program run in a capture, where the device is the plug-in's."""
    if paddle.get_device().startswith("nvgpu"):
        from sd3par.kernels.nvgpu import waits

        return waits.skipped()
    return contextlib.nullcontext()


def listed(made: Any) -> list[Tensor]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def run(program: Any, given: list[Tensor]) -> list[Tensor]:
    with skipped(), paddle.no_grad():
        return listed(program(*given))


def different(made: list[Tensor], wanted: list[Tensor]) -> str:
    """Returns "" if all results are the same bits and finite, else what is wrong."""
    if [x.shape for x in made] != [x.shape for x in wanted]:
        return f"shapes {[x.shape for x in made]} for {[x.shape for x in wanted]}"
    for number, (x, y) in enumerate(zip(made, wanted, strict=True)):
        a, b = (one.astype("float32").numpy() for one in (x, y))
        if not np.isfinite(b).all() or not np.array_equal(a, b):
            return f"result {number}: differs by {np.abs(a - b).max():.3g} of {np.abs(b).max():.3g}"
    return ""


def check(name: str, program: Any, function: Callable[..., Any], given: list[Tensor], target: Any) -> tuple[str, str]:
    """Returns the line's name and what is wrong; eager kernels may use their inputs up, so they get copies."""
    made = run(program, given)
    wanted = listed(function(*[x.clone() for x in given]))
    wrong = different(made, wanted)
    own, eager = times([lambda: run(program, given), lambda: function(*given)], target)
    figures = f"program {own:8.4f} ms  eager {eager:8.4f} ms  {own / eager:5.3f}"
    print(f"{'FAIL' if wrong else 'PASS'} {name:<44} {figures} {wrong}", flush=True)
    return name, wrong


class Step(paddle.nn.Layer):
    """A step's prediction and its end, as a program and eagerly."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, context: Tensor, positions: Tensor, modulations: Tensor, scale: Tensor, delta: Tensor,
        uncond: Tensor, cond: Tensor,
    ) -> Tensor:  # fmt: skip
        return _step(self.model, tokens, context, positions, modulations, scale, delta, uncond, cond)


def _step(
    model: MMDiT, tokens: Tensor, context: Tensor, positions: Tensor, modulations: Tensor, scale: Tensor, delta: Tensor,
    uncond: Tensor, cond: Tensor,
) -> Tensor:  # fmt: skip
    """tokens: [B, T, W] fp32; uncond and cond: [B] int64, rows of the prediction. Returns the tokens after the step."""
    layout = Layout(tokens_for(0, 1, 64), tokens_for(0, 1, 64))  # of one rank, which asks for no length
    rows = paddle.concat([tokens, tokens], axis=0)
    prediction = model.step(rows, Conditions(context, positions, modulations, layout), 0)
    halves = (paddle.gather(prediction, one) for one in (uncond, cond))
    return kernels.guidance_euler(tokens, *halves, scale, delta)


def random_model(layers: int, dtype: str) -> MMDiT:
    """SD3-medium with Gaussian weights, such that numbers neither vanish nor explode, on the current device."""
    model = MMDiT(
        dataclasses.replace(MODEL, num_layers=layers, dual_attention_layers=(), qk_norm=None), Mesh.single(), dtype
    )
    model.eval()
    paddle.seed(0)
    for one in model.parameters():
        one.set_value((paddle.randn(one.shape) * (0.02 if one.ndim > 1 else 0.01)).astype(one.dtype))
    return model


def step_specs(model: MMDiT, dtype: str) -> list[InputSpec]:
    width, dim = MODEL.in_channels * MODEL.patch_size**2, MODEL.dim
    count = sum(layer.count for layer in model.modulated_layers())
    shapes = {"tokens": ([None, None, width], "float32"), "context": ([None, None, dim], dtype),
              "positions": ([None, dim], "float32"), "modulations": ([1, None, count, dim], dtype),
              "scale": ([], "float32"), "delta": ([], "float32"), "uncond": ([None], "int64"),
              "cond": ([None], "int64")}  # fmt: skip
    return [InputSpec(shape, kind, name) for name, (shape, kind) in shapes.items()]


def step_inputs(model: MMDiT, sizes: dict[str, int], dtype: str) -> list[Tensor]:
    random, width, dim = np.random.default_rng(1), MODEL.in_channels * MODEL.patch_size**2, MODEL.dim
    count = sum(layer.count for layer in model.modulated_layers())
    shapes = ([1, sizes["T"], width], [2, sizes["C"], dim], [sizes["T"], dim], [1, 2, count, dim])
    made = [paddle.to_tensor(random.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    made[1], made[3] = made[1].astype(dtype), (0.3 * made[3]).astype(dtype)
    return [*made, paddle.to_tensor(7.0), paddle.to_tensor(-0.03), paddle.to_tensor([0]), paddle.to_tensor([1])]


def operators(folder: Path, dtype: str, target: Any, architecture: int, only: str) -> Iterator[tuple[str, str]]:
    """Each in a program of its own, written and loaded."""
    cases = [case for case in CASES if only in case.name]
    with static.tracing(dtype, [architecture]):
        for number, case in enumerate(cases):
            save(case, folder / f"case{number}", dtype)
    for number, case in enumerate(cases):
        program = paddle.jit.load(str(folder / f"case{number}"))
        program.eval()
        for sizes in SIZES[::2]:
            name = f"{case.name} {'x'.join(map(str, sizes.values()))}"
            yield check(name, program, case.function, inputs(case, sizes, dtype), target)


def steps(layers: int, dtype: str, target: Any, architecture: int) -> Iterator[tuple[str, str]]:
    """A whole step by the program that Paddle traces, which holds the model's own weights."""
    step = Step(random_model(layers, dtype))
    step.eval()
    eager = partial(_step, step.model)
    program = paddle.jit.to_static(step, full_graph=True, input_spec=step_specs(step.model, dtype))
    for sizes in STEP_SIZES:
        name = f"step of {layers} blocks {'x'.join(map(str, sizes.values()))}"
        with static.tracing(dtype, [architecture]), paddle.no_grad():  # the first call traces
            yield check(name, program, eager, step_inputs(step.model, sizes, dtype), target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--parts", nargs="+", default=["step", "operators"], choices=["operators", "step"])
    parser.add_argument("--only", default="", help="operators whose case has this in its name")
    given = parser.parse_args()
    paddle.set_flags({"FLAGS_enable_pir_in_executor_trace_run": True})  # as sd3par/static/program.py does
    target, folder = choose(given.dtype, "auto"), Path(tempfile.mkdtemp())
    major, minor = cuda_driver.capability(0)
    untranslated()
    target.activate()
    static.write_operators(folder, given.dtype, [10 * major + minor], MODEL, maps=MAPS)
    static.load_operators(folder)
    found: list[tuple[str, str]] = []
    if "step" in given.parts:
        found += steps(given.layers, given.dtype, target, 10 * major + minor)
    if "operators" in given.parts:
        found += operators(folder, given.dtype, target, 10 * major + minor, given.only)
    failed = {name: wrong for name, wrong in found if wrong}
    print(json.dumps({"checked": len(found), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

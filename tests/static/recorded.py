"""A step as a program in a recording, on the dry device: python -m tests.static.recorded DIR

Prints one JSON object: how many launches the recording has, how many eager code launches, how many addresses that the
recording uses are given to tensors made later, and whether the program's result has the eager one's shape.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import paddle
import triton

from sd3par.device import CapturedGraph, choose
from sd3par.kernels import runtime, static
from tests.static import exports, gpu_operators, launched
from tests.static.operator_cases import MAPS, MODEL, untranslated

DTYPE, SIZES = "bfloat16", {"T": 256, "C": 77}


def used(log: Path, own: list[paddle.Tensor]) -> set[int]:
    """The addresses in noted launches that are not those of tensors made before."""
    values = [value for line in log.read_text().splitlines() for value in line.split()[7:] if len(value) == 16]
    found = {int.from_bytes(bytes.fromhex(value), "little") for value in values}
    places = [(one.data_ptr(), one.data_ptr() + one.size * one.element_size()) for one in own]
    return {x for x in found if x >= launched.ADDRESS and not any(start <= x < end for start, end in places)}


def main() -> None:
    folder, log = Path(sys.argv[1]), Path(os.environ["DRY_LAUNCHES"])
    untranslated()
    paddle.set_device("cpu")
    step = gpu_operators.Step(gpu_operators.random_model(2, DTYPE))
    step.eval()
    specs = gpu_operators.step_specs(step.model, DTYPE)
    with static.tracing(DTYPE, [90]), paddle.no_grad():
        paddle.jit.save(paddle.jit.to_static(step, full_graph=True, input_spec=specs), str(folder / "step"))
    static.write_operators(folder, DTYPE, [90], MODEL, maps=MAPS)
    launched.without_code(folder / "sd3par_kernels.bin")
    triton.knobs.compilation.disable_line_info = True  # as programs' kernels
    launches: list[Any] = []
    runtime._driver = lambda: launched.noting(launches)
    runtime._activate()
    target = choose(DTYPE, "nvgpu")
    target.activate()
    static.load_operators(folder)
    program = exports.loaded(folder / "step.json")
    given = gpu_operators.step_inputs(step.model, SIZES, DTYPE)
    for _ in range(2):
        program(*given)
    log.write_text("")
    graph = CapturedGraph(target, lambda: program(*given), warmups=0)
    made, addresses = len(log.read_text().splitlines()), used(log, given)
    later = [paddle.empty([size], "uint8") for size in (1 << 10, 1 << 16, 1 << 20, 3 << 20, 6 << 20) for _ in range(16)]
    places = [(one.data_ptr(), one.data_ptr() + one.size) for one in later]
    taken = sum(any(start <= x < end for start, end in places) for x in addresses)
    model = gpu_operators.random_model(2, DTYPE)
    launches.clear()
    with paddle.no_grad():
        result = gpu_operators._step(model, *given)
    print(json.dumps({"launches": made, "eager": len(launches), "addresses": len(addresses), "taken": taken,
                      "alike": graph()[0].shape == result.shape}))  # fmt: skip


if __name__ == "__main__":
    main()

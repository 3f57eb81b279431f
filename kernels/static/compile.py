"""Compiles the kernels of an order for GPUs that need not be there: python -m sd3par.kernels.static.compile FILE ORDER

In a process of its own, since it gives Triton a driver that launches nothing. ORDER is a JSON object, as
`build.kernels` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver

from sd3par.config import ModelConfig, parse_config
from sd3par.kernels import runtime
from sd3par.kernels.static import table
from sd3par.kernels.static.stand_ins import Maps, Order, call_all

_PROCESSORS, _SHARED = 132, 232448  # of a GPU that is not there; what is compiled does not depend on them


def driver(architecture: int, made: list[Any]) -> Any:
    """Returns a driver for a GPU that is not there: Triton compiles for it, launches are lost, kernels go to `made`."""

    def launcher(source: Any, metadata: Any) -> Any:  # asked for once a kernel, before its code is loaded
        made.append(SimpleNamespace(src=source, metadata=metadata, asm={}))
        return lambda *arguments: None

    def load(name: str, cubin: bytes, *arguments: int) -> tuple[int, ...]:
        made[-1].asm["cubin"] = cubin
        return (0, 0, 32, 0, 1024)  # module, function, registers, spills, most threads of a block

    properties = {"max_shared_mem": _SHARED, "multiprocessor_count": _PROCESSORS, "warpSize": 32}
    stub = CudaDriver.__new__(CudaDriver)
    stub.utils = SimpleNamespace(
        load_binary=load, get_device_properties=lambda device: properties, unload_module=lambda module: None
    )
    stub.launcher_cls = launcher
    stub.get_current_device = lambda: architecture  # a device an architecture: kernels are kept by device
    stub.get_current_stream = lambda device: 0
    stub.get_current_target = lambda: GPUTarget("cuda", architecture, 32)
    return stub


def compiled(order: Order) -> list[tuple[int, Any]]:
    """Returns every kernel of an order with the architecture that it is for."""
    found: list[tuple[int, Any]] = []
    for architecture in order.architectures:
        made: list[Any] = []
        triton.runtime.driver.set_active(driver(architecture, made))
        call_all(order, architecture)
        found += [(architecture, one) for one in made]
    return found


def read(text: str) -> Order:
    """Returns the order of a JSON object."""
    given = json.loads(text)
    model = parse_config(ModelConfig, given["model"], "model")
    maps: Maps | None = None
    if given["maps"] is not None:
        groups, epsilon, channels, outputs = given["maps"]
        maps = Maps(groups, epsilon, tuple(channels), tuple(outputs))
    return Order(given["dtype"], tuple(given["architectures"]), model, tuple(given["heads"]), maps, given["peers"])


def main() -> None:
    """Writes the file."""
    paddle.set_device("cpu")
    runtime._driver = lambda: None
    runtime._activate()  # keeps torch out, and shares what is compiled with other processes
    triton.knobs.compilation.disable_line_info = True  # paths of this machine
    table.write(Path(sys.argv[1]), compiled(read(sys.argv[2])))


if __name__ == "__main__":
    main()

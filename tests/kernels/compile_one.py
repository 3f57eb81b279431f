"""Compiles one kernel for sm_90 and one module in C, as a launch does: python -m tests.kernels.compile_one [HOLD]

Prints "hold" when compiling begins, and at the end a JSON object: what this process compiled itself. With HOLD it stops
while it compiles the kernel, until it is killed.
"""

from __future__ import annotations

import json
import sys
import time

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import build

from sd3par.kernels import runtime
from sd3par.kernels.runtime import jit, tl

MODULE = """
#include <Python.h>
static struct PyModuleDef answer = {PyModuleDef_HEAD_INIT, "answer", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&answer); }
"""


@jit
def _double(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place) * 2)


def main() -> None:
    runtime._driver = lambda: None
    runtime._activate()
    made = []
    compiler = build._build

    def noted(*arguments: object) -> str:
        made.append("module")
        time.sleep(0.5)  # time for the others to come and see nothing
        return compiler(*arguments)

    def stage(self: object, *arguments: object) -> object:
        made.append("kernel")
        print("compiling", flush=True)
        time.sleep(600 if "HOLD" in sys.argv else 0.5)
        return to_ir(self, *arguments)

    build._build, to_ir, ASTSource.make_ir = noted, ASTSource.make_ir, stage
    print("ready", flush=True)
    sys.stdin.readline()
    signature = {"x": "*fp32", "out": "*fp32", "BLOCK": "constexpr"}
    source = ASTSource(fn=_double, signature=signature, constexprs={(2,): 64})
    begin = time.monotonic()
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    seconds = time.monotonic() - begin
    module = build.compile_module_from_src(MODULE, "answer")
    print(json.dumps({"made": made, "cubin": len(kernel.asm["cubin"]), "module": module.__name__, "seconds": seconds}))


if __name__ == "__main__":
    main()

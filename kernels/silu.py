"""SiLU within a kernel, x / (1 + exp(-x)), in as few instructions as half precision allows."""

from __future__ import annotations

from sd3par.kernels.runtime import INTERPRETED, jit, tl


@jit
def silu(x: tl.tensor) -> tl.tensor:
    """x: [...] fp32. At most 5e-6 of its value wrong, most of it by the product; below -87.3, 1e-36, it is -0.

    Approximate power and reciprocal, of 2 units in the last place, without the six instructions that denormals take.
    """
    if INTERPRETED:
        return x * tl.sigmoid(x)
    else:
        power = x * -1.4426950408889634  # by the logarithm of e: the GPU's powers are of two
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], tl.float32, True, 1)
        return x * tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)

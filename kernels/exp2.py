"""Powers of two within Gluon kernels, shared between the unit for them and the one for sums and products.

Hopper takes as many clocks for the exponentials of attention at head dim 64 as for its products (FlashAttention-4 moves
some of them for that reason).
"""

from __future__ import annotations

from sd3par.kernels.runtime import constexpr_function, gl, gluon_jit


@constexpr_function
def _exp2_text(count: int) -> str:
    """Returns PTX for `count` powers of two, the last of them without the unit that takes the others.

    x = n + f, n whole and f within half of 0; 2^f by a cubic whose relative error is 7.5e-5, a twentieth of bfloat16's.
    """
    lines = [f"ex2.approx.ftz.f32 ${i}, ${count + i};" for i in range(count - 1)]
    out, x = f"${count - 1}", f"${2 * count - 1}"
    lines += [
        "{", ".reg .f32 x, f, p, t;", ".reg .b32 e, n;",
        f"max.ftz.f32 x, {x}, 0fC2FC0000;",  # -126
        "min.ftz.f32 x, x, 0f43010000;",  # 129: from 128 and a bit on, the sum of exponents is that of infinity and NaN
        "add.rn.ftz.f32 t, x, 0f4B400000;",  # 1.5 * 2^23: the sum's last bits are x, rounded
        "mov.b32 n, t;",
        "shl.b32 e, n, 23;",
        "sub.rn.ftz.f32 t, t, 0f4B400000;",
        "sub.rn.ftz.f32 f, x, t;",
        "fma.rn.ftz.f32 p, f, 0f3D61FBB0, 0f3E786F0D;",  # 0.05517167, 0.24261112
        "fma.rn.ftz.f32 p, p, f, 0f3F31798D;",  # 0.69326099
        "fma.rn.ftz.f32 p, p, f, 0f3F7FFB49;",  # 0.99992807
        "mov.b32 n, p;",
        "add.s32 n, n, e;",
        f"mov.b32 {out}, n;",
        "}",
    ]  # fmt: skip
    return "\n".join(lines)


@constexpr_function
def _registers(count: int) -> str:
    """Returns the constraints of the text above: results, then arguments."""
    return ",".join(["=f"] * count + ["f"] * count)


@gluon_jit
def _exp2(x, CUBIC: gl.constexpr):  # type: ignore[no-untyped-def]
    """x: any shape, fp32 -> 2^x; one of CUBIC is computed by the polynomial, none where CUBIC is 0."""
    if CUBIC == 0:
        y = gl.exp2(x)
    else:
        TEXT: gl.constexpr = _exp2_text(CUBIC)
        REGISTERS: gl.constexpr = _registers(CUBIC)
        y = gl.inline_asm_elementwise(TEXT, REGISTERS, [x], gl.float32, True, CUBIC)
    return y

"""The file of compiled kernels that the operators' library reads (src/kernels.cc).

One line says how many kernels follow, then a line each: the function in Python, architecture, the function in the code,
warps, bytes of shared memory, place and size of its code behind the lines, constants, and what each argument is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sd3par.errors import Sd3parError

# The version changes with what kernels mean, too: one process finds those of all its files by name and constants.
MAGIC, VERSION = "sd3par-kernels", 2  # 2: queries come scaled


class CompileError(Sd3parError):
    """A kernel wants something of its launch that the library does not do."""


def write(file: Path, kernels: Sequence[tuple[int, Any]]) -> None:
    """Writes kernels, each with the architecture that it was compiled for: Triton's CompiledKernel."""
    lines: list[str] = []
    codes: list[bytes] = []
    for architecture, kernel in kernels:
        code, place = kernel.asm["cubin"], sum(map(len, codes))
        metadata = kernel.metadata
        _check(kernel.src.fn.__name__, metadata)
        constants = ",".join(f"{name}={value}" for name, value in sorted(_constants(kernel.src))) or "-"
        words = (kernel.src.fn.__name__, architecture, metadata.name, metadata.num_warps, metadata.shared)
        lines.append(" ".join(map(str, (*words, place, len(code), constants, ",".join(_leaves(kernel))))))
        codes.append(code)
    text = "\n".join((f"{MAGIC} {VERSION} {len(lines)}", *lines, ""))
    file.write_bytes(text.encode() + b"".join(codes))


def _check(name: str, metadata: Any) -> None:
    """Refuses what no kernel here has: clusters, launches that overlap or are cooperative, scratch memory."""
    if metadata.num_ctas != 1 or metadata.launch_pdl or metadata.launch_cooperative_grid:
        raise CompileError(f"{name}: the library launches neither clusters nor cooperative grids")
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise CompileError(f"{name}: the library gives kernels no scratch memory")


def _constants(source: Any) -> Iterator[tuple[str, int]]:
    """Names and values of a kernel's constants that are numbers."""
    for number, parameter in enumerate(source.fn.params):
        value = source.constants.get((number,))
        if parameter.is_constexpr and isinstance(value, (bool, int, float)):
            yield parameter.name, _bits(value) if isinstance(value, float) else int(value)


def _bits(value: float) -> int:
    """Returns the bits of a float in fp32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _leaves(kernel: Any) -> list[str]:
    """Returns what each argument is, as `ReadLeaf` in src/kernels.cc reads it; tuples are flattened."""
    source, maps = kernel.src, iter(getattr(kernel.metadata, "tensordesc_meta", None) or ())
    found: list[str] = []
    for number, (parameter, kind) in enumerate(zip(source.fn.params, source.signature.values(), strict=True)):
        if not parameter.is_constexpr:
            found += _walk((number,), kind, source, maps)
    return found


def _walk(path: tuple[int, ...], kind: Any, source: Any, maps: Iterator[Any]) -> Iterator[str]:
    if isinstance(kind, tuple):
        for number, inner in enumerate(kind):
            yield from _walk((*path, number), inner, source, maps)
    elif kind == "constexpr":
        value = source.constants[path]
        yield "none" if value is None else f"={int(value)}"
    elif kind.startswith("tensordesc"):
        yield _map(kind, next(maps))
    elif kind[0] == "*" or kind in ("i32", "i64"):
        divisor = next((value for name, value in source.attrs.get(path, ()) if name == "tt.divisibility"), 1)
        yield f"p:{kind[1:]}:{divisor}" if kind[0] == "*" else f"{kind}:{divisor}"
    else:
        raise CompileError(f"{source.fn.__name__}: an argument of the kind {kind}")


def _map(kind: str, meta: Any) -> str:
    """Returns a tensor map: dtype, swizzle, bytes of an element, the driver's number of the dtype, box."""
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    element = TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]]
    dtype = kind.removeprefix("tensordesc<").split("[")[0]
    box = "x".join(map(str, meta["block_size"]))
    return f"t:{dtype}:{meta['swizzle']}:{meta['elem_size']}:{element}:{box}"

"""One call of one op: its inputs, made the same on every device, and how far its result may be from fp64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

FLOATS = ("float32", "float16", "bfloat16")
# Half a unit in the last place of a result, doubled: one rounding of the inputs' dtype and some of fp32's own.
UNIT = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "float64": 1e-12}


@dataclass(frozen=True)
class Input:
    """A tensor to call with.

    kind: "float" (the case's dtype), or a fixed dtype as "int64", "bool", "float32".
    low, high: floats are uniform in [low, high), integers in [low, high).
    layout: "contiguous"; "transposed" (last two axes swapped in memory); "sliced" (every second element of a wider
        last axis, from an odd offset: [..., 1::2]); "offset" (a slice without its first row, so unaligned).
    """

    shape: tuple[int, ...]
    kind: str = "float"
    low: float = -2.0
    high: float = 2.0
    layout: str = "contiguous"


@dataclass(frozen=True)
class Case:
    """A call of `op` (the name of Paddle's kernel, as it is registered).

    call: takes the tensors, returns one or several; runs unchanged on the GPU and, in fp64, on the CPU.
    name: what is special about this case ("broadcast", "empty", "transposed"); (op, name) is unique.
    reference: what runs on the CPU instead of `call`, for ops that the CPU lacks; gets fp64 tensors.
    dtypes: that "float" inputs have in turn; ("",) for cases without any.
    loss: how many `UNIT`s of the dtype the result may be off, relative to its size: more than 1 for long sums of
        products, and only with a reason in a comment.
    exact: the result must be equal (copies, comparisons, integers).
    """

    op: str
    call: Callable[..., Any]
    inputs: tuple[Input, ...]
    name: str = "plain"
    reference: Callable[..., Any] | None = None
    dtypes: tuple[str, ...] = FLOATS
    loss: float = 1.0
    exact: bool = False
    seed: int = field(default=0, compare=False)


def arrays(case: Case, dtype: str) -> list[np.ndarray]:
    """Returns the inputs' values, floats rounded to `dtype` and given in fp64."""
    draw = np.random.default_rng(case.seed + 1)
    return [_values(draw, spec, dtype) for spec in case.inputs]


def _values(draw: np.random.Generator, spec: Input, dtype: str) -> np.ndarray:
    kind = dtype if spec.kind == "float" else spec.kind
    if kind == "bool":
        return draw.random(spec.shape) < 0.5
    if kind.startswith(("int", "uint")):
        return draw.integers(int(spec.low), int(spec.high), spec.shape).astype(kind)
    return rounded(draw.uniform(spec.low, spec.high, spec.shape), kind)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Returns fp64 values that `dtype` can hold."""
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    return values.astype(dtype).astype(np.float64)


def tensors(case: Case, values: Sequence[np.ndarray], dtype: str) -> list[Tensor]:
    """Returns the inputs on the current device, laid out in memory as the case says; "float" ones in `dtype`."""
    kinds = [dtype if spec.kind == "float" else spec.kind for spec in case.inputs]
    return [_laid_out(value, kind, spec.layout) for value, kind, spec in zip(values, kinds, case.inputs, strict=True)]


def _laid_out(value: np.ndarray, kind: str, layout: str) -> Tensor:
    if layout == "transposed":
        axes = [*range(value.ndim - 2), value.ndim - 1, value.ndim - 2]
        return _tensor(np.ascontiguousarray(value.transpose(axes)), kind).transpose(axes)
    if layout == "sliced":
        wide = np.zeros((*value.shape[:-1], 2 * value.shape[-1] + 1), value.dtype)
        wide[..., 1::2] = value
        return _tensor(wide, kind)[..., 1::2]
    if layout == "offset":
        return _tensor(np.concatenate([value[:1], value]), kind)[1:]
    return _tensor(value, kind)


def _tensor(value: np.ndarray, kind: str) -> Tensor:
    """Casts on the host: what is tested is the op, not how its inputs came to be. uint16 is Paddle's bfloat16."""
    if kind == "bfloat16":
        return paddle.to_tensor((value.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
    return paddle.to_tensor(value.astype(kind))


def results(case: Case, dtype: str, device: str) -> list[np.ndarray]:
    """Returns what the op gives on `device`, floats in fp64, whatever their dtype."""
    paddle.set_device(device)
    return _outputs(case.call(*tensors(case, arrays(case, dtype), dtype)))


def expected(case: Case, dtype: str) -> list[np.ndarray]:
    """Returns what the CPU gives in fp64 for the inputs that `dtype` can hold."""
    paddle.set_device("cpu")
    wide = "float64" if dtype else ""
    return _outputs((case.reference or case.call)(*tensors(case, arrays(case, dtype), wide)))


def _outputs(result: Any) -> list[np.ndarray]:
    several = result if isinstance(result, (list, tuple)) else [result]
    return [_array(one) for one in several]


def _array(tensor: Tensor) -> np.ndarray:
    value = tensor.cpu()
    if value.dtype in (paddle.bfloat16, paddle.float16):
        value = value.astype("float32")
    array = value.numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def error(case: Case, dtype: str, got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Returns the largest error over its allowance: at most 1 is right; infinite where shapes or non-finites differ.

    An element may be off by `loss` units of its own size plus those of the result's root mean square.
    """
    if [one.shape for one in got] != [one.shape for one in want]:
        return float("inf")
    return max((_error(case, dtype, *pair) for pair in zip(got, want, strict=True)), default=0.0)


def _error(case: Case, dtype: str, got: np.ndarray, want: np.ndarray) -> float:
    if got.size == 0:
        return 0.0
    if case.exact or want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want, equal_nan=want.dtype.kind == "f") else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    size = np.abs(want[finite]) + np.sqrt(np.mean(np.square(want[finite])))
    off = np.abs(got[finite] - want[finite])
    return float(np.max(off / (case.loss * UNIT[dtype or "float32"] * np.maximum(size, 1e-30))))

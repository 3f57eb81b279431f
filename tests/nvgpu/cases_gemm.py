"""Matrix products, and those with a bias and an activation."""

from __future__ import annotations

from functools import partial
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from tests.nvgpu.case import Case, Input

HALVES = ("float16", "bfloat16")
# Sums of k products in fp32 end some eps * sqrt(k) away from fp64's, more where they cancel.
SUM = 4.0
LONG_SUM = 10.0
# One rounding to fp16 or bf16 hides them there; 1 would do, but on the CPU the same case is checked in fp32.
LONG_SUM_HALVES = 3.0
# cuBLASLt's GELU may use the GPU's approximate tanh (11 bits) before the result is rounded.
APPROXIMATE = 3.0


def _matmul(name: str, x: tuple[int, ...], y: tuple[int, ...], **more: Any) -> Case:
    layouts = more.pop("layouts", ("contiguous", "contiguous"))
    settings = {key: more.pop(key) for key in ("dtypes", "exact") if key in more}
    loss = more.pop("loss", SUM)
    inputs = (Input(x, layout=layouts[0]), Input(y, layout=layouts[1]))
    return Case("matmul", partial(paddle.matmul, **more), inputs, name, loss=loss, **settings)


MATMUL = [
    _matmul("plain", (16, 24), (24, 32)),
    _matmul("odd", (7, 13), (13, 5)),
    _matmul("one_column", (37, 19), (19, 1)),
    _matmul("one_row", (1, 19), (19, 33)),
    _matmul("one_term", (9, 1), (1, 11)),
    _matmul("transpose_x", (13, 7), (13, 5), transpose_x=True),
    _matmul("transpose_y", (7, 13), (5, 13), transpose_y=True),
    _matmul("transpose_both", (13, 7), (5, 13), transpose_x=True, transpose_y=True),
    _matmul("batched", (3, 7, 12), (3, 12, 5)),
    _matmul("batched_transpose_x", (3, 12, 7), (3, 12, 5), transpose_x=True),
    _matmul("attention", (2, 3, 17, 16), (2, 3, 19, 16), transpose_y=True),
    _matmul("batched_transpose_both", (2, 3, 12, 7), (2, 3, 5, 12), transpose_x=True, transpose_y=True),
    _matmul("linear_3d", (2, 9, 16), (16, 24)),
    _matmul("linear_4d_transpose_y", (2, 3, 5, 16), (24, 16), transpose_y=True),
    _matmul("shared_y_transpose_x", (2, 3, 16, 5), (16, 7), transpose_x=True),
    _matmul("shared_x", (5, 16), (4, 16, 7)),
    _matmul("shared_x_transposed", (16, 5), (2, 4, 7, 16), transpose_x=True, transpose_y=True),
    _matmul("broadcast_ranks", (2, 3, 5, 8), (3, 8, 7)),
    _matmul("broadcast_outer", (3, 5, 8), (2, 1, 8, 7)),
    _matmul("broadcast_inner", (2, 3, 5, 8), (2, 1, 8, 7)),
    _matmul("broadcast_inner_transpose_x", (2, 3, 8, 5), (2, 1, 8, 7), transpose_x=True),
    _matmul("broadcast_both", (2, 1, 5, 8), (1, 3, 8, 7)),
    _matmul("broadcast_middle", (2, 3, 4, 5, 8), (2, 1, 4, 8, 7)),
    _matmul("vectors", (21,), (21,)),
    _matmul("vector_matrix", (21,), (21, 9)),
    _matmul("vector_batch", (21,), (3, 21, 9)),
    _matmul("vector_batch_transpose_y", (21,), (3, 9, 21), transpose_y=True),
    _matmul("matrix_vector", (9, 21), (21,)),
    _matmul("batch_vector", (2, 3, 9, 21), (21,)),
    _matmul("batch_vector_transpose_x", (3, 21, 9), (21,), transpose_x=True),
    _matmul("vectors_ignore_transpose", (21,), (21, 9), transpose_x=True),
    _matmul("matrix_vector_ignores_transpose", (9, 21), (21,), transpose_y=True),
    _matmul("no_rows", (0, 8), (8, 5)),
    _matmul("no_columns", (4, 8), (8, 0)),
    _matmul("no_terms", (4, 0), (0, 5), exact=True),
    _matmul("no_batch", (0, 4, 8), (0, 8, 5)),
    _matmul("no_terms_batched", (2, 4, 0), (2, 0, 5), exact=True),
    _matmul("strided", (3, 8, 12), (3, 12, 6), layouts=("transposed", "sliced")),
    _matmul("unaligned", (9, 17), (17, 25), layouts=("offset", "offset")),
    _matmul("unaligned_batched", (4, 9, 17), (4, 17, 25), layouts=("offset", "offset")),
    _matmul("tiles", (300, 200), (200, 260)),
    _matmul("long_sum", (33, 4096), (4096, 65), dtypes=("float32",), loss=LONG_SUM),
    _matmul("long_sum_halves", (33, 4096), (4096, 65), dtypes=HALVES, loss=LONG_SUM_HALVES),
    _matmul("few_rows", (2, 1536), (1536, 520), dtypes=("float32",), loss=LONG_SUM),
    _matmul("few_rows_halves", (2, 1536), (1536, 520), dtypes=HALVES, loss=LONG_SUM_HALVES),
    _matmul("float64", (9, 65), (65, 17), dtypes=("float64",)),
]

OTHERS = [
    Case("bmm", paddle.bmm, (Input((3, 7, 12)), Input((3, 12, 5))), loss=SUM),
    Case("bmm", paddle.bmm, (Input((3, 8, 12), layout="transposed"), Input((3, 12, 5))), "strided", loss=SUM),
    Case("bmm", paddle.bmm, (Input((0, 7, 12)), Input((0, 12, 5))), "empty"),
    Case("bmm", paddle.bmm, (Input((2, 70, 130)), Input((2, 130, 90))), "tiles", loss=SUM),
    Case("mv", paddle.mv, (Input((9, 21)), Input((21,))), loss=SUM),
    Case("mv", paddle.mv, (Input((300, 513)), Input((513,), layout="sliced")), "odd", loss=LONG_SUM),
    Case("dot", paddle.dot, (Input((21,)), Input((21,))), loss=SUM),
    Case("dot", paddle.dot, (Input((5, 21)), Input((5, 21))), "rows", loss=SUM),
]

_addmm = partial(paddle.addmm, beta=0.5, alpha=-2.0)
_baddbmm = partial(paddle.baddbmm, beta=0.5, alpha=-2.0)
ADDMM = [
    Case("addmm", _addmm, (Input((7, 5)), Input((7, 13)), Input((13, 5))), loss=SUM),
    Case("addmm", _addmm, (Input((5,)), Input((7, 13)), Input((13, 5))), "row", loss=SUM),
    Case("addmm", _addmm, (Input((7, 1)), Input((7, 13)), Input((13, 5))), "column", loss=SUM),
    Case("addmm", partial(paddle.addmm, beta=0.0), (Input((7, 5)), Input((7, 13)), Input((13, 5))), "beta_0", loss=SUM),
    Case("addmm", _addmm, (Input((7, 5)), Input((7, 0)), Input((0, 5))), "no_terms"),
    Case("addmm", _addmm, (Input((0, 5)), Input((0, 13)), Input((13, 5))), "empty"),
    Case("addmm", _addmm, (Input((300, 70)), Input((300, 90)), Input((90, 70))), "tiles", loss=SUM),
    Case("baddbmm", _baddbmm, (Input((3, 7, 5)), Input((3, 7, 13)), Input((3, 13, 5))), loss=SUM),
    Case("baddbmm", _baddbmm, (Input((3, 1, 5)), Input((3, 7, 13)), Input((3, 13, 5))), "row", loss=SUM),
    Case("baddbmm", _baddbmm, (Input((1, 7, 5)), Input((3, 7, 13)), Input((3, 13, 5))), "shared", loss=SUM),
]


def _linear(x: Tensor, weight: Tensor, bias: Tensor, transpose: bool = False) -> Tensor:
    return paddle._C_ops.linear_v2(x, weight, bias, transpose)


def _biased(name: str, x: Input, weight: tuple[int, ...], bias: Input, transpose: bool = False, **more: Any) -> Case:
    call = partial(_linear, transpose=transpose)
    return Case("linear_v2", call, (x, Input(weight), bias), name, loss=SUM, **more)


LINEAR = [
    _biased("plain", Input((6, 16)), (16, 24), Input((24,))),
    _biased("odd", Input((2, 7, 13)), (13, 5), Input((5,))),
    _biased("scalar_bias", Input((2, 7, 13)), (13, 5), Input((1,))),
    _biased("one_column", Input((7, 13)), (13, 1), Input((1,))),
    _biased("empty", Input((0, 13)), (13, 8), Input((8,))),
    _biased("strided", Input((3, 8, 16), layout="transposed"), (16, 24), Input((24,), layout="sliced")),
    _biased("unaligned", Input((9, 13), layout="offset"), (13, 24), Input((24,), layout="sliced")),
    _biased("transposed", Input((2, 7, 16)), (24, 16), Input((24,)), transpose=True),
    _biased("float64", Input((7, 13)), (13, 5), Input((5,)), dtypes=("float64",)),
]


def _epilogue(x: Tensor, y: Tensor, bias: Tensor, activation: str = "none", **transposes: bool) -> Tensor:
    trans_x, trans_y = transposes.get("trans_x", False), transposes.get("trans_y", False)
    return paddle._C_ops.fused_gemm_epilogue(x, y, bias, trans_x, trans_y, activation)[0]


def _plain_epilogue(x: Tensor, y: Tensor, bias: Tensor, activation: str = "none", **transposes: bool) -> Tensor:
    trans_x, trans_y = transposes.get("trans_x", False), transposes.get("trans_y", False)
    result = paddle.matmul(x, y, trans_x, trans_y) + bias
    if activation == "gelu":
        return F.gelu(result, approximate=True)
    return F.relu(result) if activation == "relu" else result


def _fused(name: str, x: tuple[int, ...], y: tuple[int, int], columns: int, **more: Any) -> Case:
    """Weights of about 1 / sqrt(k), so that the results lie where GELU bends."""
    settings = {key: more.pop(key) for key in ("dtypes", "exact") if key in more}
    loss, layout = more.pop("loss", SUM), more.pop("layout", "contiguous")
    reach = 1.5 / x[-1] ** 0.5 if x[-1] else 1.0
    inputs = (Input(x, layout=layout), Input(y, low=-reach, high=reach, layout=layout), Input((columns,)))
    call, reference = partial(_epilogue, **more), partial(_plain_epilogue, **more)
    return Case("fused_gemm_epilogue", call, inputs, name, reference, loss=loss, **settings)


# Paddle itself asks for a multiple of 8 columns with GELU and of 128 with ReLU.
FUSED = [
    _fused("none", (6, 16), (16, 24), 24),
    _fused("none_odd", (2, 7, 13), (13, 5), 5),
    _fused("none_transpose_x", (16, 6), (16, 24), 24, trans_x=True),
    _fused("none_transpose_y", (2, 5, 16), (24, 16), 24, trans_y=True),
    _fused("none_transpose_both", (16, 6), (24, 16), 24, trans_x=True, trans_y=True),
    _fused("none_unaligned", (7, 13), (13, 9), 9, layout="offset"),
    _fused("none_no_rows", (0, 16), (16, 24), 24),
    _fused("none_no_terms", (6, 0), (0, 24), 24, exact=True),
    _fused("relu", (2, 9, 16), (16, 128), 128, activation="relu"),
    _fused("relu_odd", (3, 13), (13, 128), 128, activation="relu", trans_y=False),
    _fused("gelu", (2, 9, 16), (16, 24), 24, activation="gelu"),
    _fused("gelu_transpose_y", (9, 13), (40, 13), 40, activation="gelu", trans_y=True),
    _fused("gelu_no_terms", (6, 0), (0, 24), 24, activation="gelu"),
    _fused("gelu_tiles", (300, 260), (260, 520), 520, activation="gelu", loss=LONG_SUM, dtypes=("float32",)),
    _fused("gelu_tiles_halves", (300, 260), (260, 520), 520, activation="gelu", loss=APPROXIMATE, dtypes=HALVES),
    _fused("gelu_few_rows", (2, 1536), (1536, 1024), 1024, activation="gelu", loss=LONG_SUM, dtypes=("float32",)),
    _fused("gelu_few_rows_halves", (2, 1536), (1536, 1024), 1024, activation="gelu", loss=APPROXIMATE, dtypes=HALVES),
    _fused("float64", (7, 13), (13, 24), 24, activation="gelu", dtypes=("float64",)),
]

CASES = [*MATMUL, *OTHERS, *ADDMM, *LINEAR, *FUSED]

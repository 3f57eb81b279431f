"""Joint attention for Hopper, in Gluon: one warp copies by TMA, and each group of four warps has 64 queries.

The structure is FlashAttention-3's (arXiv 2407.08608): a group multiplies the next block's scores and the last block's
weighted values while it takes exponentials. Whatever this does not take, `attention_triton` does; that kernel is also
its twin in the interpreter, which knows no Gluon. The kernel itself is in attention_hopper_kernel.py.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par.kernels.attention import LOG2_E, check_segments
from sd3par.kernels.attention_hopper_kernel import _attention_hopper
from sd3par.kernels.runtime import architecture, descriptor, empty, launch, processors

HEAD_DIM = 64
_GROUP = 64  # queries of a warp group: the rows of a product of Hopper's
_REGISTERS = {2: 240, 3: 160}  # of a thread, by warp groups that multiply: together with 24 of the copying one, all


class Plan(NamedTuple):
    """How the kernel cuts its work.

    queries: of a program, 128 or 192; keys: of a block; stages: blocks of keys in flight; turns: groups start their
    products in turn; cubic: of so many exponentials one is a polynomial (0: none); anchored: weights of bfloat16 are
    relative to the first block's largest score; held: queries are in registers.
    """

    queries: int
    keys: int
    stages: int
    turns: bool = False
    cubic: int = 0
    anchored: bool = False
    held: bool = False


PLANS = {128: Plan(128, 128, 2), 192: Plan(192, 128, 2)}
_LESS = 0.94  # of a query's time, what it takes among 192: fewer copies of keys and values (measured on H200)


def plan_for(tokens: tuple[int, ...], pairs: int, processors: int) -> Plan:
    """Returns the plan whose last round of tiles leaves least undone.

    tokens: of each segment; pairs: of rows and heads; processors: of the device.
    """

    def time(queries: int) -> float:
        tiles = pairs * sum(-(-count // queries) for count in tokens)
        return -(-tiles // processors) * queries * (_LESS if queries == 192 else 1.0)

    return PLANS[min(PLANS, key=time)]


def fits(segments: list[Tensor]) -> bool:
    """Returns whether TMA can read the segments, each [R, Ti, 3, heads, head_dim] of half precision."""
    return architecture() // 10 == 9 and all(_readable(x) for x in segments)


def _readable(x: Tensor) -> bool:
    heads, head_dim = x.shape[3:]
    row, token, *inner = x.strides
    dense = inner == [heads * head_dim, head_dim, 1]
    aligned = all(stride > 0 and stride % 8 == 0 for stride in (row, token)) and x.data_ptr() % 16 == 0  # 16 bytes
    return head_dim == HEAD_DIM and dense and aligned


def attention_hopper(segments: list[Tensor], plan: Plan | None = None) -> list[Tensor]:
    """What `attention_triton` does, for segments that `fits`."""
    rows, heads, head_dim = check_segments(segments)
    outs = [empty([rows, x.shape[1], heads * head_dim], x) for x in segments]
    filled = [i for i, x in enumerate(segments) if x.shape[1]]  # TMA knows no empty tensors
    if not filled:
        return outs
    one, two = filled[0], filled[-1]
    tokens = segments[one].shape[1], segments[two].shape[1] if two != one else 0
    plan = plan or plan_for(tokens, rows * heads, processors())
    tiles = rows * heads * sum(-(-count // plan.queries) for count in tokens)
    programs, groups = min(tiles, processors()), plan.queries // _GROUP
    launch(
        _attention_hopper, (programs,), _tokens_of(segments[one]), _tokens_of(segments[two]), outs[one], outs[two],
        empty([programs, groups], outs[one], paddle.int32), *tokens, rows, heads, QUERIES=plan.queries, KEYS=plan.keys,
        STAGES=plan.stages, TURNS=plan.turns, CUBIC=plan.cubic,
        ANCHORED=plan.anchored and outs[one].dtype == paddle.bfloat16, HELD=plan.held, REGISTERS=_REGISTERS[groups],
        SCALE=LOG2_E * head_dim**-0.5, num_warps=4,
    )  # fmt: skip
    return outs


def _tokens_of(x: Tensor) -> object:
    """x: [R, T, 3, heads, head_dim] as TMA sees it, [R, T, 3 * heads * head_dim], read by 64 tokens of one head."""
    rows, tokens, three, heads, head_dim = x.shape
    return descriptor(x, [rows, tokens, three * heads * head_dim], [*x.strides[:2], 1], (1, _GROUP, head_dim))

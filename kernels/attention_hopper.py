"""Joint attention for Hopper, in Gluon: one warp copies by TMA, and each group of four warps has 64 queries.

The structure is FlashAttention-3's (arXiv 2407.08608): a group multiplies the next block's scores and the last block's
weighted values while it takes exponentials. Whatever this does not take, `attention_triton` does; that kernel is also
its twin in the interpreter, which knows no Gluon. The kernel itself is in attention_hopper_kernel.py.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

from sd3par.kernels.attention import Scattered, check_segments, targets_of
from sd3par.kernels.attention_hopper_kernel import _attention_hopper
from sd3par.kernels.attention_hopper_split import Plan, planned, programs_of
from sd3par.kernels.runtime import architecture, descriptor, empty, launch, processors

HEAD_DIM = 64
_GROUP = 64  # queries of a warp group: the rows of a product of Hopper's
_GROUPS = 2  # that multiply: the queries of a tile
_KEYS, _STAGES = 128, 3  # of a block, and blocks of keys in flight; measured on H200, as the number of groups
_REGISTERS = 240  # of a thread that multiplies: together with 24 of the copying warp's, all there are


def fits(segments: list[Tensor]) -> bool:
    """Returns whether TMA can read the segments, each [R, Ti, 3, heads, head_dim] of half precision."""
    return architecture() // 10 == 9 and all(_readable(x) for x in segments)


def _readable(x: Tensor) -> bool:
    heads, head_dim = x.shape[3:]
    row, token, *inner = x.strides
    dense = inner == [heads * head_dim, head_dim, 1]
    aligned = all(stride > 0 and stride % 8 == 0 for stride in (row, token)) and x.data_ptr() % 16 == 0  # 16 bytes
    return head_dim == HEAD_DIM and dense and aligned


def attention_hopper(
    segments: list[Tensor], outs: list[Scattered] | None = None, plan: Plan | None = None
) -> list[Tensor]:
    """What `attention_triton` does, for segments that `fits`; plan: instead of the one that should be fastest."""
    rows, heads, head_dim = check_segments(segments)
    made, targets = targets_of(segments, outs)
    filled = [i for i, x in enumerate(segments) if x.shape[1]]  # TMA knows no empty tensors
    if not filled:
        return made
    one, two = filled[0], filled[-1]
    like, tokens = segments[one], (segments[one].shape[1], segments[two].shape[1] if two != one else 0)
    tiles = rows * heads * sum(-(-count // (_GROUPS * _GROUP)) for count in tokens)
    plan = plan or planned(tiles, sum(-(-count // _KEYS) for count in tokens), processors())
    programs = programs_of(plan, tiles, processors())
    parts = [tiles - plan.whole + programs, _GROUPS, _GROUP * head_dim + 2 * _GROUP]
    launch(
        _attention_hopper, (programs,), _tokens_of(segments[one]), _tokens_of(segments[two]), targets[one],
        targets[two], empty([programs, _GROUPS], like, paddle.int32), empty(parts, like, paddle.float32),
        _arrivals(like.place), *tokens, rows, heads, *plan, KEYS=_KEYS, STAGES=_STAGES,
        ANCHORED=like.dtype == paddle.bfloat16, REGISTERS=_REGISTERS, num_warps=4,
    )  # fmt: skip
    return made


_arrived: dict[str, Tensor] = {}


def _arrivals(place: object) -> Tensor:
    """Returns a device's counters, int32, which every launch leaves at 0, for launches one after another.

    They are made in the first launch, which nobody records: it compiles.
    """
    key = str(place)
    if key not in _arrived:
        _arrived[key] = paddle.zeros([_GROUPS * processors()], dtype="int32")
    return _arrived[key]


def _tokens_of(x: Tensor) -> object:
    """x: [R, T, 3, heads, head_dim] as TMA sees it, [R, T, 3 * heads * head_dim], read by 64 tokens of one head."""
    rows, tokens, three, heads, head_dim = x.shape
    return descriptor(x, [rows, tokens, three * heads * head_dim], [*x.strides[:2], 1], (1, _GROUP, head_dim))

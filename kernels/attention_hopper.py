"""Joint attention for Hopper, in Gluon: one warp copies by TMA, and each group of four warps has 64 queries.

The structure is FlashAttention-3's (arXiv 2407.08608): a group multiplies the next block's scores and the last block's
weighted values while it takes exponentials. Whatever this does not take, `attention_triton` does; that kernel is also
its twin in the interpreter, which knows no Gluon.
"""

from __future__ import annotations

from typing import NamedTuple

from paddle import Tensor

from sd3par.kernels.attention import LOG2_E, check_segments
from sd3par.kernels.exp2 import _exp2
from sd3par.kernels.runtime import (
    architecture,
    descriptor,
    empty,
    gl,
    gluon_jit,
    hopper,
    launch,
    processors,
)

HEAD_DIM = 64
_GROUP = 64  # queries of a warp group: the rows of a product of Hopper's
_REGISTERS = {2: 240, 3: 160}  # of a thread, by warp groups that multiply: together with 24 of the copying one, all


class Plan(NamedTuple):
    """How the kernel cuts its work.

    queries: of a program, 128 or 192; keys: of a block; stages: blocks of keys in flight; turns: groups start their
    products in turn; cubic: of so many exponentials one is a polynomial (0: none); persistent: a program a processor,
    not one a tile.
    """

    queries: int
    keys: int
    stages: int
    turns: bool = False
    cubic: int = 0
    persistent: bool = True


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
    launch(
        _attention_hopper, (min(tiles, processors()) if plan.persistent else tiles,),
        _tokens_of(segments[one]), _tokens_of(segments[two]), outs[one], outs[two], *tokens, rows, heads,
        QUERIES=plan.queries, KEYS=plan.keys, STAGES=plan.stages, TURNS=plan.turns, CUBIC=plan.cubic,
        REGISTERS=_REGISTERS[plan.queries // _GROUP], SCALE=LOG2_E * head_dim**-0.5, num_warps=4,
    )  # fmt: skip
    return outs


def _tokens_of(x: Tensor) -> object:
    """x: [R, T, 3, heads, head_dim] as TMA sees it, [R, T, 3 * heads * head_dim], read by 64 tokens of one head."""
    rows, tokens, three, heads, head_dim = x.shape
    return descriptor(x, [rows, tokens, three * heads * head_dim], [*x.strides[:2], 1], (1, _GROUP, head_dim))


@gluon_jit
def _next(index, phase, COUNT: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next buffer of a ring, and the phase of its barriers, which changes with every round."""
    index += 1
    wraps = index == COUNT
    return gl.where(wraps, 0, index), gl.where(wraps, phase ^ 1, phase)


@gluon_jit
def _place(tile, work, QUERIES: gl.constexpr):  # type: ignore[no-untyped-def]
    """Where a tile is: whether in the first segment, its first token there, head and row."""
    first_tokens, second_tokens, rows, heads = work
    first_blocks = gl.cdiv(first_tokens, QUERIES)
    blocks = first_blocks + gl.cdiv(second_tokens, QUERIES)
    block = tile % blocks
    head = tile // blocks % heads
    row = tile // blocks // heads
    in_first = block < first_blocks
    return in_first, gl.where(in_first, block, block - first_blocks) * QUERIES, head, row


@gluon_jit
def _tiles(work, QUERIES: gl.constexpr):  # type: ignore[no-untyped-def]
    first_tokens, second_tokens, rows, heads = work
    return (gl.cdiv(first_tokens, QUERIES) + gl.cdiv(second_tokens, QUERIES)) * heads * rows


@gluon_jit
def _copy(source, row, token, column, ready, target):  # type: ignore[no-untyped-def]
    """Starts the copy of a block of tokens, 64 at a time; what lies behind the segment's end arrives as zeros."""
    ROWS: gl.constexpr = target.shape[0]
    BOX: gl.constexpr = source.block_type.shape
    hopper.mbarrier.expect(ready, ROWS * BOX[2] * 2)
    for piece in gl.static_range(ROWS // 64):
        part = target.slice(64 * piece, 64)._reinterpret(target.dtype, BOX, source.layout)
        hopper.tma.async_copy_global_to_shared(source, [row, token + 64 * piece, column], ready, part)


@gluon_jit
def _copy_keys(  # type: ignore[no-untyped-def]
    source, tokens, row, k_column, v_column, index, phase, bufs, bars
):
    """Copies all keys and values of a segment into the rings, as room becomes free."""
    _, k_bufs, v_bufs = bufs
    _, _, k_ready, k_empty, v_ready, v_empty, _ = bars
    STAGES: gl.constexpr = k_bufs.shape[0]
    KEYS: gl.constexpr = k_bufs.shape[1]
    for begin in range(0, tokens, KEYS):
        hopper.mbarrier.wait(k_empty.index(index), phase ^ 1)
        _copy(source, row, begin, k_column, k_ready.index(index), k_bufs.index(index))
        hopper.mbarrier.wait(v_empty.index(index), phase ^ 1)
        _copy(source, row, begin, v_column, v_ready.index(index), v_bufs.index(index))
        index, phase = _next(index, phase, STAGES)
    return index, phase


@gluon_jit
def _produce(first, second, work, bufs, bars):  # type: ignore[no-untyped-def]
    """The copying warp: the queries of every tile, then all keys and values."""
    first_tokens, second_tokens, rows, heads = work
    q_bufs = bufs[0]
    q_ready, q_empty = bars[0], bars[1]
    GROUPS: gl.constexpr = q_bufs.shape[0]
    DIM: gl.constexpr = q_bufs.shape[2]
    index = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    q_phase = gl.to_tensor(0)
    for tile in range(gl.program_id(0), _tiles(work, 64 * GROUPS), gl.num_programs(0)):
        in_first, begin, head, row = _place(tile, work, 64 * GROUPS)
        for group in gl.static_range(GROUPS):
            hopper.mbarrier.wait(q_empty.index(group), q_phase ^ 1)
            if in_first:
                _copy(first, row, begin + 64 * group, head * DIM, q_ready.index(group), q_bufs.index(group))
            else:
                _copy(second, row, begin + 64 * group, head * DIM, q_ready.index(group), q_bufs.index(group))
        k_column = (heads + head) * DIM
        v_column = (2 * heads + head) * DIM
        index, phase = _copy_keys(first, first_tokens, row, k_column, v_column, index, phase, bufs, bars)
        index, phase = _copy_keys(second, second_tokens, row, k_column, v_column, index, phase, bufs, bars)
        q_phase ^= 1


@gluon_jit
def _hide(scores, block, work):  # type: ignore[no-untyped-def]
    """Takes what lies behind a segment's last key out of the scores of a block."""
    first_tokens, second_tokens, rows, heads = work
    KEYS: gl.constexpr = scores.shape[1]
    first_blocks = gl.cdiv(first_tokens, KEYS)
    in_first = block < first_blocks
    count = gl.where(in_first, first_tokens - block * KEYS, second_tokens - (block - first_blocks) * KEYS)
    if count < KEYS:
        key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, scores.type.layout))
        scores = gl.where((key < count)[None, :], scores, -float("inf"))
    return scores


@gluon_jit
def _softmax(scores, top, total, SCALE: gl.constexpr, CUBIC: gl.constexpr):  # type: ignore[no-untyped-def]
    new_top = gl.maximum(top, gl.max(scores, 1) * SCALE)
    weights = _exp2(scores * SCALE - new_top[:, None], CUBIC)
    fade = gl.exp2(top - new_top)
    return weights, fade, new_top, total * fade + gl.sum(weights, 1)


@gluon_jit
def _attend(  # type: ignore[no-untyped-def]
    q, work, bufs, bars, rings, GROUP: gl.constexpr, GROUPS: gl.constexpr, SCALE: gl.constexpr, TURNS: gl.constexpr,
    CUBIC: gl.constexpr,
):  # fmt: skip
    """q: [64, head_dim] in shared memory -> its attention to all keys, and the rings behind them.

    It waits for the next block's keys before the sums are complete: only across such a wait, a branch, does the
    assembler leave the exponentials where they overlap the products.
    """
    first_tokens, second_tokens, rows, heads = work
    _, k_bufs, v_bufs = bufs
    _, q_empty, k_ready, k_empty, v_ready, v_empty, turns = bars
    k_index, k_phase, v_index, v_phase, turn = rings
    STAGES: gl.constexpr = k_bufs.shape[0]
    KEYS: gl.constexpr = k_bufs.shape[1]
    DIM: gl.constexpr = k_bufs.shape[2]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, KEYS, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    dtype: gl.constexpr = q.dtype
    blocks = gl.cdiv(first_tokens, KEYS) + gl.cdiv(second_tokens, KEYS)
    none = gl.zeros([64, KEYS], gl.float32, SCORES)
    acc = gl.zeros([64, DIM], gl.float32, SUMS)
    top = gl.full([64], -float("inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.zeros([64], gl.float32, gl.SliceLayout(1, SCORES))
    hopper.mbarrier.wait(k_ready.index(k_index), k_phase)
    scores = hopper.warpgroup_mma(q, k_bufs.index(k_index).permute((1, 0)), none, use_acc=False, is_async=True)
    scores = hopper.warpgroup_mma_wait(0, deps=[scores])
    hopper.mbarrier.arrive(k_empty.index(k_index))
    k_index, k_phase = _next(k_index, k_phase, STAGES)
    weights, fade, top, total = _softmax(_hide(scores, 0, work), top, total, SCALE, CUBIC)
    p = gl.convert_layout(weights.to(dtype), WEIGHTS)
    hopper.mbarrier.wait(k_ready.index(k_index), k_phase, pred=blocks > 1)
    for block in range(1, blocks):
        if TURNS:
            hopper.mbarrier.wait(turns.index(GROUP), turn)
            turn ^= 1
        scores = hopper.warpgroup_mma(q, k_bufs.index(k_index).permute((1, 0)), none, use_acc=False, is_async=True)
        hopper.mbarrier.wait(v_ready.index(v_index), v_phase)
        acc = hopper.warpgroup_mma(p, v_bufs.index(v_index), acc, is_async=True)
        if TURNS:
            hopper.mbarrier.arrive(turns.index((GROUP + 1) % GROUPS))
        scores = hopper.warpgroup_mma_wait(1, deps=[scores])
        hopper.mbarrier.arrive(k_empty.index(k_index))
        k_index, k_phase = _next(k_index, k_phase, STAGES)
        weights, fade, top, total = _softmax(_hide(scores, block, work), top, total, SCALE, CUBIC)
        hopper.mbarrier.wait(k_ready.index(k_index), k_phase, pred=block + 1 < blocks)
        acc = hopper.warpgroup_mma_wait(0, deps=[acc])
        hopper.mbarrier.arrive(v_empty.index(v_index))
        v_index, v_phase = _next(v_index, v_phase, STAGES)
        acc = acc * gl.convert_layout(fade, gl.SliceLayout(1, SUMS))[:, None]
        p = gl.convert_layout(weights.to(dtype), WEIGHTS)
    hopper.mbarrier.arrive(q_empty.index(GROUP))
    hopper.mbarrier.wait(v_ready.index(v_index), v_phase)
    acc = hopper.warpgroup_mma(p, v_bufs.index(v_index), acc, is_async=True)
    acc = hopper.warpgroup_mma_wait(0, deps=[acc])
    hopper.mbarrier.arrive(v_empty.index(v_index))
    v_index, v_phase = _next(v_index, v_phase, STAGES)
    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, SUMS))[:, None]
    return acc, (k_index, k_phase, v_index, v_phase, turn)


@gluon_jit
def _consume(  # type: ignore[no-untyped-def]
    outs, work, bufs, bars, GROUP: gl.constexpr, GROUPS: gl.constexpr, SCALE: gl.constexpr, TURNS: gl.constexpr,
    CUBIC: gl.constexpr,
):  # fmt: skip
    """One warp group: 64 queries of every tile."""
    first_tokens, second_tokens, rows, heads = work
    q_ready = bars[0]
    zero = gl.to_tensor(0)
    rings = (zero, zero, zero, zero, gl.to_tensor(1 if GROUP == 0 else 0))
    q_phase = zero
    q = bufs[0].index(GROUP)
    for tile in range(gl.program_id(0), _tiles(work, 64 * GROUPS), gl.num_programs(0)):
        in_first, begin, head, row = _place(tile, work, 64 * GROUPS)
        begin += 64 * GROUP
        hopper.mbarrier.wait(q_ready.index(GROUP), q_phase)
        q_phase ^= 1
        acc, rings = _attend(q, work, bufs, bars, rings, GROUP, GROUPS, SCALE, TURNS, CUBIC)
        if in_first:
            _store(outs[0], acc, row, begin, first_tokens, head, heads)
        else:
            _store(outs[1], acc, row, begin, second_tokens, head, heads)


@gluon_jit
def _store(out, acc, row, begin, tokens, head, heads):  # type: ignore[no-untyped-def]
    DIM: gl.constexpr = acc.shape[1]
    token = begin + gl.arange(0, 64, layout=gl.SliceLayout(1, acc.type.layout))
    column = gl.arange(0, DIM, layout=gl.SliceLayout(0, acc.type.layout))
    place = (row.to(gl.int64) * tokens + token) * (heads * DIM) + head * DIM
    gl.store(out + place[:, None] + column[None, :], acc.to(out.dtype.element_ty), mask=(token < tokens)[:, None])


@gluon_jit
def _barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):  # type: ignore[no-untyped-def]
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], hopper.mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        hopper.mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon_jit
def _attention_hopper(  # type: ignore[no-untyped-def]
    first, second, first_out, second_out, first_tokens, second_tokens, rows, heads,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr,
    CUBIC: gl.constexpr, REGISTERS: gl.constexpr, SCALE: gl.constexpr,
):  # fmt: skip
    """Each program takes tiles of queries, each of one head and row, as long as there are any.

    SCALE: log2(e) / sqrt(head_dim), for exp2; REGISTERS: a thread's of the groups that multiply.
    """
    GROUPS: gl.constexpr = QUERIES // 64
    DIM: gl.constexpr = first.block_type.shape[2]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    bufs = (
        gl.allocate_shared_memory(first.dtype, [GROUPS, 64, DIM], SHARED),
        gl.allocate_shared_memory(first.dtype, [STAGES, KEYS, DIM], SHARED),
        gl.allocate_shared_memory(first.dtype, [STAGES, KEYS, DIM], SHARED),
    )
    bars = (
        _barriers(GROUPS, 1), _barriers(GROUPS, 1), _barriers(STAGES, 1), _barriers(STAGES, GROUPS),
        _barriers(STAGES, 1), _barriers(STAGES, GROUPS), _barriers(GROUPS, 1),
    )  # fmt: skip
    outs = (first_out, second_out)
    work = (first_tokens, second_tokens, rows, heads)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (outs, work, bufs, bars, 0, GROUPS, SCALE, TURNS, CUBIC)),
                (_consume, (outs, work, bufs, bars, 1, GROUPS, SCALE, TURNS, CUBIC)),
                (_produce, (first, second, work, bufs, bars)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (outs, work, bufs, bars, 0, GROUPS, SCALE, TURNS, CUBIC)),
                (_consume, (outs, work, bufs, bars, 1, GROUPS, SCALE, TURNS, CUBIC)),
                (_consume, (outs, work, bufs, bars, 2, GROUPS, SCALE, TURNS, CUBIC)),
                (_produce, (first, second, work, bufs, bars)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )

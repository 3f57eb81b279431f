"""The kernel of `attention_hopper`, in Gluon: a warp that copies by TMA, and groups of four warps with 64 queries each.

Three ways to the weights of keys, 2 ** score. "rising", as everywhere: relative to the largest score so far; when it
rises, sums fade. "anchored": relative to the largest score of the first block, whatever follows. bfloat16 has the
exponents of fp32, so no digit is lost until a score is 127 above that anchor and its weight infinite. Then a tile's
results are not finite, and its program does it again in the usual way, when it has done all others. That needs no
largest score of a block, no exponential for it and no scaling of sums. "near": where all 64 queries' anchors are near
0, relative to 0, and nothing is subtracted. A block takes 416, 310 and 246 instructions of a thread. Each costs time
where a card is at the limit of its power, as in a step of a large picture: two rows of 1024 x 1024 take 482 us anchored
and 464 near, a loop of SD3-medium with near ones 0.980 of its time on a card that ran hot, 0.996 on a cooler one (one
run each, by a script).

Hence what did not help, measured on an H200: FlashAttention-4's powers by polynomials, in place of 1/8, 1/4 or 3/8 of
those by the special function unit, which is busy for as long as the tensor cores are. Fewer wait, and more is computed:
two rows of 1024 x 1024 took 530, 521 and 557 us instead of 481, and only those of one row at 512 x 512, on a cool card,
31.7 instead of 32.2. Without the 64 additions of weights to their sums (a wrong result) it was no faster.
"""

from __future__ import annotations

from functools import partial

from sd3par.kernels.attention_hopper_copy import _again, _bit, _counts, _holds, _place, _produce
from sd3par.kernels.attention_hopper_split import _join, _turn, _turns
from sd3par.kernels.rings import _barriers, _next
from sd3par.kernels.runtime import gl, gluon_jit, hopper


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
def _first_scores(q, k, block, work):  # type: ignore[no-untyped-def]
    """q: [64, head_dim], k: [KEYS, head_dim] in shared memory -> [64, KEYS]."""
    KEYS: gl.constexpr = k.shape[0]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, KEYS, 16])
    none = gl.zeros([64, KEYS], gl.float32, SCORES)
    scores = hopper.warpgroup_mma(q, k.permute((1, 0)), none, use_acc=False, is_async=True)
    return _hide(hopper.warpgroup_mma_wait(0, deps=[scores]), block, work)


@gluon_jit
def _is_near(top):  # type: ignore[no-untyped-def]
    """top: [64], largest scores of rows -> whether all are so near 0 that none vanishes, with 2**64 of room above."""
    return gl.max(gl.abs(top), 0) <= 64.0


@gluon_jit
def _lane_sums(x):  # type: ignore[no-untyped-def]
    """x: [64, KEYS] -> [64, 4], the sums of what each of a row's four threads holds."""
    parts = x.reshape([64, x.shape[1] // 8, 4, 2])
    return gl.sum(gl.sum(parts, 3), 1)


@gluon_jit
def _attend(q, start, end, work, bufs, bars, rings, ANCHORED: gl.constexpr):  # type: ignore[no-untyped-def]
    """q: [64, head_dim] in shared memory or registers, to attend to blocks start .. end of keys.

    Returns its sums [64, head_dim] and [64], what they are relative to [64], and the rings behind those blocks.
    """
    _, k_bufs, v_bufs = bufs
    _, _, k_ready, k_empty, v_ready, v_empty, _ = bars
    k_index, k_phase, v_index, v_phase = rings
    STAGES: gl.constexpr = k_bufs.shape[0]
    DIM: gl.constexpr = k_bufs.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, DIM, 16])
    acc = gl.zeros([64, DIM], gl.float32, SUMS)
    hopper.mbarrier.wait(k_ready.index(k_index), k_phase)
    scores = _first_scores(q, k_bufs.index(k_index), start, work)
    hopper.mbarrier.arrive(k_empty.index(k_index))
    k_index, k_phase = _next(k_index, k_phase, STAGES)
    top = gl.max(scores, 1)
    if ANCHORED:
        near = _is_near(top)
        top = gl.where(near, 0.0, top)
    weights = gl.exp2(scores - top[:, None])
    total = _lane_sums(weights)
    p = gl.convert_layout(weights.to(q.dtype), gl.DotOperandLayout(0, SUMS, 2))
    hopper.mbarrier.wait(k_ready.index(k_index), k_phase, pred=start + 1 < end)
    sums, inner = (acc, total, top, p), (k_index, k_phase, v_index, v_phase)
    if not ANCHORED:
        sums, inner = _blocks(q, start, end, work, bufs, bars, inner, sums, "rising")
    elif near:
        sums, inner = _blocks(q, start, end, work, bufs, bars, inner, sums, "near")
    else:
        sums, inner = _blocks(q, start, end, work, bufs, bars, inner, sums, "anchored")
    acc, total, top, p = sums
    k_index, k_phase, v_index, v_phase = inner
    hopper.mbarrier.wait(v_ready.index(v_index), v_phase)
    acc = hopper.warpgroup_mma(p, v_bufs.index(v_index), acc)
    hopper.mbarrier.arrive(v_empty.index(v_index))
    v_index, v_phase = _next(v_index, v_phase, STAGES)
    total = gl.convert_layout(gl.sum(total, 1), gl.SliceLayout(1, SUMS))
    return acc, total, gl.convert_layout(top, gl.SliceLayout(1, SUMS)), (k_index, k_phase, v_index, v_phase)


@gluon_jit
def _blocks(q, start, end, work, bufs, bars, rings, sums, WAY: gl.constexpr):  # type: ignore[no-untyped-def]
    """All blocks but the first: adds the weighted values of each before it takes the weights of the next.

    It waits for the next block's keys before the sums are complete: only across such a wait, a branch, does the
    assembler leave the exponentials where they overlap the products.
    """
    _, k_bufs, v_bufs = bufs
    _, _, k_ready, k_empty, v_ready, v_empty, _ = bars
    k_index, k_phase, v_index, v_phase = rings
    acc, total, top, p = sums
    STAGES: gl.constexpr = k_bufs.shape[0]
    KEYS: gl.constexpr = k_bufs.shape[1]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, KEYS, 16])
    none = gl.full([64, KEYS], 0.0, gl.float32, SCORES)
    for block in range(start + 1, end):
        scores = hopper.warpgroup_mma(q, k_bufs.index(k_index).permute((1, 0)), none, use_acc=False, is_async=True)
        hopper.mbarrier.wait(v_ready.index(v_index), v_phase)
        acc = hopper.warpgroup_mma(p, v_bufs.index(v_index), acc, is_async=True)
        scores = _hide(hopper.warpgroup_mma_wait(1, deps=[scores]), block, work)
        hopper.mbarrier.arrive(k_empty.index(k_index))
        k_index, k_phase = _next(k_index, k_phase, STAGES)
        if WAY == "rising":
            new_top = gl.maximum(top, gl.max(scores, 1))
            fade = gl.exp2(top - new_top)
            top = new_top
            total = total * gl.convert_layout(fade, gl.SliceLayout(1, total.type.layout))[:, None]
        weights = gl.exp2(scores if WAY == "near" else scores - top[:, None])
        total += _lane_sums(weights)
        hopper.mbarrier.wait(k_ready.index(k_index), k_phase, pred=block + 1 < end)
        acc = hopper.warpgroup_mma_wait(0, deps=[acc])
        hopper.mbarrier.arrive(v_empty.index(v_index))
        v_index, v_phase = _next(v_index, v_phase, STAGES)
        if WAY == "rising":
            acc = acc * gl.convert_layout(fade, gl.SliceLayout(1, acc.type.layout))[:, None]
        p = gl.convert_layout(weights.to(q.dtype), p.type.layout)
    return (acc, total, top, p), (k_index, k_phase, v_index, v_phase)


@gluon_jit
def _consume(  # type: ignore[no-untyped-def]
    targets, work, plan, scratch, bufs, bars, GROUP: gl.constexpr, ANCHORED: gl.constexpr
):  # fmt: skip
    """One warp group: 64 queries of every tile."""
    done = bars[6]
    failed = scratch[0]
    GROUPS: gl.constexpr = bufs[0].shape[0]
    zero, every = gl.to_tensor(0), gl.to_tensor(-1)
    rings, broken = _consume_tiles(
        targets, work, plan, scratch, every, every, bufs, bars, (zero, zero, zero, zero, zero), GROUP, ANCHORED,
        ANCHORED, False,
    )  # fmt: skip
    if ANCHORED:
        gl.store(failed + gl.program_id(0) * GROUPS + GROUP, broken)
        hopper.mbarrier.arrive(done.index(0))
        hopper.mbarrier.wait(done.index(0), 0)
        _consume_tiles(
            targets, work, plan, scratch, _again(failed, GROUPS), broken, bufs, bars, rings, GROUP, False, True,
            True,
        )  # fmt: skip


@gluon_jit
def _consume_tiles(  # type: ignore[no-untyped-def]
    targets, work, plan, scratch, which, mine, bufs, bars, rings, GROUP: gl.constexpr,
    ANCHORED: gl.constexpr, HELD: gl.constexpr, AGAIN: gl.constexpr,
):  # fmt: skip
    """The program's turns that `which` holds, of which it stores those that `mine` holds.

    Returns the rings and the turns whose sums are not finite. HELD: queries are in registers, of which the anchored
    loop leaves enough. AGAIN: no tile is split.
    """
    GROUPS: gl.constexpr = bufs[0].shape[0]
    KEYS: gl.constexpr = bufs[1].shape[1]
    first_tokens, second_tokens, rows, heads = work
    q_ready, q_empty = bars[0], bars[1]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, KEYS, 16])
    k_index, k_phase, v_index, v_phase, q_phase = rings
    broken = gl.to_tensor(0)
    tiles, blocks = _counts(work, 64 * GROUPS, KEYS)
    for count in range(_turns(plan)):
        tile, start, end = _turn(count, tiles, blocks, plan)
        taken = (start < end) & _holds(which, count)
        if AGAIN:
            start, end = gl.to_tensor(0), blocks
        if taken:
            in_first, begin, head, row = _place(tile, work, 64 * GROUPS)
            begin += 64 * GROUP
            hopper.mbarrier.wait(q_ready.index(GROUP), q_phase)
            q_phase ^= 1
            inner = (k_index, k_phase, v_index, v_phase)
            if HELD:
                q = bufs[0].index(GROUP).load(gl.DotOperandLayout(0, SCORES, 2))
                hopper.mbarrier.arrive(q_empty.index(GROUP))
            else:
                q = bufs[0].index(GROUP)
            acc, total, top, inner = _attend(q, start, end, work, bufs, bars, inner, ANCHORED)
            k_index, k_phase, v_index, v_phase = inner
            if not HELD:
                hopper.mbarrier.arrive(q_empty.index(GROUP))
            complete = _holds(mine, count)
            if not AGAIN:
                complete = end - start == blocks
                acc, total, complete = _join(acc, total, top, complete, tile, blocks, plan, scratch, GROUP, GROUPS)
            if complete:
                if ANCHORED:
                    broken |= _unbounded(acc, total) << _bit(count)
                result = (acc / total[:, None]).to(bufs[0].dtype)
                if in_first:
                    _store(targets[0], result, row, begin, first_tokens, head)
                else:
                    _store(targets[1], result, row, begin, second_tokens, head)
    return (k_index, k_phase, v_index, v_phase, q_phase), broken


@gluon_jit
def _unbounded(acc, total):  # type: ignore[no-untyped-def]
    """1 if a sum is infinite or no number, 0 if none is."""
    INFINITE: gl.constexpr = float("inf")
    row = gl.max(gl.where(gl.abs(acc) < INFINITE, 0, 1), 1)
    return gl.max(gl.where(total < INFINITE, row, 1), 0)


@gluon_jit
def _store(target, result, row, begin, tokens, head):  # type: ignore[no-untyped-def]
    """Stores tokens begin .. begin + 64 of one head, those below `tokens`, to a target of `targets_of`.

    For other devices 8 threads write a row's 128 bytes at once: as products leave them, they are in pieces of 16.
    """
    base, size, row_stride, token_stride = target
    DIM: gl.constexpr = result.shape[1]
    SCATTERED: gl.constexpr = base.dtype.element_ty == gl.int64
    if SCATTERED:
        ROWS: gl.constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [0, 4], [4, 0], [8, 0]], [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]],
            [[16, 0], [32, 0]], [], [64, 64],
        )  # fmt: skip
        result = gl.convert_layout(result, ROWS)
    token = begin + gl.arange(0, 64, layout=gl.SliceLayout(1, result.type.layout))
    column = gl.arange(0, DIM, layout=gl.SliceLayout(0, result.type.layout))
    inside = token < tokens
    if SCATTERED:
        address = gl.load(base + token // size, mask=inside, other=0)
        base = gl.multiple_of(address.to(gl.pointer_type(result.dtype)), [16])
        token %= size
    place = row.to(gl.int64) * row_stride + token.to(gl.int64) * token_stride + head * DIM
    gl.store((base + place)[:, None] + column[None, :], result, mask=inside[:, None])


_SIZES = ("first_tokens", "second_tokens", "rows", "heads", "whole", "share", "span")


@partial(gluon_jit, of_any_value=_SIZES)
def _attention_hopper(  # type: ignore[no-untyped-def]
    first, second, first_target, second_target, failed, parts, arrived,
    first_tokens, second_tokens, rows, heads, whole, share, span,
    KEYS: gl.constexpr, STAGES: gl.constexpr, ANCHORED: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Each program takes tiles of queries, each of one head and row, as whole, share and span say, which are a Plan's.

    failed: [programs, 2] int32, room for what groups tell each other; parts: fp32, room for sums of parts of tiles, as
    large as _pointers wants it; arrived: an int32 for each group of 64 queries of tiles that are split, 0 before and
    after; REGISTERS: a thread's of the groups that multiply.
    """
    GROUPS: gl.constexpr = 2
    DIM: gl.constexpr = first.block_type.shape[2]
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    bufs = (
        gl.allocate_shared_memory(first.dtype, [GROUPS, 64, DIM], SHARED),
        gl.allocate_shared_memory(first.dtype, [STAGES, KEYS, DIM], SHARED),
        gl.allocate_shared_memory(first.dtype, [STAGES, KEYS, DIM], SHARED),
    )
    bars = (
        _barriers(GROUPS, 1), _barriers(GROUPS, 1), _barriers(STAGES, 1), _barriers(STAGES, GROUPS),
        _barriers(STAGES, 1), _barriers(STAGES, GROUPS), _barriers(1, GROUPS),
    )  # fmt: skip
    targets = (first_target, second_target)
    work = (first_tokens, second_tokens, rows, heads)
    plan = (whole, share, span)
    scratch = (failed, parts, arrived)
    gl.warp_specialize(
        [
            (_consume, (targets, work, plan, scratch, bufs, bars, 0, ANCHORED)),
            (_consume, (targets, work, plan, scratch, bufs, bars, 1, ANCHORED)),
            (_produce, (first, second, work, plan, failed, bufs, bars, ANCHORED)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )

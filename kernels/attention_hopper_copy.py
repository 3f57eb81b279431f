"""What the kernel of `attention_hopper` has one warp for: copies by TMA, in the order that the groups need them.

A ring of buffers has two barriers for each: "ready", where its bytes arrive, and "empty", where groups do that have
read it. Which tiles a program takes, and where they are, is here too: all its warps count them alike.
"""

from __future__ import annotations

from sd3par.kernels.attention_hopper_split import _turn, _turns
from sd3par.kernels.rings import _next
from sd3par.kernels.runtime import gl, gluon_jit, hopper


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
def _counts(work, QUERIES: gl.constexpr, KEYS: gl.constexpr):  # type: ignore[no-untyped-def]
    """How many tiles there are, and how many blocks of keys for each."""
    first_tokens, second_tokens, rows, heads = work
    tiles = (gl.cdiv(first_tokens, QUERIES) + gl.cdiv(second_tokens, QUERIES)) * heads * rows
    return tiles, gl.cdiv(first_tokens, KEYS) + gl.cdiv(second_tokens, KEYS)


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
    source, start, end, tokens, row, k_column, v_column, index, phase, bufs, bars
):
    """Copies blocks start .. end of a segment's keys and values into the rings, as room becomes free."""
    _, k_bufs, v_bufs = bufs
    _, _, k_ready, k_empty, v_ready, v_empty, _ = bars
    STAGES: gl.constexpr = k_bufs.shape[0]
    KEYS: gl.constexpr = k_bufs.shape[1]
    for begin in range(start * KEYS, gl.minimum(end * KEYS, tokens), KEYS):
        hopper.mbarrier.wait(k_empty.index(index), phase ^ 1)
        _copy(source, row, begin, k_column, k_ready.index(index), k_bufs.index(index))
        hopper.mbarrier.wait(v_empty.index(index), phase ^ 1)
        _copy(source, row, begin, v_column, v_ready.index(index), v_bufs.index(index))
        index, phase = _next(index, phase, STAGES)
    return index, phase


@gluon_jit
def _produce(  # type: ignore[no-untyped-def]
    first, second, work, plan, failed, bufs, bars, ANCHORED: gl.constexpr
):
    """The copying warp."""
    _, _, _, _, _, _, done = bars
    zero = gl.to_tensor(0)
    rings = _produce_tiles(first, second, work, plan, gl.to_tensor(-1), bufs, bars, (zero, zero, zero), False)
    if ANCHORED:
        hopper.mbarrier.wait(done.index(0), 0)
        which = _again(failed, bufs[0].shape[0])
        _produce_tiles(first, second, work, plan, which, bufs, bars, rings, True)


@gluon_jit
def _produce_tiles(  # type: ignore[no-untyped-def]
    first, second, work, plan, which, bufs, bars, rings, AGAIN: gl.constexpr
):
    """Copies the queries, then keys and values, of the program's turns that `which` holds; returns the rings."""
    first_tokens, second_tokens, rows, heads = work
    q_bufs, k_bufs = bufs[0], bufs[1]
    q_ready, q_empty = bars[0], bars[1]
    GROUPS: gl.constexpr = q_bufs.shape[0]
    DIM: gl.constexpr = q_bufs.shape[2]
    KEYS: gl.constexpr = k_bufs.shape[1]
    index, phase, q_phase = rings
    tiles, blocks = _counts(work, 64 * GROUPS, KEYS)
    first_blocks = gl.cdiv(first_tokens, KEYS)
    for count in range(_turns(plan)):
        tile, start, end = _turn(count, tiles, blocks, plan)
        taken = (start < end) & _holds(which, count)
        if AGAIN:
            start, end = gl.to_tensor(0), blocks
        if taken:
            in_first, begin, head, row = _place(tile, work, 64 * GROUPS)
            for group in gl.static_range(GROUPS):
                hopper.mbarrier.wait(q_empty.index(group), q_phase ^ 1)
                if in_first:
                    _copy(first, row, begin + 64 * group, head * DIM, q_ready.index(group), q_bufs.index(group))
                else:
                    _copy(second, row, begin + 64 * group, head * DIM, q_ready.index(group), q_bufs.index(group))
            k = (heads + head) * DIM
            v = (2 * heads + head) * DIM
            index, phase = _copy_keys(first, start, end, first_tokens, row, k, v, index, phase, bufs, bars)
            index, phase = _copy_keys(
                second,
                gl.maximum(start - first_blocks, 0),
                end - first_blocks,
                second_tokens,
                row,
                k,
                v,
                index,
                phase,
                bufs,
                bars,
            )
            q_phase ^= 1
    return index, phase, q_phase


@gluon_jit
def _bit(count):  # type: ignore[no-untyped-def]
    """The bit that stands for a program's turn: parts of tiles have one each, of whole tiles every 30th has the same.

    A part is not done again for another's sake: of its tile, other programs have other rows to write.
    """
    return gl.where(count < 2, count, 2 + (count - 2) % 30)


@gluon_jit
def _holds(which, count):  # type: ignore[no-untyped-def]
    """Whether a program's turn `count` is to be done."""
    return (which >> _bit(count)) & 1 != 0


@gluon_jit
def _again(failed, GROUPS: gl.constexpr):  # type: ignore[no-untyped-def]
    """Which turns of the program have sums that some group found not finite."""
    failed += gl.program_id(0) * GROUPS
    which = gl.load(failed)
    for group in gl.static_range(1, GROUPS):
        which |= gl.load(failed + group)
    return which

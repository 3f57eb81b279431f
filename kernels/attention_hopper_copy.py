"""What the kernel of `attention_hopper` has one warp for: copies by TMA, in the order that the groups need them.

A ring of buffers has two barriers for each: "ready", where its bytes arrive, and "empty", where groups do that have
read it. Which tiles a program takes, and where they are, is here too: all its warps count them alike.
"""

from __future__ import annotations

from sd3par.kernels.runtime import gl, gluon_jit, hopper


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
def _produce(first, second, work, failed, bufs, bars, ANCHORED: gl.constexpr):  # type: ignore[no-untyped-def]
    """The copying warp."""
    _, _, _, _, _, _, done = bars
    zero = gl.to_tensor(0)
    rings = _produce_tiles(first, second, work, gl.to_tensor(-1), bufs, bars, (zero, zero, zero))
    if ANCHORED:
        hopper.mbarrier.wait(done.index(0), 0)
        _produce_tiles(first, second, work, _again(failed, bufs[0].shape[0]), bufs, bars, rings)


@gluon_jit
def _produce_tiles(first, second, work, which, bufs, bars, rings):  # type: ignore[no-untyped-def]
    """Copies the queries, then all keys and values, of the program's tiles that `which` holds; returns the rings."""
    first_tokens, second_tokens, rows, heads = work
    q_bufs = bufs[0]
    q_ready, q_empty = bars[0], bars[1]
    GROUPS: gl.constexpr = q_bufs.shape[0]
    DIM: gl.constexpr = q_bufs.shape[2]
    index, phase, q_phase = rings
    count = gl.to_tensor(0)
    for tile in range(gl.program_id(0), _tiles(work, 64 * GROUPS), gl.num_programs(0)):
        if _holds(which, count):
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
        count += 1
    return index, phase, q_phase


@gluon_jit
def _holds(which, count):  # type: ignore[no-untyped-def]
    """Whether a program's tile `count` is to be done: a bit stands for every 32nd tile."""
    return (which >> (count & 31)) & 1 != 0


@gluon_jit
def _again(failed, GROUPS: gl.constexpr):  # type: ignore[no-untyped-def]
    """Which tiles of the program some group found not finite."""
    failed += gl.program_id(0) * GROUPS
    which = gl.load(failed)
    for group in gl.static_range(1, GROUPS):
        which |= gl.load(failed + group)
    return which

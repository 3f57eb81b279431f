"""The kernel of `linear_hopper`, in Gluon: a warp that copies by TMA, and groups of four warps with 64 rows of a tile.

Programs stay, and take tiles from a table (linear_hopper_tiles.py says what is in it). A ring of buffers has two
barriers for each: "ready", where its bytes arrive, and "empty", where groups do that have read it. While a group stores
its results the copying warp goes on with the next tile, and the other groups multiply: each is LEAD steps behind the
one before it, or all would store at once and nobody would multiply.

Two programs may be a cluster: their tiles have the same columns, and each copies half of the weight for both. Then a
buffer is free when groups of both have read it. A program without rows of its own copies its half all the same.
"""

from __future__ import annotations

from sd3par.kernels.clusters import _arrive, _copy_to_both, _meet, _show_barriers
from sd3par.kernels.linear_hopper_results import (
    _finish,
    _nothing_kept,
    _packed,
    _rows_of,
    _store_all,
    _store_kept,
)
from sd3par.kernels.rings import _barriers, _next
from sd3par.kernels.runtime import gl, gluon_jit, hopper


@gluon_jit
def _line(table, slot):  # type: ignore[no-untyped-def]
    """A program's line of the table: a slot is a tile of each program; the first line of all is the table's own."""
    return table + (1 + slot * gl.num_programs(0) + gl.program_id(0)) * 16


@gluon_jit
def _address(first, second, line):  # type: ignore[no-untyped-def]
    """From where places of a tile's line count."""
    return gl.where(gl.load(line) == 0, first[3], second[3])


@gluon_jit
def _copy_step(  # type: ignore[no-untyped-def]
    x, weight, rows, row, column, term, ready, bufs, index, GROUPS: gl.constexpr, CLUSTER: gl.constexpr
):
    """Starts the copies of 64 terms: of x for the groups that have rows, and of the weight."""
    a_bufs, b_bufs, _ = bufs
    COLUMNS: gl.constexpr = b_bufs.shape[2]
    for count in gl.static_range(2 - CLUSTER, GROUPS + 1):
        some = (rows > 64 * (count - 1)) & (rows <= 64 * count)
        hopper.mbarrier.expect(ready, (64 * count + COLUMNS) * 64 * 2, pred=some)
    if CLUSTER > 1:
        _copy_half(weight, column, term, ready, b_bufs, index)
    else:
        hopper.tma.async_copy_global_to_shared(weight, [term, column], ready, b_bufs.index(index))
    for group in gl.static_range(GROUPS):
        target = a_bufs.index(index * GROUPS + group)
        hopper.tma.async_copy_global_to_shared(x, [row + 64 * group, term], ready, target, pred=rows > 64 * group)


@gluon_jit
def _copy_half(weight, column, term, ready, b_bufs, index):  # type: ignore[no-untyped-def]
    """Starts the copies of this program's 32 of 64 terms of the weight, to both programs of a cluster.

    A buffer is 64 columns behind 64 columns, [64, 64] each, of which that is a half.
    """
    STAGES: gl.constexpr = b_bufs.shape[0]
    PARTS: gl.constexpr = b_bufs.shape[2] // 64
    halves = b_bufs._reinterpret(b_bufs.dtype, [STAGES * PARTS * 2, 32, 64], weight.layout)
    half = gl.program_id(0) % 2
    for part in gl.static_range(PARTS):
        target = halves.index((index * PARTS + part) * 2 + half)
        _copy_to_both(weight, [term + 32 * half, column + 64 * part], ready, target)


@gluon_jit
def _produce(first, second, table, bufs, bars, GROUPS: gl.constexpr, CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """The copying warp: all steps of all tiles, as room becomes free."""
    _meet(CLUSTER)
    slots = gl.load(table).to(gl.int32)
    steps = gl.load(table + 1).to(gl.int32)
    ready, empty, _ = bars
    STAGES: gl.constexpr = bufs[1].shape[0]
    index = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    for slot in range(slots):
        line = _line(table, slot)
        stream = gl.load(line)
        row = gl.load(line + 1).to(gl.int32)
        rows = gl.load(line + 2).to(gl.int32)
        column = gl.load(line + 3).to(gl.int32)
        if rows != 0:
            for step in range(steps):
                hopper.mbarrier.wait(empty.index(index), phase ^ 1)
                bar = ready.index(index)
                if stream == 0:
                    _copy_step(first[0], first[1], rows, row, column, step * 64, bar, bufs, index, GROUPS, CLUSTER)
                else:
                    _copy_step(second[0], second[1], rows, row, column, step * 64, bar, bufs, index, GROUPS, CLUSTER)
                index, phase = _next(index, phase, STAGES)
    if CLUSTER > 1:  # the program must not end before the other's groups have arrived at its barriers
        for _ in gl.static_range(STAGES):
            hopper.mbarrier.wait(empty.index(index), phase ^ 1)
            index, phase = _next(index, phase, STAGES)


@gluon_jit
def _step(  # type: ignore[no-untyped-def]
    acc, step, ring, leads, bufs, bars, GROUP: gl.constexpr, GROUPS: gl.constexpr, LEAD: gl.constexpr,
    CLUSTER: gl.constexpr, FIRST: gl.constexpr = False,
):  # fmt: skip
    """Starts a step, waits for the one before it and gives its buffer back.

    ring: the next buffer, its phase, the buffer of the step before; returns the sums and these three behind the step.
    """
    a_bufs, b_bufs, _ = bufs
    ready, empty, led = bars
    index, phase, last = ring
    hopper.mbarrier.wait(ready.index(index), phase)
    a = a_bufs.index(index * GROUPS + GROUP)
    acc = hopper.warpgroup_mma(a, b_bufs.index(index), acc, use_acc=not FIRST, is_async=True)
    acc = hopper.warpgroup_mma_wait(1, deps=[acc])
    if not FIRST:
        _arrive(empty.index(last), CLUSTER)
        if LEAD > 0 and GROUP + 1 < GROUPS:
            hopper.mbarrier.arrive(led.index(GROUP), pred=leads & (step == LEAD))
    last = index
    index, phase = _next(index, phase, b_bufs.shape[0])
    return acc, index, phase, last


@gluon_jit
def _multiply(  # type: ignore[no-untyped-def]
    steps, ring, leads, left, bufs, bars, GROUP: gl.constexpr, GROUPS: gl.constexpr, LEAD: gl.constexpr,
    CLUSTER: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """A group's sums of a tile, [64, COLUMNS], the last step not waited for; and the ring, as of `_step`.

    LATE: it stores what is `left` of the tile before, 64 columns behind each of the first steps.
    """
    index, phase = ring
    COLUMNS: gl.constexpr = bufs[1].shape[2]
    PARTS: gl.constexpr = COLUMNS // 64 if LATE else 1
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, COLUMNS, 16])
    none = gl.zeros([64, COLUMNS], gl.float32, SUMS)
    ring = (index, phase, index)
    acc, index, phase, last = _step(none, 0, ring, leads, bufs, bars, GROUP, GROUPS, LEAD, CLUSTER, True)
    if LATE:
        kept, address, line = left
        rows = _rows_of(line, GROUP)
        _store_kept(kept, address, line, rows, 0)
        for step in gl.static_range(1, PARTS):
            ring = (index, phase, last)
            acc, index, phase, last = _step(acc, step, ring, leads, bufs, bars, GROUP, GROUPS, LEAD, CLUSTER)
            _store_kept(kept, address, line, rows, step)
    for step in range(PARTS, steps):
        ring = (index, phase, last)
        acc, index, phase, last = _step(acc, step, ring, leads, bufs, bars, GROUP, GROUPS, LEAD, CLUSTER)
    return acc, index, phase, last


@gluon_jit
def _pass(steps, ring, bars, STAGES: gl.constexpr, CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """What a group does that has no rows of a tile: it gives the buffers back; returns the ring behind the tile."""
    ready, empty, _ = bars
    index, phase = ring
    for _ in range(steps):
        hopper.mbarrier.wait(ready.index(index), phase)
        _arrive(empty.index(index), CLUSTER)
        index, phase = _next(index, phase, STAGES)
    return index, phase


@gluon_jit
def _consume(  # type: ignore[no-untyped-def]
    first, second, table, bufs, bars, GROUP: gl.constexpr, GROUPS: gl.constexpr, LEAD: gl.constexpr,
    GELU: gl.constexpr, BIASED: gl.constexpr, CLUSTER: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """One warp group: 64 rows of every tile."""
    _meet(CLUSTER)
    slots = gl.load(table).to(gl.int32)
    steps = gl.load(table + 1).to(gl.int32)
    columns = gl.load(table + 2).to(gl.int32)
    _, b_bufs, bias_bufs = bufs
    STAGES: gl.constexpr = b_bufs.shape[0]
    COLUMNS: gl.constexpr = b_bufs.shape[2]
    FLAT: gl.constexpr = gl.BlockedLayout([COLUMNS // 128], [32], [4], [0])
    index = gl.to_tensor(0)
    phase = gl.to_tensor(0)
    rows = gl.load(_line(table, 0) + 2)
    nothing = _line(table, slots)  # a line of no rows
    kept, kept_line = _nothing_kept(COLUMNS, LATE), nothing
    bias_buf = bias_bufs.index(GROUP)
    if LEAD > 0 and GROUP > 0:
        hopper.mbarrier.wait(bars[2].index(GROUP - 1), 0, pred=rows > 64 * (GROUP - 1))
    for slot in range(slots + 1 if LATE else slots):  # the last tile's results are stored where the next would be
        line = _line(table, slot)
        next_rows = gl.load(_line(table, gl.minimum(slot + 1, slots)) + 2)
        if rows > 64 * GROUP:
            in_first = gl.load(line) == 0
            if BIASED:
                column = gl.load(line + 3).to(gl.int32) + gl.arange(0, COLUMNS, layout=FLAT)
                bias = gl.load(gl.where(in_first, first[2], second[2]) + column, mask=column < columns, other=0.0)
            left = (kept, _address(first, second, kept_line), kept_line)
            acc, index, phase, last = _multiply(
                steps, (index, phase), slot == 0, left, bufs, bars, GROUP, GROUPS, LEAD, CLUSTER, LATE
            )
            if BIASED:
                bias_buf.store(bias)
            acc = hopper.warpgroup_mma_wait(0, deps=[acc])
            _arrive(bars[1].index(last), CLUSTER)
            if LATE:
                kept, kept_line = _packed(acc, bias_buf, 0, GELU, BIASED), line
            else:
                _finish(acc, _address(first, second, line), line, bias_buf, GROUP, GELU, BIASED)
        else:
            if LATE:
                _store_all(kept, _address(first, second, kept_line), kept_line, GROUP)
                kept_line = nothing
            if rows != 0:
                index, phase = _pass(steps, (index, phase), bars, STAGES, CLUSTER)
        rows = next_rows


@gluon_jit
def _idle(CLUSTER: gl.constexpr):  # type: ignore[no-untyped-def]
    """Warps that are there because there are always four: they only meet, as all of a cluster must."""
    _meet(CLUSTER)


@gluon_jit
def _linear_hopper(  # type: ignore[no-untyped-def]
    x, weight, bias, address, x2, weight2, bias2, address2, table,
    GROUPS: gl.constexpr, COLUMNS: gl.constexpr, STAGES: gl.constexpr, LEAD: gl.constexpr, CLUSTER: gl.constexpr,
    GELU: gl.constexpr, BIASED: gl.constexpr, REGISTERS: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """Each program does its tiles of the table.

    x, weight: [M, K] and [K, N] of TMA, read by [64, 64] and [64, COLUMNS], in clusters of two [32, 64]; bias: [N];
    address: from which the stream's places count. Those with a 2 are the second stream's. REGISTERS: a thread's of the
    groups that multiply. LATE: a tile's results are stored while the next is multiplied.
    """
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    bufs = (
        gl.allocate_shared_memory(x.dtype, [STAGES * GROUPS, 64, 64], SHARED),
        gl.allocate_shared_memory(x.dtype, [STAGES, 64, COLUMNS], SHARED),
        gl.allocate_shared_memory(x.dtype, [GROUPS, COLUMNS], FLAT),
    )
    bars = (_barriers(STAGES, 1), _barriers(STAGES, GROUPS * CLUSTER), _barriers(GROUPS, 1))
    _show_barriers(CLUSTER)
    one, two = (x, weight, bias, address), (x2, weight2, bias2, address2)
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (one, two, table, bufs, bars, 0, GROUPS, LEAD, GELU, BIASED, CLUSTER, LATE)),
                (_consume, (one, two, table, bufs, bars, 1, GROUPS, LEAD, GELU, BIASED, CLUSTER, LATE)),
                (_produce, (one, two, table, bufs, bars, GROUPS, CLUSTER)),
                (_idle, (CLUSTER,)),
                (_idle, (CLUSTER,)),
            ],
            [4, 1, 1, 2],
            [REGISTERS, 24, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (one, two, table, bufs, bars, 0, GROUPS, LEAD, GELU, BIASED, CLUSTER, LATE)),
                (_consume, (one, two, table, bufs, bars, 1, GROUPS, LEAD, GELU, BIASED, CLUSTER, LATE)),
                (_consume, (one, two, table, bufs, bars, 2, GROUPS, LEAD, GELU, BIASED, CLUSTER, LATE)),
                (_produce, (one, two, table, bufs, bars, GROUPS, CLUSTER)),
                (_idle, (CLUSTER,)),
                (_idle, (CLUSTER,)),
            ],
            [4, 4, 1, 1, 2],
            [REGISTERS, REGISTERS, 24, 24, 24],
        )

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
from sd3par.kernels.rings import _barriers, _next
from sd3par.kernels.runtime import gl, gluon_jit, hopper


@gluon_jit
def _line(table, slot):  # type: ignore[no-untyped-def]
    """A program's line of the table: a slot is a tile of each program; the first line of all is the table's own."""
    return table + (1 + slot * gl.num_programs(0) + gl.program_id(0)) * 16


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
def _multiply(  # type: ignore[no-untyped-def]
    steps, ring, leads, bufs, bars,
    GROUP: gl.constexpr, GROUPS: gl.constexpr, LEAD: gl.constexpr, CLUSTER: gl.constexpr,
):  # fmt: skip
    """A group's sums of a tile, [64, COLUMNS], and the ring behind it."""
    a_bufs, b_bufs, _ = bufs
    ready, empty, led = bars
    index, phase = ring
    STAGES: gl.constexpr = b_bufs.shape[0]
    COLUMNS: gl.constexpr = b_bufs.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, COLUMNS, 16])
    none = gl.zeros([64, COLUMNS], gl.float32, SUMS)
    hopper.mbarrier.wait(ready.index(index), phase)
    a = a_bufs.index(index * GROUPS + GROUP)
    acc = hopper.warpgroup_mma(a, b_bufs.index(index), none, use_acc=False, is_async=True)
    acc = hopper.warpgroup_mma_wait(1, deps=[acc])
    last = index
    index, phase = _next(index, phase, STAGES)
    for step in range(1, steps):
        hopper.mbarrier.wait(ready.index(index), phase)
        a = a_bufs.index(index * GROUPS + GROUP)
        acc = hopper.warpgroup_mma(a, b_bufs.index(index), acc, is_async=True)
        acc = hopper.warpgroup_mma_wait(1, deps=[acc])
        _arrive(empty.index(last), CLUSTER)
        if LEAD > 0 and GROUP + 1 < GROUPS:
            hopper.mbarrier.arrive(led.index(GROUP), pred=leads & (step == LEAD))
        last = index
        index, phase = _next(index, phase, STAGES)
    acc = hopper.warpgroup_mma_wait(0, deps=[acc])
    _arrive(empty.index(last), CLUSTER)
    return acc, index, phase


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
def _gelu(x):  # type: ignore[no-untyped-def]
    """The tanh form, by the GPU's tanh, 2**-11 of its value wrong at most: less than the rounding that follows."""
    inner = x * (0.7978845608028654 + 0.035677408136300125 * x * x)
    t = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [inner], dtype=gl.float32, is_pure=True, pack=1)
    half = 0.5 * x
    return half * t + half


@gluon_jit
def _store(acc, address, line, bias, rows, PART: gl.constexpr, GELU: gl.constexpr, BIASED: gl.constexpr):  # type: ignore[no-untyped-def]
    """acc: [64, columns], bias: [columns of a tile] in shared memory; stores what is finished, 64 columns at a time.

    PART counts them from the tile's first; rows, [64] each: whether they count, are of the first part, and how many
    bytes behind the tile's first row.
    """
    COLUMNS: gl.constexpr = acc.shape[1]
    if COLUMNS > 64:
        left, right = acc.reshape([64, 2, COLUMNS // 2]).permute((0, 2, 1)).split()
        _store(left, address, line, bias, rows, PART, GELU, BIASED)
        _store(right, address, line, bias, rows, PART + COLUMNS // 128, GELU, BIASED)
    else:
        SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, 64, 16])
        LINES: gl.constexpr = rows[0].type.layout.parent
        y = gl.convert_layout(acc, SUMS, assert_trivial=True)
        if BIASED:
            y += bias.slice(64 * PART, 64).load(gl.SliceLayout(0, SUMS)).to(gl.float32)[None, :]
        if GELU:
            y = _gelu(y)
        y = gl.convert_layout(y.to(bias.dtype), LINES)
        inside, in_first, offset = rows
        place = gl.where(in_first, gl.load(line + 6 + 2 * PART), gl.load(line + 7 + 2 * PART))
        column = gl.arange(0, 64, layout=gl.SliceLayout(0, LINES))
        out = (address + place + offset).to(gl.pointer_type(bias.dtype), bitcast=True)
        gl.store(gl.multiple_of(out[:, None], [16, 16]) + column[None, :], y, mask=(inside & (place != 1))[:, None])


@gluon_jit
def _finish(acc, address, line, bias, GROUP: gl.constexpr, GELU: gl.constexpr, BIASED: gl.constexpr):  # type: ignore[no-untyped-def]
    """acc: [64, COLUMNS] -> a group's results of a tile, in memory.

    Threads hold what they store as LINES: 8 numbers of a row each, 8 threads a row, which are whole lines of memory. A
    warp has the 16 rows that it has of a product, so that no warp waits for another.
    """
    LINES: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [4, 0], [8, 0]], [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]], [[16, 0], [32, 0]],
        [], [64, 64],
    )  # fmt: skip
    row = 64 * GROUP + gl.arange(0, 64, layout=gl.SliceLayout(1, LINES))
    inside = row < gl.load(line + 2)
    in_first = row < gl.load(line + 4)
    offset = row * gl.load(line + 5) * 2
    _store(acc, address, line, bias, (inside, in_first, offset), 0, GELU, BIASED)


@gluon_jit
def _consume(  # type: ignore[no-untyped-def]
    first, second, table, bufs, bars, GROUP: gl.constexpr, GROUPS: gl.constexpr, LEAD: gl.constexpr,
    GELU: gl.constexpr, BIASED: gl.constexpr, CLUSTER: gl.constexpr,
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
    if LEAD > 0 and GROUP > 0:
        hopper.mbarrier.wait(bars[2].index(GROUP - 1), 0, pred=rows > 64 * (GROUP - 1))
    for slot in range(slots):
        line = _line(table, slot)
        next_rows = gl.load(_line(table, slot + 1) + 2)
        if rows > 64 * GROUP:
            in_first = gl.load(line) == 0
            if BIASED:
                column = gl.load(line + 3).to(gl.int32) + gl.arange(0, COLUMNS, layout=FLAT)
                bias = gl.load(gl.where(in_first, first[2], second[2]) + column, mask=column < columns, other=0.0)
            acc, index, phase = _multiply(steps, (index, phase), slot == 0, bufs, bars, GROUP, GROUPS, LEAD, CLUSTER)
            if BIASED:
                bias_bufs.index(GROUP).store(bias)
            address = gl.where(in_first, first[3], second[3])
            _finish(acc, address, line, bias_bufs.index(GROUP), GROUP, GELU, BIASED)
        elif rows != 0:
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
    GELU: gl.constexpr, BIASED: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Each program does its tiles of the table.

    x, weight: [M, K] and [K, N] of TMA, read by [64, 64] and [64, COLUMNS], in clusters of two [32, 64]; bias: [N];
    address: from which the stream's places count. Those with a 2 are the second stream's. REGISTERS: a thread's of the
    groups that multiply.
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
                (_consume, (one, two, table, bufs, bars, 0, GROUPS, LEAD, GELU, BIASED, CLUSTER)),
                (_consume, (one, two, table, bufs, bars, 1, GROUPS, LEAD, GELU, BIASED, CLUSTER)),
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
                (_consume, (one, two, table, bufs, bars, 0, GROUPS, LEAD, GELU, BIASED, CLUSTER)),
                (_consume, (one, two, table, bufs, bars, 1, GROUPS, LEAD, GELU, BIASED, CLUSTER)),
                (_consume, (one, two, table, bufs, bars, 2, GROUPS, LEAD, GELU, BIASED, CLUSTER)),
                (_produce, (one, two, table, bufs, bars, GROUPS, CLUSTER)),
                (_idle, (CLUSTER,)),
                (_idle, (CLUSTER,)),
            ],
            [4, 4, 1, 1, 2],
            [REGISTERS, REGISTERS, 24, 24, 24],
        )

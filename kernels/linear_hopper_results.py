"""What becomes of the sums of `linear_hopper`'s kernel: bias and GELU, and memory, at once or between the next steps.

At once: a group multiplies nothing while it stores. Later: it keeps its results, two numbers of 16 bits in a register,
and stores 64 columns of them behind each of the next tile's first steps, while the tensor cores work.
"""

from __future__ import annotations

from sd3par.kernels.runtime import gl, gluon_jit

if gl is not None:
    _PACK_BF16 = gl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")  # the first operand is the upper half
    _PACK_FP16 = gl.constexpr("cvt.rn.f16x2.f32 $0, $2, $1;")


@gluon_jit
def _halves(x):  # type: ignore[no-untyped-def]
    """x: [64, columns] -> its left and its right half; no thread gives another anything."""
    return x.reshape([64, 2, x.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon_jit
def _result(acc, bias, PART: gl.constexpr, GELU: gl.constexpr, BIASED: gl.constexpr):  # type: ignore[no-untyped-def]
    """acc: [64, 64], sums of a tile's part of 64 columns, bias: [columns of a tile] in shared memory -> results."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, 64, 16])
    y = gl.convert_layout(acc, SUMS, assert_trivial=True)
    if BIASED:
        y += bias.slice(64 * PART, 64).load(gl.SliceLayout(0, SUMS)).to(gl.float32)[None, :]
    if GELU:
        y = _gelu(y)
    return y


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
        left, right = _halves(acc)
        _store(left, address, line, bias, rows, PART, GELU, BIASED)
        _store(right, address, line, bias, rows, PART + COLUMNS // 128, GELU, BIASED)
    else:
        LINES: gl.constexpr = rows[0].type.layout.parent
        y = gl.convert_layout(_result(acc, bias, PART, GELU, BIASED).to(bias.dtype), LINES)
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
def _packed(acc, bias, PART: gl.constexpr, GELU: gl.constexpr, BIASED: gl.constexpr):  # type: ignore[no-untyped-def]
    """acc: [64, columns], sums from a tile's part on -> int32 [64, columns / 2], two results each."""
    COLUMNS: gl.constexpr = acc.shape[1]
    if COLUMNS > 64:
        left, right = _halves(acc)
        left = _packed(left, bias, PART, GELU, BIASED)
        right = _packed(right, bias, PART + COLUMNS // 128, GELU, BIASED)
        return gl.join(left, right).permute((0, 2, 1)).reshape([64, COLUMNS // 2])
    else:
        even, odd = _result(acc, bias, PART, GELU, BIASED).reshape([64, 32, 2]).split()
        PACK: gl.constexpr = _PACK_BF16 if bias.dtype == gl.bfloat16 else _PACK_FP16
        return gl.inline_asm_elementwise(PACK, "=r,r,r", [even, odd], dtype=gl.int32, is_pure=True, pack=1)


@gluon_jit
def _nothing_kept(COLUMNS: gl.constexpr, LATE: gl.constexpr):  # type: ignore[no-untyped-def]
    """What a group keeps before its first tile, in the layout of `_packed`."""
    if LATE:
        SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], instr_shape=[16, COLUMNS, 16])
        none = gl.zeros([64, COLUMNS], gl.float32, SUMS)
        bias = gl.zeros([1], gl.bfloat16, gl.BlockedLayout([1], [32], [4], [0]))  # for its dtype
        return _packed(none, bias, 0, False, False)
    else:
        return gl.to_tensor(0)


@gluon_jit
def _rows_of(line, GROUP: gl.constexpr):  # type: ignore[no-untyped-def]
    """A group's rows of a tile, [64] each: whether they count, are of the first part, how many bytes from the first.

    A thread has of each of two rows twice 16 bytes, which it gets from the three beside it.
    """
    WORDS: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 16], [8, 0]], [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 32]
    )
    row = 64 * GROUP + gl.arange(0, 64, layout=gl.SliceLayout(1, WORDS))
    return row < gl.load(line + 2), row < gl.load(line + 4), row * gl.load(line + 5) * 2


@gluon_jit
def _part(kept, PART: gl.constexpr):  # type: ignore[no-untyped-def]
    """kept: int32 [64, columns / 2] -> [64, 32], 64 columns of it."""
    WIDTH: gl.constexpr = kept.shape[1]
    if WIDTH == 32:
        return kept
    elif PART < WIDTH // 64:
        return _part(_halves(kept)[0], PART)
    else:
        return _part(_halves(kept)[1], PART - WIDTH // 64)


@gluon_jit
def _store_kept(kept, address, line, rows, PART: gl.constexpr):  # type: ignore[no-untyped-def]
    """Stores 64 columns of what was kept, int32 [64, columns / 2], of a tile; rows: as `_rows_of` says."""
    inside, in_first, offset = rows
    WORDS: gl.constexpr = offset.type.layout.parent
    place = gl.where(in_first, gl.load(line + 6 + 2 * PART), gl.load(line + 7 + 2 * PART))
    word = gl.arange(0, 32, layout=gl.SliceLayout(0, WORDS))
    out = gl.multiple_of((address + place + offset).to(gl.pointer_type(gl.int32), bitcast=True)[:, None], [16, 16])
    y = gl.convert_layout(_part(kept, PART), WORDS)
    gl.store(out + word[None, :], y, mask=(inside & (place != 1))[:, None])


@gluon_jit
def _store_all(kept, address, line, GROUP: gl.constexpr):  # type: ignore[no-untyped-def]
    """Stores all that was kept of a tile."""
    rows = _rows_of(line, GROUP)
    for part in gl.static_range(kept.shape[1] // 32):
        _store_kept(kept, address, line, rows, part)

"""Layer norm without affine weights, modulated by a row's scale and shift (adaLN of DiT, arXiv 2212.09748).

With the gated residual before it: the end of one branch and the start of the next are one pass over the tokens. The
image and text tokens of a joint block are normed at the same places, by one launch. Where ranks split the tokens, the
branch comes in parts, one from each of them, and the norm is stored to all of them: a reduce-scatter's sum and an
all-gather's stores without either.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.kernels.rows import normed, scaled
from sd3par.kernels.runtime import check_last_axis, check_like, empty, jit, launch, tl

EPSILON = 1e-6
MAX_DIM = 4096  # a token stays in the registers of one warp, so that its sums need no barrier
LINE = 256  # numbers: a load of 16 bytes in each thread of a warp
Chunks = tuple[tuple[int, int], ...]
Modulation = tuple[Tensor, Tensor]  # scale and shift, [R, D] each


class Stream(NamedTuple):
    """Tokens to norm, x: [R, T, D], after a branch was added to them."""

    x: Tensor
    branch: Tensor | None  # [R, T, D], or [parts, R, T, D] to be added up; None: nothing is added
    gate: Tensor | None  # [R, D]; None: the branch is gated already
    modulations: tuple[Modulation, ...]  # one or two


class Copies(NamedTuple):
    """Where norms go instead of a tensor [R, T, D]: to each of several places, token t of row r at the same one there.

    addresses: [copies] int64 on the device, multiples of 16: where token 0 of row 0 goes, in this device's memory or
    mapped from another's. row_stride: in elements; a row's tokens have no gaps.
    """

    addresses: Tensor
    row_stride: int


Outs = list[list[Copies | Tensor]]  # of each stream, where each of its norms goes


def chunks(dim: int) -> Chunks:
    """Returns (first line, lines) of blocks that cover a token in lines of LINE numbers; a power of two lines each."""
    found, first, lines = [], 0, -(-dim // LINE)
    while first < lines:
        some = 1 << ((lines - first).bit_length() - 1)
        found.append((first, some))
        first += some
    return tuple(found)


def adaln_reference(streams: list[Stream]) -> list[tuple[Tensor, ...]]:
    """One or two streams -> of each x + gate * branch, [R, T, D], and LN(that) * (1 + scale) + shift, [R, T, D] each.

    Without a branch, x itself comes back.
    """
    return [_modulated(*stream) for stream in streams]


def _modulated(
    x: Tensor, branch: Tensor | None, gate: Tensor | None, modulations: tuple[Modulation, ...]
) -> tuple[Tensor, ...]:
    if branch is not None:
        branch = branch.astype("float32").sum(0).astype(x.dtype) if branch.ndim == 4 else branch
        x = x + (branch if gate is None else scaled(branch, gate))
    return x, *normed(x, [(1.0 + scale, shift) for scale, shift in modulations], EPSILON)


def adaln_triton(streams: list[Stream], outs: Outs | None = None) -> list[tuple[Tensor, ...]]:
    """The same in one kernel, in half precision; all may have any strides but the last.

    outs: then x alone comes back of each; a tensor has no gaps between tokens, copies are as many everywhere.
    """
    require(len(streams) in (1, 2), "streams", f"a list of {len(streams)}", "one or two")
    for stream in streams:
        _check(stream, streams[0].x)
    rows, _, dim = streams[0].x.shape
    made, targets = _targets(streams, outs)
    sums = [stream.x if stream.branch is None else empty(stream.x.shape, stream.x) for stream in streams]
    places = [_places(*one) for one in zip(streams, sums, targets, strict=True)]
    launch(
        _adaln, (sum(stream.x.shape[1] for stream in streams), rows), places[0], places[-1], CHUNKS=chunks(dim),
        DIM=dim, LINE=LINE, EPSILON=EPSILON, PARTS=_parts(streams),
        COPIES=max([one.addresses.shape[0] for one in _copies(outs)], default=1), num_warps=1,
    )  # fmt: skip
    return [(x, *norms) for x, norms in zip(sums, made, strict=True)]


def _targets(streams: list[Stream], outs: Outs | None) -> tuple[list[list[Tensor]], list[list[tuple[Tensor, int]]]]:
    """Returns new tensors of each stream's norms, none with `outs`, and what the kernel stores to."""
    made = [[] if outs else [empty(one.x.shape, one.x) for _ in one.modulations] for one in streams]
    places = outs or made
    counts, wanted = [len(one) for one in places], [len(stream.modulations) for stream in streams]
    require(counts == wanted, "outs", f"{counts} places", f"{wanted}, one for each norm")
    kinds = sorted({f"{one.addresses.dtype} {one.addresses.shape}" for one in _copies(outs)})
    alike = len(kinds) < 2 and all(kind.startswith(f"{paddle.int64} ") for kind in kinds)
    require(alike, "outs", " and ".join(kinds), f"addresses of {paddle.int64}, as many everywhere")
    return made, [[_target(one.x, out) for out in some] for one, some in zip(streams, places, strict=True)]


def _copies(outs: Outs | None) -> list[Copies]:
    """Returns those of all streams."""
    return [one for some in outs or [] for one in some if isinstance(one, Copies)]


def _target(x: Tensor, out: Copies | Tensor) -> tuple[Tensor, int]:
    """Returns where a norm of x, [R, T, D], goes, and how far its rows are apart."""
    if isinstance(out, Copies):
        return out.addresses, out.row_stride
    check_like(x, x.shape, outs=out)
    require(out.strides[1:] == [x.shape[2], 1], "outs", f"strides {out.strides}", "tokens without gaps")
    return out, out.strides[0]


def _check(stream: Stream, first: Tensor) -> None:
    """Refuses what is not the stream of [R, T, D] tokens that it says it is; R, D and dtype are the first one's."""
    x, branch, gate, modulations = stream
    check_tokens(x)
    rows, _, dim = first.shape
    check_like(first, [rows, x.shape[1], dim], x=x)
    require(len(modulations) in (1, 2), "modulations", len(modulations), "one or two")
    vectors = {} if gate is None else {"gate": gate}
    for scale, shift in modulations:
        check_like(x, [rows, dim], scale=scale, shift=shift, **vectors)
        check_last_axis(x=x, scale=scale, shift=shift, **vectors)
    if branch is not None:
        check_like(x, [*branch.shape[:-3], *x.shape], branch=branch)
        check_last_axis(branch=branch)


def _parts(streams: list[Stream]) -> int:
    """Returns in how many parts branches come, as many in each stream that has one."""
    branches = [stream.branch for stream in streams if stream.branch is not None]
    counts = {1 if branch.ndim == 3 else branch.shape[0] for branch in branches}
    require(len(counts) <= 1, "branch", f"{sorted(counts)} parts", "as many parts in both streams")
    return next(iter(counts), 1)


def check_tokens(x: Tensor) -> None:
    """Refuses what is not [R, T, D] with a D that fits."""
    fits = x.ndim == 3 and 0 < x.shape[2] <= MAX_DIM
    require(fits, "x", f"shape {x.shape}", f"[R, T, D], D at most {MAX_DIM}")


class Places(NamedTuple):
    """What the kernel takes of a stream: tensors, None for what is not there, and distances of rows and tokens."""

    x: Tensor
    branch: Tensor | None
    gate: Tensor | None
    scale: Tensor
    shift: Tensor
    scale2: Tensor | None
    shift2: Tensor | None
    total: Tensor
    out: Tensor
    out2: Tensor | None
    tokens: int
    x_row: int
    x_token: int
    branch_part: int
    branch_row: int
    branch_token: int
    gate_row: int
    scale_row: int
    shift_row: int
    scale2_row: int
    shift2_row: int
    out_row: int
    out2_row: int


def _places(stream: Stream, total: Tensor, targets: list[tuple[Tensor, int]]) -> Places:
    x, branch, gate, modulations = stream
    (scale, shift), (scale2, shift2) = modulations if len(modulations) == 2 else (*modulations, (None, None))
    (out, out_row), (out2, out2_row) = targets if len(targets) == 2 else (*targets, (None, 0))
    part, row, token = (0, 0, 0) if branch is None else (0, *branch.strides)[-4:-1]
    rows = [0 if vector is None else vector.strides[0] for vector in (gate, scale, shift, scale2, shift2)]
    numbers = (x.shape[1], *x.strides[:2], part, row, token, *rows, out_row, out2_row)
    return Places(x, branch, gate, scale, shift, scale2, shift2, total, out, out2, *numbers)


@jit
def columns(FIRST: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr) -> tl.tensor:
    """Returns which numbers of a token a chunk holds: [lines, LINE]."""
    line = FIRST + tl.arange(0, LINES)
    return line[:, None] * LINE + tl.arange(0, LINE)[None, :]


@jit
def load_vector(base: tl.tensor, column: tl.tensor, END: tl.constexpr, DIM: tl.constexpr) -> tl.tensor:
    """Returns a chunk of a modulation as fp32, which should stay in the cache: all programs read it."""
    if END > DIM:
        part = tl.load(base + column, mask=column < DIM, other=0.0, eviction_policy="evict_last")
    else:
        part = tl.load(base + column, eviction_policy="evict_last")
    return part.to(tl.float32)


@jit
def store_chunk(base: tl.tensor, column: tl.tensor, part: tl.tensor, END: tl.constexpr, DIM: tl.constexpr) -> None:
    """Writes a chunk, [lines, LINE] fp32, that ends before column END."""
    part = part.to(base.dtype.element_ty)
    if END > DIM:
        tl.store(base + column, part, mask=column < DIM)
    else:
        tl.store(base + column, part)


@jit
def load_token(base: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr) -> tl.tuple:
    """Returns DIM numbers at `base` chunk by chunk, [lines, LINE] each, zeros behind them."""
    parts = ()
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        if (CHUNKS[i][0] + CHUNKS[i][1]) * LINE > DIM:
            parts = parts + (tl.load(base + column, mask=column < DIM, other=0.0),)  # type: ignore[assignment]
        else:
            parts = parts + (tl.load(base + column),)  # type: ignore[assignment]
    return parts


@jit
def _load_sum(
    base: tl.tensor, part_stride: tl.tensor, PARTS: tl.constexpr, CHUNKS: tl.constexpr, DIM: tl.constexpr,
    LINE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Returns what `load_token` does of a token's parts together, in fp32 where they are several."""
    parts = load_token(base, CHUNKS, DIM, LINE)
    for i in tl.static_range(1, PARTS):
        more = load_token(base + i * part_stride, CHUNKS, DIM, LINE)
        added = ()
        for j in tl.static_range(len(CHUNKS)):
            added = added + (parts[j].to(tl.float32) + more[j].to(tl.float32),)  # type: ignore[assignment]
        parts = added
    return parts


@jit
def _sum(
    x: tl.tuple, branch: tl.tuple, gate: tl.tensor | None, total: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr,
    LINE: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Writes a token's x + gate * branch, or x + branch, and returns it before it is rounded; gate is read here."""
    parts = ()
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        end = (CHUNKS[i][0] + CHUNKS[i][1]) * LINE
        added = branch[i].to(tl.float32)
        if gate is not None:
            added *= load_vector(gate, column, end, DIM)
        part = x[i].to(tl.float32) + added
        store_chunk(total, column, part, end, DIM)
        parts = parts + (part,)  # type: ignore[assignment]
    return parts


@jit
def _norm(
    parts: tl.tuple, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr, EPSILON: tl.constexpr
) -> tl.tuple:
    """A token's chunks, zeros from DIM on -> (x - mean) / sqrt(variance + EPSILON) in fp32, chunk by chunk."""
    total = tl.zeros([LINE], tl.float32)
    for i in tl.static_range(len(CHUNKS)):
        total += tl.sum(parts[i].to(tl.float32), 0)
    mean = tl.sum(total, 0) / DIM
    squares = tl.zeros([LINE], tl.float32)
    centred = ()
    for i in tl.static_range(len(CHUNKS)):
        part = parts[i].to(tl.float32) - mean
        if (CHUNKS[i][0] + CHUNKS[i][1]) * LINE > DIM:
            part = tl.where(columns(CHUNKS[i][0], CHUNKS[i][1], LINE) < DIM, part, 0.0)
        squares += tl.sum(part * part, 0)
        centred = centred + (part,)  # type: ignore[assignment]
    reciprocal = tl.rsqrt(tl.sum(squares, 0) / DIM + EPSILON)
    result = ()
    for i in tl.static_range(len(CHUNKS)):
        result = result + (centred[i] * reciprocal,)  # type: ignore[assignment]
    return result


@jit
def _bases(out: tl.tensor, place: tl.tensor, DTYPE: tl.constexpr, COPIES: tl.constexpr) -> tl.tuple:
    """Returns where a token goes, `place` numbers from a tensor's begin or from each of several addresses."""
    if out.dtype.element_ty == tl.int64:
        bases = ()
        for i in tl.static_range(COPIES):
            base = tl.multiple_of(tl.load(out + i).to(tl.pointer_type(DTYPE)), 16)
            bases = bases + (base + place,)  # type: ignore[assignment]
    else:
        bases = (out + place,)  # type: ignore[assignment]
    return bases


@jit
def _store_modulated(
    bases: tl.tuple, parts: tl.tuple, scale: tl.tensor, shift: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr,
    LINE: tl.constexpr,
) -> None:  # fmt: skip
    """Writes a norm * (1 + scale) + shift, both read here: registers are scarce, and the cache has them."""
    for i in tl.static_range(len(CHUNKS)):
        column = columns(CHUNKS[i][0], CHUNKS[i][1], LINE)
        end = (CHUNKS[i][0] + CHUNKS[i][1]) * LINE
        part = parts[i] * (1.0 + load_vector(scale, column, end, DIM)) + load_vector(shift, column, end, DIM)
        for j in tl.static_range(len(bases)):
            store_chunk(bases[j], column, part, end, DIM)


@jit
def _token(
    stream: Places, token: tl.tensor, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr,
    EPSILON: tl.constexpr, PARTS: tl.constexpr, COPIES: tl.constexpr,
) -> None:  # fmt: skip
    """One token of a stream; the norm takes the sum before it is rounded. Results have no gaps."""
    row, token = tl.program_id(1).to(tl.int64), token.to(tl.int64)
    parts = load_token(stream.x + row * stream.x_row + token * stream.x_token, CHUNKS, DIM, LINE)
    if stream.branch is not None:
        branch = stream.branch + row * stream.branch_row + token * stream.branch_token
        added = _load_sum(branch, stream.branch_part, PARTS, CHUNKS, DIM, LINE)
        gate = None if stream.gate is None else stream.gate + row * stream.gate_row
        parts = _sum(parts, added, gate, stream.total + (row * stream.tokens + token) * DIM, CHUNKS, DIM, LINE)
    parts = _norm(parts, CHUNKS, DIM, LINE, EPSILON)
    scale, shift = stream.scale + row * stream.scale_row, stream.shift + row * stream.shift_row
    bases = _bases(stream.out, row * stream.out_row + token * DIM, stream.x.dtype.element_ty, COPIES)
    _store_modulated(bases, parts, scale, shift, CHUNKS, DIM, LINE)
    if stream.out2 is not None:
        scale, shift = stream.scale2 + row * stream.scale2_row, stream.shift2 + row * stream.shift2_row
        bases = _bases(stream.out2, row * stream.out2_row + token * DIM, stream.x.dtype.element_ty, COPIES)
        _store_modulated(bases, parts, scale, shift, CHUNKS, DIM, LINE)


@jit
def _adaln(  # type: ignore[no-untyped-def]
    first, second, CHUNKS: tl.constexpr, DIM: tl.constexpr, LINE: tl.constexpr, EPSILON: tl.constexpr,
    PARTS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """One program a token of the first stream or, behind these, of the second."""
    token = tl.program_id(0)
    if token < first.tokens:
        _token(first, token, CHUNKS, DIM, LINE, EPSILON, PARTS, COPIES)
    else:
        _token(second, token - first.tokens, CHUNKS, DIM, LINE, EPSILON, PARTS, COPIES)

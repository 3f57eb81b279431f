"""Which tiles of `attention_hopper` are split along their keys, and how the sums of a tile's parts come together.

Programs take whole tiles in turns. Tiles that fill no whole turn would leave most multiprocessors idle in the last one:
their blocks of keys, one tile's after another's, are dealt out to all programs alike (Stream-K, arXiv 2301.03598).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from sd3par.kernels.runtime import gl, gluon_jit

# Microseconds on H200, fitted to measured launches: of a launch, of a tile or a part of one, of a block of keys; of a
# block in parts, of having parts at all, and of every three that a tile has, which are read at once.
_LAUNCH, _TILE, _BLOCK = 6.9, 2.6, 0.88
_PART_BLOCK, _PARTS, _THREE_PARTS = 0.925, 0.7, 1.4


class Plan(NamedTuple):
    """How a launch's tiles are dealt out.

    whole: tiles, the first ones, that are done whole; share: blocks of keys that a program does of all others, 0 if
    there are none; span: blocks from one of these tiles to the next, which are its own and perhaps some that are left
    out.
    """

    whole: int
    share: int
    span: int


@functools.cache
def planned(tiles: int, blocks: int, programs: int) -> Plan:
    """Returns the way that should take the least time for `tiles` of `blocks` blocks of keys each."""
    return min(plans(tiles, blocks, programs), key=lambda plan: cost(plan, tiles, blocks, programs))


def plans(tiles: int, blocks: int, programs: int) -> list[Plan]:
    """Returns all that make sense: none split, each of the rest in a number of equal parts, or all dealt out evenly."""
    rest = tiles % programs
    found = [Plan(tiles, 0, blocks)]
    for parts in range(2, min(programs // rest, blocks) + 1) if rest else ():
        share = -(-blocks // parts)
        found.append(Plan(tiles - rest, share, share * -(-blocks // share)))
    even = -(-rest * blocks // programs)
    if rest and even < blocks:
        found.append(Plan(tiles - rest, even, blocks))
    return found


def cost(plan: Plan, tiles: int, blocks: int, programs: int) -> float:
    """Returns the microseconds that it should take."""
    turns = _LAUNCH + -(-plan.whole // programs) * (_TILE + blocks * _BLOCK)
    if plan.whole == tiles:
        return turns
    crossing = plan.span % plan.share != 0  # some programs have parts of two tiles
    parts = -(-blocks // plan.share) + crossing
    return turns + _TILE * (1 + crossing) + plan.share * _PART_BLOCK + _PARTS + -(-parts // 3) * _THREE_PARTS


def programs_of(plan: Plan, tiles: int, programs: int) -> int:
    """Returns how many of `programs` have something to do."""
    parts = -(-(tiles - plan.whole) * plan.span // plan.share) if plan.whole < tiles else 0
    return min(programs, max(plan.whole, parts))


@gluon_jit
def _turns(plan):  # type: ignore[no-untyped-def]
    """A program's turns: two for parts of tiles, then those for whole tiles."""
    whole, share, span = plan
    return 2 + gl.cdiv(whole - gl.program_id(0), gl.num_programs(0))


@gluon_jit
def _turn(count, tiles, blocks, plan):  # type: ignore[no-untyped-def]
    """The tile of a program's turn `count`, and its blocks of keys, start .. end; none if end <= start."""
    whole, share, span = plan
    tile = gl.program_id(0) + (count - 2) * gl.num_programs(0)
    part = count < 2
    begin = gl.program_id(0) * share
    which = begin // span + count
    tile = gl.where(part, whole + which, tile)
    start = gl.where(part, gl.maximum(begin - which * span, 0), 0)
    end = gl.where(part, gl.minimum(begin + share - which * span, blocks), blocks)
    return tile, start, gl.where(tile < tiles, end, 0)


@gluon_jit
def _join(  # type: ignore[no-untyped-def]
    acc, total, top, complete, tile, blocks, plan, scratch, GROUP: gl.constexpr, GROUPS: gl.constexpr
):
    """Leaves a part's sums, unless they are complete, for the group that comes last to its tile: that takes all parts'.

    acc: [64, head_dim], total and top: [64]. Returns acc and total, and whether they are complete now. Parts are added
    in their order, whoever comes last, so that every launch gives the same.
    """
    if not complete:
        _, parts, arrived = scratch
        tile -= plan[0]
        first, count = _programs(tile, blocks, plan)
        _leave(parts, acc, total, top, (tile + gl.program_id(0)) * GROUPS + GROUP)
        gl.thread_barrier()  # all threads' stores, before one of them says so
        arrived += tile * GROUPS + GROUP
        complete = gl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == count - 1
        if complete:
            gl.store(arrived, 0)  # for the next launch
            acc, total = _gather(parts, acc, total, (tile + first) * GROUPS + GROUP, count, GROUPS)
    return acc, total, complete


@gluon_jit
def _programs(tile, blocks, plan):  # type: ignore[no-untyped-def]
    """The first program, and how many, that have parts of a tile, counted from the first that is split.

    Tile and program together number the parts: from one to the next, either rises, or both do.
    """
    whole, share, span = plan
    first = tile * span // share
    return first, (tile * span + blocks - 1) // share - first + 1


@gluon_jit
def _pointers(parts, acc, place):  # type: ignore[no-untyped-def]
    """Where a part's sums are: pointers like acc, and those to rows' largest scores, [64]; sums of weights follow."""
    DIM: gl.constexpr = acc.shape[1]
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, acc.type.layout))
    column = gl.arange(0, DIM, layout=gl.SliceLayout(0, acc.type.layout))
    parts += place * (64 * DIM + 128)
    return parts + (row * DIM)[:, None] + column[None, :], parts + 64 * DIM + row


@gluon_jit
def _leave(parts, acc, total, top, place):  # type: ignore[no-untyped-def]
    sums, tops = _pointers(parts, acc, place)
    gl.store(sums, acc)
    gl.store(tops, top)
    gl.store(tops + 64, total)


@gluon_jit
def _gather(parts, acc, total, place, count, GROUPS: gl.constexpr):  # type: ignore[no-untyped-def]
    """The sums of `count` parts, at `place` and every GROUPS places on, relative to the largest of their scores.

    A factor that brings sums there is applied by halves: sums may be as large as the factor is small, if anchored.
    """
    acc = gl.zeros_like(acc)
    top = gl.full_like(total, -float("inf"))
    total = gl.zeros_like(total)
    for start in range(0, count, 3):
        for part in gl.static_range(3):  # so that loads do not wait for each other
            here = start + part < count
            sums, tops = _pointers(parts, acc, place + (start + part) * GROUPS)
            other_top = gl.load(tops, mask=here, other=-float("inf"), cache_modifier=".cg")
            other_total = gl.load(tops + 64, mask=here, other=0.0, cache_modifier=".cg")
            other = gl.load(sums, mask=here, other=0.0, cache_modifier=".cg")
            new_top = gl.maximum(top, other_top)
            fade, gain = gl.exp2(0.5 * (top - new_top)), gl.exp2(0.5 * (other_top - new_top))
            total = total * fade * fade + other_total * gain * gain
            acc = acc * fade[:, None] * fade[:, None] + other * gain[:, None] * gain[:, None]
            top = new_top
    return acc, total

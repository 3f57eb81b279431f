"""The tiles of `linear_hopper`: how its products are cut, which program does which, and the table that says so.

A table is int64 [1 + (slots + 1) * programs, 16]. Its first line: slots, steps of 64 terms, columns of the weights. A
line for each slot and program follows, all zeros where a program has no tile, as in the last slot: the stream, the
first row, how many rows, the first column; the row, of the tile, with which its second part begins; elements from row
to row where results go; then for each 64 columns two places: how many bytes behind the stream's address the tile's
first row would be, by the rectangle of the first part's rows and by that of the second's; NOWHERE if there is none.

So a tile's columns may go to any number of rectangles, its rows to two: it ends where a third would begin.

Programs 2i and 2i + 1 may be a cluster: in each slot they have a job, tiles of the same stream and columns. Where there
is no second such tile, its line has NO_ROWS: that program still copies its half of the weight.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sd3par.errors import ConfigError

FIELDS = 16  # a line is 128 bytes
NO_ROWS = -1  # 0 says that the whole cluster has no tile
NOWHERE = 1  # a place that no rectangle has: all are multiples of 16
_GROUP = 64  # rows of a warp group, and columns that are stored at once
_PLACES = 6  # the field of the first place

# The model of the costs, in cycles of a multiprocessor: what tensor cores take for a column of a group and a step, and
# bytes that arrive from the L2 cache while all programs read it; what a tile takes besides. Not measured yet.
_COLUMN_CYCLES = 2
_BYTES_PER_CYCLE = 48
_TILE_CYCLES = 1200


class Rectangle(NamedTuple):
    """Where results [rows, columns] of a stream go, from (row, column) on: rows of `stride` elements from `address`."""

    stream: int
    row: int
    rows: int
    column: int
    columns: int
    address: int
    stride: int


class Shape(NamedTuple):
    """A tile has 64 rows for each group of warps.

    Args:
        groups: two or three.
        columns: 128 or 256.
        stages: steps that are in shared memory at once.
        registers: of a thread of those groups.
        lead: how many steps each group is ahead of the next.
        band: how many tiles lie on top of each other before the next columns come; even in clusters.
        cluster: how many programs share what they read of the weight, one or two.
        late: whether a tile's results are stored while the next is multiplied.
    """

    groups: int
    columns: int
    stages: int
    registers: int
    lead: int
    band: int
    cluster: int = 1
    late: bool = False


Job = list[list[int]]  # the lines of a cluster's tiles, or of one program's


class _Stream:
    """Which rectangle owns which results of one stream."""

    def __init__(self, rectangles: list[Rectangle]) -> None:
        self.number, self.base, self.stride = rectangles[0].stream, rectangles[0].address, rectangles[0].stride
        self.cuts = sorted({edge for one in rectangles for edge in (one.row, one.row + one.rows)})
        self.first = min(one.column for one in rectangles)
        self.last = max(one.column + one.columns for one in rectangles)
        self._owners: dict[tuple[int, int], Rectangle] = {}
        for one in rectangles:
            check(one, self.stride)
            for cut in self.cuts:
                if one.row <= cut < one.row + one.rows:
                    self._own(cut, one)

    def _own(self, cut: int, one: Rectangle) -> None:
        for column in range(one.column, one.column + one.columns, _GROUP):
            if self._owners.setdefault((cut, column), one) is not one:
                raise ConfigError("rectangles", f"two at row {cut}, column {column}", "none that overlap")

    def spans(self, height: int) -> list[tuple[int, int, int]]:
        """Returns (first row, rows, where the second part begins) of all tiles below each other."""
        found, row = [], self.cuts[0]
        while row < self.cuts[-1]:
            end = min(row + height, self.cuts[-1])
            inner = [cut for cut in self.cuts if row < cut < end]
            split, end = inner[0] if inner else end, inner[1] if len(inner) > 1 else end
            found.append((row, end - row, split - row))
            row = end
        return found

    def line(self, span: tuple[int, int, int], column: int, width: int) -> list[int]:
        """Returns a tile's line of the table."""
        row, rows, split = span
        above = max(cut for cut in self.cuts if cut <= row)
        places = []
        for begin in range(column, column + width, _GROUP):
            places.append(self._place(self._owners.get((above, begin)), row, begin))
            second = self._owners.get((row + split, begin)) if split < rows else None
            places.append(self._place(second, row, begin))
        return [self.number, row, rows, column, split, self.stride, *places]

    def _place(self, owner: Rectangle | None, row: int, column: int) -> int:
        if owner is None:
            return NOWHERE
        return owner.address - self.base + 2 * ((row - owner.row) * self.stride + column - owner.column)


def is_whole(one: Rectangle) -> bool:
    """Returns whether a rectangle's columns are whole runs of those that are stored at once."""
    return one.column % _GROUP == 0 and one.columns % _GROUP == 0


def check(one: Rectangle, stride: int) -> None:
    """Refuses a rectangle that the kernel cannot write; `stride`: of the stream's others."""
    if one.rows < 1 or one.columns < 1 or min(one.row, one.column) < 0:
        raise ConfigError("rectangle", f"{one}", "one or more rows and columns")
    if not is_whole(one):
        raise ConfigError("rectangle", f"columns {one.column} + {one.columns}", f"multiples of {_GROUP}")
    if one.address % 16 or one.stride % 8:
        raise ConfigError("rectangle", f"address {one.address:#x}, stride {one.stride}", "multiples of 16 bytes")
    if one.stride != stride:
        raise ConfigError("rectangle", f"stride {one.stride}", f"{stride}, as the stream's others")


def table(rectangles: list[Rectangle], steps: int, columns: int, shape: Shape, programs: int) -> npt.NDArray[np.int64]:
    """Returns the table of at most so many programs; one of fewer tiles has as many programs as tiles."""
    jobs: list[Job] = []
    for stream in streams(rectangles):
        jobs += _raster(stream, shape)
    jobs.sort(key=_least_first)  # the small ones last: it keeps the order of equal ones
    full = list(map(_job_groups, jobs))
    _, halved = _finish(full, steps, shape, programs // shape.cluster)
    first = full.count(shape.groups) - halved
    pieces = [piece for job in jobs[first : first + halved] for piece in _cut(job, shape.cluster)]
    jobs = [*jobs[:first], *pieces, *jobs[first + halved :]]
    jobs.sort(key=_least_first)
    given = assign([_cost(_job_groups(job), steps, shape) for job in jobs], programs // shape.cluster)
    return _filled([[jobs[number] for number in own] for own in given], steps, columns, shape.cluster)


def _filled(given: list[list[Job]], steps: int, columns: int, cluster: int) -> npt.NDArray[np.int64]:
    """Returns the table of each cluster's jobs."""
    slots, programs = max(map(len, given)), cluster * len(given)
    filled = np.zeros([1 + (slots + 1) * programs, FIELDS], np.int64)
    filled[0, :3] = slots, steps, columns
    for number, own in enumerate(given):
        for slot, job in enumerate(own):
            for i in range(cluster):
                line = job[i] if i < len(job) else _without_rows(job[0])
                filled[1 + slot * programs + number * cluster + i, : len(line)] = line
    return filled


def streams(rectangles: list[Rectangle]) -> list[_Stream]:
    """Returns the streams that rectangles are of."""
    numbers = sorted({one.stream for one in rectangles})
    return [_Stream([one for one in rectangles if one.stream == number]) for number in numbers]


def choose(rectangles: list[Rectangle], steps: int, shapes: tuple[Shape, ...], programs: int) -> Shape:
    """Returns the shape of tiles with which the last program ends first, by the model of the costs."""
    parts = streams(rectangles)

    def end(shape: Shape) -> float:
        full: list[int] = []
        for part in parts:
            across = -(-(part.last - part.first) // shape.columns)
            full += [groups for some in _spans_of_jobs(part, shape) for groups in _heights(some, shape)] * across
        return _finish(sorted(full, reverse=True), steps, shape, programs // shape.cluster)[0]

    return min(shapes, key=end)


def assign(costs: list[float], programs: int) -> list[list[int]]:
    """Returns for each program which tiles it does: each next one goes to the program that is free first."""
    programs = min(programs, len(costs))
    given: list[list[int]] = [[] for _ in range(programs)]
    free = [(0.0, program) for program in range(programs)]
    for number, cost in enumerate(costs):
        end, program = heapq.heappop(free)
        given[program].append(number)
        heapq.heappush(free, (end + cost, program))
    return given


def _groups(rows: int) -> int:
    return -(-rows // _GROUP)


def _job_groups(job: Job) -> int:
    """Returns how many groups the largest of a job's tiles takes."""
    return max(_groups(line[2]) for line in job)


def _least_first(job: Job) -> int:
    return -_job_groups(job)


def _without_rows(line: list[int]) -> list[int]:
    """Returns the line of who only copies its half of the weight for another's tile."""
    stream, _, _, column, _, stride, *places = line
    return [stream, 0, NO_ROWS, column, 0, stride, *[NOWHERE] * len(places)]


def _cost(groups: int, steps: int, shape: Shape) -> float:
    multiply = _COLUMN_CYCLES * groups * shape.columns
    copy = 2 * _GROUP * (_GROUP * groups + shape.columns / shape.cluster) / _BYTES_PER_CYCLE
    return steps * max(multiply, copy) + _TILE_CYCLES


def _finish(groups: list[int], steps: int, shape: Shape, programs: int) -> tuple[float, int]:
    """Returns when the last program ends, and how many of the last full jobs are to be cut for it.

    groups: of each job, most first; programs: or clusters. A last round of full jobs that does not fill the card is
    shorter in pieces.
    """
    full = groups.count(shape.groups)
    some = full % programs
    found = []
    for halved in (0, some) if some else (0,):
        rest = [*([1] * halved * shape.groups), *groups[full:]]
        costs = [_cost(one, steps, shape) for one in [shape.groups] * (full - halved) + sorted(rest, reverse=True)]
        found.append((max(sum(costs[i] for i in own) for own in assign(costs, programs)), halved))
    return min(found)


def _cut(job: Job, cluster: int) -> list[Job]:
    """Returns a job as jobs of tiles of 64 rows."""
    pieces = [piece for line in job for piece in _cut_line(line)]
    return [pieces[begin : begin + cluster] for begin in range(0, len(pieces), cluster)]


def _cut_line(line: list[int]) -> Job:
    """Returns a tile as tiles of 64 rows."""
    stream, row, rows, column, split, stride, *places = line
    pieces = []
    for down in range(0, rows, _GROUP):
        moved = [place if place == NOWHERE else place + 2 * down * stride for place in places]
        pieces.append(
            [stream, row + down, min(_GROUP, rows - down), column, min(max(split - down, 0), _GROUP), stride, *moved]
        )
    return pieces


def _by_turns(stream: _Stream, spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Returns spans in another order: one of each rectangle's in turn, so that no link has all of a time's stores."""
    owners: dict[int, list[tuple[int, int, int]]] = {}
    for span in spans:
        owners.setdefault(max(cut for cut in stream.cuts if cut <= span[0]), []).append(span)
    turns = [(i / len(some), which, span) for which, some in enumerate(owners.values()) for i, span in enumerate(some)]
    return [span for *_, span in sorted(turns)]


def _spans_of_jobs(stream: _Stream, shape: Shape) -> list[list[tuple[int, int, int]]]:
    """Returns the spans of jobs of the same columns."""
    spans = _by_turns(stream, stream.spans(_GROUP * shape.groups))
    return [spans[begin : begin + shape.cluster] for begin in range(0, len(spans), shape.cluster)]


def _heights(spans: list[tuple[int, int, int]], shape: Shape) -> list[int]:
    """Returns the groups of a job of these spans; of each of several where it is cut: one span is for both programs."""
    groups = max(_groups(rows) for _, rows, _ in spans)
    return [groups] if len(spans) == shape.cluster else [1] * -(-groups // shape.cluster)


def _raster(stream: _Stream, shape: Shape) -> list[Job]:
    """Returns the jobs of a stream's tiles that go somewhere, `band` tiles below each other at a time."""
    some, jobs = _spans_of_jobs(stream, shape), []
    high = shape.band // shape.cluster
    for begin in range(0, len(some), high):
        for column in range(stream.first, stream.last, shape.columns):
            for spans in some[begin : begin + high]:
                lines = [stream.line(span, column, shape.columns) for span in spans]
                job = [line for line in lines if any(place != NOWHERE for place in line[_PLACES:])]
                if job:
                    jobs += [job] if len(job) == shape.cluster else _cut(job, shape.cluster)
    return jobs

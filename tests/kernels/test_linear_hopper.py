"""The tiles of the product for Hopper, done here as its kernel does them: each result is stored once, in its place."""

from __future__ import annotations

import numpy as np
import pytest

from sd3par import ConfigError
from sd3par.kernels.clusters_ptx import ARRIVE, COPY, ClusterError, with_clusters
from sd3par.kernels.linear_hopper_tiles import FIELDS, NO_ROWS, NOWHERE, Rectangle, Shape, assign, choose, table

SHAPES = (Shape(2, 256, 4, 240, 2, 8), Shape(2, 128, 6, 240, 2, 4), Shape(3, 128, 5, 160, 0, 1))
CLUSTERS = (Shape(2, 256, 4, 240, 2, 8, 2), Shape(2, 128, 6, 240, 2, 2, 2))
BASE = 1 << 40
Sizes = tuple[int, ...]


def stored(lines: np.ndarray, shape: Shape, bases: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Returns (address, stream, row, column) of every result, as the kernel's groups would store them."""
    slots, programs = int(lines[0, 0]), (len(lines) - 1) // (int(lines[0, 0]) + 1)
    found = []
    for program in range(programs):
        for slot in range(slots):
            stream, first, rows, column, split, stride, *places = lines[1 + slot * programs + program].tolist()
            assert NO_ROWS * (shape.cluster - 1) <= rows <= 64 * shape.groups and (slot > 0 or rows != 0)
            for row in range(rows):
                for part in range(shape.columns // 64):
                    place = places[2 * part + (row >= split)]
                    if place != NOWHERE:
                        begin = bases[stream] + place + row * stride * 2
                        assert begin % 16 == 0
                        found += [(begin + 2 * i, stream, first + row, column + 64 * part + i) for i in range(64)]
    assert not lines[1 + slots * programs :].any()  # what the last slot's programs read ahead
    return found


def wanted(rectangles: list[Rectangle]) -> list[tuple[int, int, int, int]]:
    """Returns the same from the rectangles themselves."""
    return [
        (one.address + 2 * (i * one.stride + j), one.stream, one.row + i, one.column + j)
        for one in rectangles
        for i in range(one.rows)
        for j in range(one.columns)
    ]


def checked(rectangles: list[Rectangle], columns: int, shape: Shape, programs: int, steps: int = 24) -> np.ndarray:
    """Returns the table, with which the results are stored as they should be."""
    bases = {one.stream: one.address for one in reversed(rectangles)}
    near = [one._replace(address=one.address - bases[one.stream]) for one in rectangles]
    lines = table(near, steps, columns, shape, programs)
    together(lines, shape.cluster)
    assert lines.shape[1] == FIELDS and lines[0].tolist()[:3] == [int(lines[0, 0]), steps, columns]
    assert (len(lines) - 1) // (int(lines[0, 0]) + 1) <= programs
    assert sorted(stored(lines, shape, bases)) == sorted(wanted(rectangles))
    return lines


def together(lines: np.ndarray, cluster: int) -> None:
    """A cluster's programs have a tile in the same slots, of the same stream and columns; the first has rows."""
    jobs = lines[1:].reshape(-1, cluster, FIELDS)
    assert ((jobs[:, :, 2] != 0) == (jobs[:, :1, 2] > 0)).all()
    assert (jobs[:, :, [0, 3]] == jobs[:, :1, [0, 3]]).all()


def cut(
    stream: int, rows: Sizes, columns: Sizes, begin: tuple[int, int], random: np.random.Generator
) -> list[Rectangle]:
    """Returns rectangles side by side and below each other, some left out, each somewhere else in memory."""
    found, stride = [], 8 * int(random.integers(64, 80))
    for i, height in enumerate(rows):
        for j, width in enumerate(columns):
            address = BASE + 16 * int(random.integers(-(1 << 20), 1 << 20)) + ((stream * 64 + i) * 64 + j << 30)
            row, column = begin[0] + sum(rows[:i]), begin[1] + sum(columns[:j])
            found.append(Rectangle(stream, row, height, column, width, address, stride))
    return [one for one in found if random.random() > 0.1] or found


@pytest.mark.parametrize("seed", range(12))
def test_random_rectangles_are_stored_once_each(seed: int) -> None:
    random = np.random.default_rng(seed)
    rectangles = []
    for stream in range(int(random.integers(1, 3))):
        rows = tuple(int(random.choice([1, 7, 42, 64, 90, 128, 167, 200])) for _ in range(random.integers(1, 5)))
        columns = tuple(64 * int(random.integers(1, 6)) for _ in range(random.integers(1, 4)))
        rectangles += cut(stream, rows, columns, (int(random.integers(0, 99)), 64 * int(random.integers(0, 3))), random)
    for shape in SHAPES:
        checked(rectangles, 2048, shape, int(random.choice([1, 5, 16, 132])))
    for shape in CLUSTERS:
        checked(rectangles, 2048, shape, int(random.choice([2, 6, 16, 132])))


def test_the_last_round_is_cut_where_that_is_shorter() -> None:
    whole = [Rectangle(0, 0, 64 * 20, 0, 512, BASE, 512)]
    lines = checked(whole, 512, SHAPES[0], 14)  # 20 tiles: 14, and 6 that are 12 as halves
    rows = lines[1:, 2].tolist()
    assert [rows.count(count) for count in (128, 64)] == [14, 12] and lines[0, 0] == 2
    lines = checked(whole, 512, SHAPES[0], 10)
    assert lines[1:, 2].tolist().count(128) == 20 and lines[0, 0] == 2


def test_rows_for_one_program_of_a_cluster_are_shared_by_both() -> None:
    def rows(count: int) -> list[int]:
        lines = checked([Rectangle(0, 0, count, 0, 256, BASE, 256)], 256, CLUSTERS[0], 4)
        return [row for row in lines[1:, 2].tolist() if row]

    assert rows(100) == [64, 36] and rows(50) == [50, NO_ROWS]
    assert rows(256 + 3) == [128, 128, 3, NO_ROWS]


def test_tiles_of_equal_cost_go_round() -> None:
    assert assign([5.0] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert assign([4.0, 2.0, 1.0, 1.0, 1.0], 2) == [[0, 4], [1, 2, 3]]
    assert assign([1.0], 8) == [[0]]


def test_few_columns_take_narrow_tiles() -> None:
    def rectangle(rows: int, columns: int) -> list[Rectangle]:
        return [Rectangle(0, 0, rows, 0, columns, BASE, columns)]

    assert choose(rectangle(8192, 6144), 24, SHAPES[:2], 132) == SHAPES[0]
    assert choose(rectangle(1024, 128), 24, SHAPES[:2], 132) == SHAPES[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"columns": 96}, "64"), ({"column": 32}, "64"), ({"address": BASE + 8}, "16"), ({"stride": 260}, "16"),
     ({"rows": 0}, "one or more"), ({"stride": 512}, "others"), ({"row": 99}, "overlap")],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(change: dict, said: str) -> None:
    first = Rectangle(0, 0, 100, 0, 256, BASE, 256)
    second = Rectangle(0, 100, 100, 0, 256, BASE, 256)._replace(**change)
    with pytest.raises(ConfigError, match=said):
        table([first, second], 24, 256, SHAPES[0], 132)


CODE = """.entry f(
)
.reqntid 384
{
	{copy}
	elect.sync %r1|%p1, -1;
	@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r3, %r4}], [%r5];
	{arrive}
	bar.sync 0, 128;
	@%p2 mbarrier.arrive.shared::cta.b64 _, [%r6];
	@%p2 mbarrier.arrive.shared::cta.b64 _, [%r7];
}
"""


def code(copy: str, arrive: str) -> str:
    return CODE.replace("{copy}", copy).replace("{arrive}", arrive)


def test_code_for_clusters_is_what_the_kernel_asks_for() -> None:
    lines = with_clusters(code(COPY, ARRIVE)).splitlines()
    assert lines[2:5] == [".reqntid 384", ".explicitcluster", ".reqnctapercluster 2, 1, 1"]
    assert "\t@%p1 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster " \
        "[%r2], [%rd1, {%r3, %r4}], [%r5], both;" in lines  # fmt: skip
    there, other = "\tmapa.shared::cluster.u32 there, %r6, other;", "\t@%p2 mbarrier.arrive.shared::cta.b64 _, [%r7];"
    assert there in lines and lines[-3:-1] == ["\t}", other]
    assert with_clusters(code("", "")) == code("", "")


@pytest.mark.parametrize(
    ("copy", "arrive"), [(ARRIVE, ""), (COPY, COPY), (COPY + "\n\tbra.uni $L__BB0_1;", ""), ("$L__BB0_1:", COPY)]
)
def test_code_that_is_not_as_expected_is_refused(copy: str, arrive: str) -> None:
    with pytest.raises(ClusterError, match="follows"):
        with_clusters(code(copy, arrive))
    with pytest.raises(ClusterError, match="0 entries"):
        with_clusters(code(COPY, ARRIVE).replace("reqntid", "maxntid"))

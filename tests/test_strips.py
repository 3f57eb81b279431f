"""The decoder by strips of rows, one a process, equals that of one process, on every rank."""

from __future__ import annotations

import json

import pytest

from sd3par.mesh import Axis, Mesh
from sd3par.vae.strips import Strips
from tests import ranks, tolerances


@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_strips_equal_one_process(world: int) -> None:
    for printed in ranks.run(world, "tests.strips_worker"):
        (line,) = [line for line in printed.splitlines() if line.startswith("RESULT")]
        found = json.loads(line[7:])
        assert len(found) == 2 * 9 + world + 1 + 1
        assert {name: error for name, error in found.items() if not error < tolerances.MODULE} == {}


@pytest.mark.parametrize(
    ("height", "world", "rows"),
    [(9, 4, (3, 2, 2, 2)), (66, 4, (17, 17, 16, 16)), (97, 4, (25, 24, 24, 24)), (128, 8, (16,) * 8), (4, 4, (1,) * 4)],
)
def test_rows_of_strips(height: int, world: int, rows: tuple[int, ...]) -> None:
    strips = Strips.cut(Mesh(world=Axis(world, 1)), height)
    assert strips is not None and strips.rows == rows


def test_one_process_has_all_rows_alone() -> None:
    assert Strips.cut(Mesh.single(), 64) is None
    assert Strips.cut(Mesh(world=Axis(8, 0)), 7) is None

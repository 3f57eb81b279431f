"""Every (dp, mp, sp) of 1, 2 and 4 processes: programs give what eager code gives, on all ranks, in fresh processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import ranks, tolerances
from tests.mesh_worker import meshes
from tests.static import exports


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_mesh_equals_eager(world: int, tmp_path: Path) -> None:
    for parallel in meshes(world):
        exports.write(tmp_path / exports.name_of(parallel), parallel)
    for printed in ranks.run(world, "tests.static.mesh_worker", str(tmp_path), timeout_s=300):
        results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT")]
        assert len(results) == len(meshes(world))
        for result in results:
            wrong = {name: error for name, error in result["errors"].items() if not error < tolerances.PIPELINE}
            assert len(result["errors"]) >= 4 and not wrong, result["mesh"]  # dp 4 cannot split one picture
            assert result["levels"] <= tolerances.PIXEL_LEVELS, result["mesh"]
            assert result["uneven"] < tolerances.MODULE, result["mesh"]

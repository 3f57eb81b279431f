"""A model of made-up weights as files is the model of made-up weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from sd3par import weights
from sd3par.launch.bench import made

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.mark.parametrize("shard", [made.SHARD, 1000])
def test_files_hold_what_is_made(shard: int, tmp_path: Path) -> None:
    made.write("tiny", tmp_path / "model", shard)
    files, wanted = weights.open_model(tmp_path / "model"), weights.open_model("random:tiny")
    several = list(tmp_path.glob("model/*/*-00001-of-*.safetensors"))
    assert len(several) == (0 if shard == made.SHARD else len(made.PARTS))
    for part in made.PARTS:
        found, want = getattr(files, part), getattr(wanted, part)
        assert found.config == {**want.config} and found.checkpoint.shapes() == want.checkpoint.shapes()
        for name in want.checkpoint.shapes():
            assert bool((found.checkpoint.read(name) == want.checkpoint.read(name)).all()), name

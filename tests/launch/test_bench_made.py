"""A model of made-up weights as files is the model of made-up weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sd3par import weights
from sd3par.errors import ConfigError
from sd3par.launch.bench import made
from tests.ranks import ROOT

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


@pytest.mark.parametrize(("words", "said"), [
    ([], "arguments: got ''; allowed: a model (sd3-medium, sd3.5-medium, sd3.5-large, tiny) and a folder"),
    (["other", "model"], "model: got random:other; allowed: random:sd3-medium"),
    (["tiny", "."], "File exists"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(words: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sd3par.launch.bench.made", *words]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if "sd3par: error:" in line]
    assert said in line and "Traceback" not in done.stderr and done.returncode


def test_a_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(made, "save_file", full)
    with pytest.raises(ConfigError, match="transformer.*No space left on device"):
        made.write("tiny", tmp_path / "model")

"""`sd3par export`, and what draws with an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd3par import images
from sd3par.launch import cli
from tests import tolerances

FAST = ["--num_inference_steps=2", "--quiet", "--max_sequence_length=32"]

pytestmark = pytest.mark.usefixtures("folder")


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(name)).astype(int)


def test_export_and_generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one process, then on two, which take the mesh of the export."""
    assert cli.main(["export", "--out", "one"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["export", "size", "what", "where", "took", "run"]
    assert "--engine static --model one" in out and "up to 256 x 256" in out and "error" not in err
    assert cli.main(["export", "--out", "two", "--dp_size=2", "--quiet"]) == 0
    assert cli.main(["generate", "a red circle", *FAST, "--output=eager.png"]) == 0
    for name in ("one", "two"):
        words = ["--engine=static", f"--model={name}", f"--output={name}.png"]
        assert cli.main(["generate", "a red circle", *FAST, *words]) == 0
        assert np.abs(pixels(f"{name}.png") - pixels("eager.png")).max() <= tolerances.PIXEL_LEVELS
        found = images.read_metadata(folder / f"{name}.png")
        assert (found["engine"], found["model"], found["dp"]) == ("static", "tiny", 2 if name == "two" else 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "out: got nothing; allowed: a folder that does not exist yet"),
        (["--out=.", "--quiet"], "out: got .; allowed: a folder that does not exist yet"),
        (["--out=x", "--dtype=bfloat16", "--device=cpu"], "dtype: got bfloat16; allowed: float32 for cpu"),
        (["--out=x", "--device=nvgpu", "--arch=75"], "arch: got 75; allowed: some of 80,90,100"),
        (["--out=x", "--mp_size=5"], "mp_size * sp_size: got 5 * 1 = 5; allowed: at most 4"),
        (["--out=x", "--max_side=2048"], "max_side: got 2048; allowed: 16 to 256"),
        (["--out=x", "--max_images=0"], "num_images_per_prompt: got 0"),
        (["--out=x", "--model=nothing"], "model: got nothing"),
        (["--out=x", "--engine=static"], "arguments: got --engine=static"),
    ],
)
def test_refusals(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"sd3par: error: {said}") and list(folder.iterdir()) == []

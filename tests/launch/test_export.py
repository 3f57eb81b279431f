"""`sd3par export`, and what draws with an export."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd3par import images
from sd3par.launch import cli
from sd3par.pipeline import SD3Pipeline
from tests import tolerances

FAST = ["--num_inference_steps=2", "--quiet", "--max_sequence_length=32"]

pytestmark = pytest.mark.usefixtures("folder")


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(name)).astype(int)


@pytest.mark.slow
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
        (["--out=."], "out: got .; allowed: a folder that does not exist yet"),
        (["--out=x", "--dtype=bfloat16", "--device=cpu"], "dtype: got bfloat16; allowed: float32 for cpu"),
        (["--out=x", "--device=nvgpu", "--arch=75"], "arch: got 75; allowed: some of 80,90,100"),
        (["--out=x", "--mp_size=5"], "mp_size * sp_size: got 5 * 1 = 5; allowed: at most 4"),
        (["--out=x", "--max_side=2048"], "max_side: got 2048; allowed: multiples of 16 from 16 to 256"),
        (["--out=x", "--max_side=100"], "max_side: got 100; allowed: multiples of 16 from 16 to 256"),
        (["--out=x", "--max_images=0"], "num_images_per_prompt: got 0"),
        (["--out=x", "--dp_size=3", "--max_images=2"], "dp_size: got 3; allowed: odd numbers up to 2 and even ones up"),
        (["--out=x", "--model=nothing"], "model: got nothing"),
        (["--out=x", "--engine=static"], "arguments: got --engine=static"),
    ],
)
def test_refusals(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sd3par: error: {said}") and error.count("\n") == 1 and list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--max_side=64"], ["--height", "64", "--width", "64"]),
        (["--max_sequence_length=16", "--no_t5"], ["--max_sequence_length", "16"]),
        (["--max_side=160", "--max_images=1"], []),
        pytest.param(
            ["--dp_size=3"], ["--dp_size", "3", "--mp_size", "1", "--sp_size", "1", "--num_images_per_prompt", "3"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_what_is_printed_runs(
    words: list[str], flags: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--out=a folder", *words]) == 0
    printed = shlex.split(re.sub("^run +", "", capsys.readouterr().out.splitlines()[-1]))
    assert printed == ["sd3par", "generate", "...", "--engine", "static", "--model", "a folder", *flags]
    assert cli.main([*printed[1:], "--num_inference_steps=1", "--quiet"]) == 0
    assert len(list(folder.glob("sd3par-0*.png"))) == (3 if "--dp_size=3" in words else 1)


def test_without_text_encoders_python_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--out=-a", "--no_text"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    begin = "run     in Python: sd3par.SD3Pipeline.from_pretrained('-a', parallel=\"auto\")(prompt_embeds=..., pooled"
    assert line.startswith(begin)
    sizes = {"prompt_embeds": (1, 80, 96), "pooled_prompt_embeds": (1, 80)}
    arrays = {f"{half}{name}": np.ones(size) for name, size in sizes.items() for half in ("", "negative_")}
    assert re.findall(r"(\w+)=\.\.\.", line) == [
        "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds",
    ]  # fmt: skip
    SD3Pipeline.from_pretrained("-a", parallel="auto")(**arrays, num_inference_steps=1, progress=False)


def test_a_folder_that_looks_like_a_flag(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--out=-a"]) == 0
    assert "--model ./-a" in capsys.readouterr().out


def test_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert cli.main(["export", "--out=~/a", "--quiet"]) == 0
    assert cli.main(["generate", "x", *FAST, "--model=~/a"]) == 0

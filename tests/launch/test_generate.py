"""Commands that draw: the files, what is in them, what is printed; the same picture on one process and on several."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd3par import images
from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.launch import cli, worker
from sd3par.pipeline import SD3Pipeline
from sd3par.watchdog import Watchdog
from tests.ranks import ROOT

FAST = ["--num-inference-steps", "2"]
REPORT = ["picture", "what", "where", "load", "encode", "denoise", "decode", "total"]

pytestmark = pytest.mark.usefixtures("folder")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_generate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed", "5", "--prompt_2=b", "--negative_prompt=green", "--height=64", "--width=96",
             "--guidance_scale=3", "--max_sequence_length=99", "--no_t5"]  # fmt: skip
    assert cli.main(["generate", "a 'blue' square\nReally: 🔵", *FAST, *words]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == REPORT
    assert "sd3par-5.png" in out and "96 x 64, seed 5, 2 steps" in out and "ms per step" in out
    assert "cpu float32, dp 1 x mp 1 x sp 1" in out
    assert "2/2" in err and "error" not in err
    assert [path.name for path in folder.iterdir()] == ["sd3par-5.png"]
    assert pixels(folder / "sd3par-5.png").shape == (64, 96, 3)
    found = images.read_metadata(folder / "sd3par-5.png")
    assert (found["prompt"], found["negative_prompt"]) == ("a 'blue' square\nReally: 🔵", "green")
    assert (found["prompt_2"], found["prompt_3"], found["image"], found["strength"]) == ("b", None, None, None)
    assert (found["text_encoder_3"], found["max_sequence_length"]) == (False, 99)
    assert (found["seed"], found["steps"], found["guidance_scale"]) == (5, 2, 3.0)
    assert (found["width"], found["height"], found["model"], found["dtype"]) == (96, 64, "tiny", "float32")
    assert (found["dp"], found["mp"], found["sp"], found["engine"], found["version"]) == (1, 1, 1, "eager", "0.1.0")


def test_picture_is_that_of_the_library(folder: Path) -> None:
    assert worker.main([*FAST, "--seed=3", "--quiet", "--no-metadata"]) == 0
    pipe = SD3Pipeline.from_pretrained("tiny")
    picture = pipe("a red circle on a blue background", num_inference_steps=2, seed=3, progress=False).images[0]
    assert (pixels(folder / "sd3par-3.png") == np.asarray(picture)).all()
    with pytest.raises(ConfigError):
        images.read_metadata(folder / "sd3par-3.png")


def test_several_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a circle", *FAST, "--num_images_per_prompt=2", "--output=p.png", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in folder.iterdir()) == ["p-0.png", "p-1.png"]
    assert [images.read_metadata(folder / f"p-{i}.png")["seed"] for i in range(2)] == [0, 1]
    assert (pixels(folder / "p-0.png") != pixels(folder / "p-1.png")).any()


def test_prompts_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.txt").write_text("# two\na red circle\na green square\n")
    assert cli.main(["generate", "--prompts_file", "prompts.txt", *FAST, "--seed=4"]) == 0
    out, err = capsys.readouterr()
    assert "pictures  sd3par-4-0.png ... sd3par-4-1.png (2)" in out
    assert "prompts: 100%" in err and "denoise" not in err
    assert [images.read_metadata(folder / f"sd3par-4-{i}.png")["prompt"] for i in range(2)] == [
        "a red circle", "a green square",
    ]  # fmt: skip
    assert cli.main(["generate", "a green square", *FAST, "--seed=4", "--output=alone.png", "--quiet"]) == 0
    assert (pixels(folder / "sd3par-4-1.png") == pixels(folder / "alone.png")).all()


def test_image_to_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (50, 40), "white").save("start.png")
    words = ["generate", "a red circle", *FAST, "--image=start.png", "--quiet"]
    assert cli.main([*words, "--output=strong.png", "--strength=1"]) == 0
    assert cli.main([*words, "--output=weak.png", "--strength=0.5"]) == 0
    assert abs(pixels(folder / "weak.png") - 255).mean() < abs(pixels(folder / "strong.png") - 255).mean()


def test_image_to_image_again_from_its_metadata(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "photos").mkdir()
    Image.new("RGB", (50, 40), "white").save("photos/start.png")
    flags = ["--num_inference_steps=5", "--strength=0.8", "--seed=3", "--num_images_per_prompt=2", "--prompt_3=blue"]
    assert cli.main(["generate", "--prompt=a red circle", "--image=photos/start.png", "--output=a.png", *flags]) == 0
    assert "seed 3, 4 of 5 steps" in capsys.readouterr().out
    made = images.read_metadata(folder / "a-1.png")
    assert (made["image"], made["strength"], made["steps"], made["text_encoder_3"]) == ("start.png", 0.8, 5, True)
    assert cli.main(["show", "a-1.png"]) == 0
    shown = {line[:21].strip(): line[21:] for line in capsys.readouterr().out.splitlines()}
    assert (shown["image"], shown["strength"], shown["prompt_3"]) == ("start.png", "0.8", "blue")
    assert "prompt_2" not in shown
    names = ("prompt", "prompt_3", "seed", "guidance_scale", "strength", "width", "height", "max_sequence_length")
    again = [f"--{name}={made[name]}" for name in names] + [f"--num_inference_steps={made['steps']}"]
    assert cli.main(["generate", *again, f"--image=photos/{made['image']}", "--output=b.png", "--quiet"]) == 0
    assert abs(pixels(folder / "a-1.png") - pixels(folder / "b.png")).max() <= 1  # a batch of two is rounded otherwise


def test_error_of_writing_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def full(*_: object) -> None:
        raise ConfigError("output", "a.png", "a disk with space")

    monkeypatch.setattr(images, "save_png", full)
    monkeypatch.setattr(Watchdog, "fail", lambda watchdog, reason: told.append(reason))
    assert cli.main(["generate", "x", *FAST, "--output=a.png", "--quiet"]) == 2
    assert [reason for reason in told if "a disk with space" in reason] == told != []


def test_overwrite(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"old")
    assert cli.main(["generate", "x", *FAST, "--output=a.png", "--overwrite", "--quiet"]) == 0
    assert pixels(folder / "a.png").shape == (128, 128, 3)


def test_benchmark_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main([*FAST, "--benchmark", "3"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"128 x 128, 2 steps, 3 repeats\n", out)
    assert re.search(
        r"\n +median +min\nloop +\d+\.\d+ s +\d+\.\d+ s\nimage +\d+\.\d+ s +\d+\.\d+ s\nstep +\S+ ms +\S+ ms\n", out
    )
    assert err == ""
    assert list(folder.iterdir()) == []


def test_figures_that_were_asked_for_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "x", *FAST, "--benchmark", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        "what",
        "where",
        "load",
        "median",
        "loop",
        "image",
        "step",
    ]
    assert err == ""


def test_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = images.ImageMetadata(
        prompt="a\n\x1b[31mred", negative_prompt="", seed=1, steps=2, guidance_scale=7.0, width=16, height=16,
        model="tiny", dtype="float32", dp=1, mp=1, sp=1, engine="eager", version="0.1.0",
    )  # fmt: skip
    images.save_png("a.png", np.zeros((16, 16, 3), np.uint8), made, overwrite=False)
    assert cli.main(["show", "a.png"]) == 0
    out = capsys.readouterr().out
    assert "prompt           a\\n\\x1b[31mred\n" in out and "steps            2\n" in out
    assert "\x1b" not in out and "strength" not in out and "null" not in out
    assert cli.main(["show", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a\n\x1b[31mred"


@pytest.mark.slow
def test_same_picture_on_four_processes(folder: Path) -> None:
    words = ["a red circle", "--num-inference-steps", "4", "--seed", "2"]
    command = [sys.executable, "-m", "sd3par", "generate", *words, "--dp-size=2", "--mp-size=2", "--output", "four.png"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == REPORT
    assert "dp 2 x mp 2 x sp 1" in done.stdout
    assert "4/4" in done.stderr
    assert not re.search(r"FLAGS|tcp_|ccache|LAUNCH", done.stderr)
    assert [path.name for path in folder.iterdir()] == ["four.png"]  # no logs either
    assert cli.main(["generate", *words, "--output=one.png", "--quiet"]) == 0
    assert abs(pixels(folder / "four.png") - pixels(folder / "one.png")).max() <= 1
    found = images.read_metadata(folder / "four.png")
    assert ParallelConfig(found["dp"], found["mp"], found["sp"]) == ParallelConfig(2, 2, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_what_make_demo_shows(folder: Path) -> None:
    """The picture's report and a progress bar, and nothing that Paddle says of itself."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of another make
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, env=outside, capture_output=True, text=True,
                             timeout=60).stdout  # fmt: skip
    words = shlex.split(printed[printed.index(".venv/bin/sd3par ") :].replace("\\\n", " "))
    command = [sys.executable, "-m", "sd3par", *words[1:]]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == REPORT
    assert {line.split()[0] for line in re.split(r"[\r\n]+", done.stderr) if line.strip()} == {"denoise:"}
    assert pixels(folder / "demo.png").shape == (128, 128, 3)


@pytest.mark.slow
def test_two_runs_on_one_machine_do_not_meet(folder: Path) -> None:
    """Ports, stores and log folders of two meshes started at the same time (and of the same seed) are their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "sd3par", "generate", "a red circle", *FAST, "--quiet"]
    runs = [
        subprocess.Popen(
            [*command, flag, f"--output={number}.png"], cwd=folder, env=environment, stderr=subprocess.PIPE
        )
        for number, flag in enumerate(("--mp_size=2", "--sp_size=2"))
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert abs(pixels(folder / "0.png") - pixels(folder / "1.png")).max() <= 1

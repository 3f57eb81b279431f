"""From flags to requests and file names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sd3par.config import GenerationRequest, ParallelConfig
from sd3par.errors import ConfigError
from sd3par.images import png
from sd3par.launch.flags import render_parser
from sd3par.launch.job import Job, numbered, read_prompts
from sd3par.weights.manifest import FORMAT, MANIFEST


def job(*words: str) -> Job:
    return Job.of(render_parser("", "", prompt_flag=True).parse(words))


@pytest.mark.parametrize("words", [[], ["--model", "EXPORT", "--engine", "static"]])
def test_an_exports_files_are_read_before_paddle_is_imported(words: list[str], tmp_path: Path) -> None:
    """So nothing of a job may import it before."""
    parallel = {"dp": 1, "mp": 1, "sp": 1, "transport": "collective"}
    (tmp_path / MANIFEST).write_text(json.dumps({"format": FORMAT, **parallel}))
    code = """if True:
        import sys
        from sd3par.errors import CheckpointError
        from sd3par.launch import job, worker
        from sd3par.launch.flags import render_parser
        try:
            job.Job.of(render_parser("", "", prompt_flag=True).parse(sys.argv[1:]))
        except CheckpointError as error:
            print(error)
        print("paddle" in sys.modules)
    """
    words = [str(tmp_path) if word == "EXPORT" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", code, "--prompt=a", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stdout
    assert (MANIFEST in done.stdout) == bool(words)  # which holds too little, and was read


def test_every_flag_reaches_the_request() -> None:
    made = job(
        "--prompt=a", "--prompt_2=b", "--prompt_3=c", "--negative_prompt=d", "--height=64", "--width=32", "--seed=7",
        "--num_inference_steps=3", "--guidance_scale=2.5", "--num_images_per_prompt=4", "--max_sequence_length=99",
        "--image=x.png", "--strength=0.25", "--dp_size=2", "--mp_size=3", "--sp_size=4",
    )  # fmt: skip
    assert made.requests == (
        GenerationRequest(
            prompt=("a",), prompt_2=("b",), prompt_3=("c",), negative_prompt=("d",), height=64, width=32, seed=7,
            num_inference_steps=3, guidance_scale=2.5, num_images_per_prompt=4, max_sequence_length=99, strength=0.25,
        ),
    )  # fmt: skip
    assert made.parallel == ParallelConfig(2, 3, 4)
    assert made.inputs.image == "x.png"
    assert [path.name for path in made.outputs] == [f"sd3par-7-{i}.png" for i in range(4)]


def test_flags_that_were_not_given() -> None:
    assert job("--prompt=a").requests == (GenerationRequest(("a",)),)
    assert job("--prompt=a").outputs == (Path("sd3par-0.png"),)


def test_sizes_are_filled_in_at_the_door(tmp_path: Path) -> None:
    checked = job("--prompt=a", f"--output={tmp_path / 'a.png'}").check(writes=True)
    assert [(request.height, request.width) for request in checked.requests] == [(128, 128)]
    assert list(tmp_path.iterdir()) == []


def test_prompts_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red circle\r\n\r\n# no\n  grün 🔴\u2028x \n#\n\ta # b\n".encode())
    assert read_prompts(str(file)) == ["a red circle", "grün 🔴\u2028x", "a # b"]
    made = job(f"--prompts_file={file}", "--output=dir/p.png", "--num_images_per_prompt=2", "--seed=5")
    assert [(request.prompt, request.seed) for request in made.requests] == [
        (("a red circle",), 5), (("grün 🔴\u2028x",), 5), (("a # b",), 5),
    ]  # fmt: skip
    assert made.outputs == tuple(Path(f"dir/p-{index}.png") for index in range(6))


def test_longest_prompts_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("x\n" * 10_000)
    made = job(f"--prompts_file={file}")
    assert len(made.requests) == 10_000
    assert (made.outputs[0].name, made.outputs[-1].name) == ("sd3par-0-0000.png", "sd3par-0-9999.png")


@pytest.mark.parametrize("name, count, names", [
    ("a.png", 1, ["a.png"]),
    ("a.png", 2, ["a-0.png", "a-1.png"]),
    ("b/a.b.PNG", 2, ["b/a.b-0.PNG", "b/a.b-1.PNG"]),
    ("a.png", 11, [f"a-{index:02}.png" for index in range(11)]),
])  # fmt: skip
def test_numbered(name: str, count: int, names: list[str]) -> None:
    assert [str(path) for path in numbered(Path(name), count)] == names


def test_many_outputs_are_tried_with_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for each of 640,000 took a minute."""
    made: list[Path] = []
    create = png._create_part
    monkeypatch.setattr(png, "_create_part", lambda path: (made.append(path), create(path))[1])
    many = job("--prompt=a", f"--output={tmp_path / 'a.png'}", "--num_images_per_prompt=64")
    many.check(writes=True)
    assert made == [tmp_path / "a-00.png"] and list(tmp_path.iterdir()) == []
    (tmp_path / "a-63.png").touch()
    with pytest.raises(ConfigError, match="a-63.png; allowed: a new file"):
        many.check(writes=True)

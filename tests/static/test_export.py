"""An export of one process: what is in it, and that it renders what eager code renders, in a process without that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par.config import ParallelConfig
from sd3par.errors import CheckpointError, ConfigError
from sd3par.pipeline import SD3Pipeline
from sd3par.static.export import Target, export
from sd3par.static.load import Programs
from sd3par.static.mesh import TracedMesh
from sd3par.static.program import Program
from sd3par.static.write import PARAMETERS
from sd3par.weights import manifest, open_model
from sd3par.weights.export_files import Export
from sd3par.weights.manifest import MANIFEST, Manifest
from tests import tolerances
from tests.ranks import ROOT
from tests.static import exports

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.write(tmp_path_factory.mktemp("export") / "whole")


def run(*arguments: str, path: str = "") -> str:
    """Runs Python in a fresh process, with `path` as its module path; returns what it prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, env={"PYTHONPATH": path, "PATH": ""},
                          capture_output=True, text=True, timeout=200, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_static_equals_eager_in_a_process_without_the_models_code(folder: Path, tmp_path: Path) -> None:
    run("-m", "tests.static.alone_worker", str(folder), str(tmp_path / "found.npz"), path=str(ROOT))
    eager = SD3Pipeline.from_pretrained(exports.files(trained=False), device="cpu")
    with np.load(tmp_path / "found.npz") as found:
        for name in exports.CASES:
            wanted = eager(**exports.options(name)).images.numpy()
            assert np.abs(found[name] - wanted).max() < tolerances.PIPELINE * wanted.std(), name
        one = exports.options("one")
        picture = eager(**(one | dict(output_type="np"))).images
        assert np.abs(found["picture"] - picture).max() <= tolerances.PIXEL_LEVELS / 255
        wanted = eager(**(one | dict(image=exports.start()))).images.numpy()
        assert np.abs(found["image-to-image"] - wanted).max() < tolerances.PIPELINE * wanted.std()


def test_example_without_sd3par(folder: Path, tmp_path: Path) -> None:
    """launch/static_example.py, by Paddle Inference."""
    draw = np.random.default_rng(1).standard_normal
    context, pooled, latents = (draw(shape).astype(np.float32) for shape in ((4, 50, 96), (4, 80), (2, 16, 8, 10)))
    np.savez(tmp_path / "in.npz", context=context, pooled=pooled, latents=latents)
    words = ["--inputs", str(tmp_path / "in.npz"), "--out", str(tmp_path / "out.npy"), "--steps=2"]
    assert "latents [2, 16, 8, 10]" in run("launch/static_example.py", str(folder), *words)
    pipe = SD3Pipeline.from_pretrained(folder)
    given: dict[str, Any] = dict(
        prompt_embeds=context[2:], negative_prompt_embeds=context[:2], pooled_prompt_embeds=pooled[2:],
        negative_pooled_prompt_embeds=pooled[:2], latents=latents, height=64, width=80, max_sequence_length=9,
    )  # fmt: skip
    wanted = pipe(**given, num_inference_steps=2, output_type="latent", progress=False).images.numpy()
    assert np.abs(np.load(tmp_path / "out.npy") - wanted).max() < tolerances.PIPELINE * wanted.std()


def test_exported_twice_is_the_same(folder: Path, tmp_path: Path) -> None:
    again = exports.write(tmp_path / "again")
    names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert names == sorted(path.relative_to(again) for path in again.rglob("*"))
    files = [name for name in names if (folder / name).is_file()]
    assert [str(name) for name in files if (folder / name).read_bytes() != (again / name).read_bytes()] == []


def test_manifest(folder: Path) -> None:
    found, written = Manifest.read(folder), {path.name for path in folder.rglob("*") if path.is_file()}
    assert (found.model, found.dtype, found.target, found.operators) == ("tiny", "float32", "cpu", ())
    assert (found.paddle, found.parallel, found.most) == (paddle.__version__, ParallelConfig(), exports.LIMITS)
    assert {Path(name).name for name in found.files} | {MANIFEST} == written
    assert all(file["sha256"] == _sha256(folder / name) for name, file in found.files.items())


def _sha256(path: Path) -> list[str]:
    """Returns what sha256sum prints of a file, or of each 64 MiB."""
    data = path.read_bytes()
    return [hashlib.sha256(data[start : start + (64 << 20)]).hexdigest() for start in range(0, len(data), 64 << 20)]


def test_large_files_have_a_digest_for_each_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "BLOCK", 3)
    (tmp_path / "x").write_bytes(b"abcdefgh")
    (tmp_path / "empty").write_bytes(b"")
    wanted = [hashlib.sha256(part).hexdigest() for part in (b"abc", b"def", b"gh")]
    found = manifest.described(tmp_path, ["x", "empty"])
    assert found["x"] == {"bytes": 8, "sha256": tuple(wanted)}
    assert found["empty"]["sha256"] == (hashlib.sha256(b"").hexdigest(),)


def test_every_parameter_is_written_once(tmp_path: Path) -> None:
    """Also on two ranks of dp, whose parameters are the same."""
    folder = exports.write(tmp_path / "dp2", ParallelConfig(dp=2))
    pipe = SD3Pipeline.load(exports.files(trained=False), *_alone())
    parts = (pipe.transformer, pipe.vae, pipe.text.clip_l, pipe.text.clip_g)
    held = sum(4 * p.size for part in parts for p in part.parameters())
    t5 = sum(4 * p.size for p in pipe.text.t5.parameters())
    written = sum(path.stat().st_size for path in folder.rglob(f"*{PARAMETERS}"))
    assert held + t5 <= written <= 1.02 * (held + 2 * t5)  # two ranks split T5, and both have its embedding


def _alone():  # type: ignore[no-untyped-def]
    from sd3par.device import choose
    from sd3par.mesh import Mesh

    return choose("float32", "cpu"), Mesh.single(), ParallelConfig()


def test_another_checkpoint_has_another_fingerprint(folder: Path, tmp_path: Path) -> None:
    other = exports.write(tmp_path / "trained", trained=True)
    assert Manifest.read(other).weights != Manifest.read(folder).weights
    assert (other / "step-0.json").read_bytes() == (folder / "step-0.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)  # the plug-in may have to be built
def test_programs_for_gpus(dry_plugin: Path, tmp_path: Path) -> None:
    """Written here, without one."""
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(dry_plugin), "GLOG_minloglevel": "2"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.static.for_gpus", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for wanted, (ranks, different), made in [
        ({"all_reduce": 6}, (2, 1), found[0]),  # 3 blocks, two sums each, of both streams together
        ({"all_to_all": 13}, (2, 1), found[1]),  # 3 blocks, two streams there and back, a dual one has three
        ({"all_gather": 1, "all_reduce": 6, "all_to_all": 13}, (8, 8), found[2]),
    ]:
        assert (made["target"], made["dtype"], made["architectures"]) == ("cuda", "bfloat16", [90])
        assert made["collectives"] == [wanted] * ranks
        assert made["different"] == different  # the one group of one axis is the world
        assert "for which this model was exported" in made["refused"]


def test_half_precision_without_its_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paddle.device, "get_all_custom_device_type", lambda: [])
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: False)
    target = Target(ParallelConfig(), "bfloat16", "cuda", (90,))
    with pytest.raises(ConfigError, match="dtype: got bfloat16; allowed: float32 with this Paddle; python -m"):
        export(exports.files(False), tmp_path / "half", target, exports.LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_collective_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = TracedMesh.all_reduce

    def lose_one(self, axis, x):  # type: ignore[no-untyped-def]
        kept(self, axis, x)
        return x

    monkeypatch.setattr(TracedMesh, "all_reduce", lose_one)
    with pytest.raises(CheckpointError, match="a program with none of its collectives; allowed: 10 all_reduce"):
        exports.write(tmp_path / "lost", ParallelConfig(mp=2))
    assert list(tmp_path.iterdir()) == []


def test_programs_keep_no_lines_of_python(folder: Path) -> None:
    """Which Paddle noted with each operator; tracebacks are Python's own again."""
    for program in folder.glob("*.json"):
        text = program.read_text("utf-8")
        assert "callstack" not in text and str(ROOT) not in text
    assert traceback.extract_stack()[-1].name == "test_programs_keep_no_lines_of_python"


def test_folder_that_exists(folder: Path) -> None:
    with pytest.raises(ConfigError, match="a folder that does not exist yet"):
        exports.write(folder)


def test_what_steps_take_gets_ready_before_parameters_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps nothing of that; nothing is run where other ranks would have to."""
    ready, kept = [], Program.get_ready

    def counted(program: Program, length: int) -> None:
        kept(program, length)
        ready.append((program._path.name, len(program._parameters)))

    monkeypatch.setattr(Program, "get_ready", counted)
    SD3Pipeline.from_pretrained(folder, text_encoder_3=False)
    assert ready == [("prepare-0.json", 0), ("step-0.json", 0)]
    export = Export.open(folder)
    for dp in (1, 2):
        changed = replace(export.manifest, programs={}, configs={}, dp=dp)
        assert Programs(replace(export, manifest=changed), 0, ()).alone == (dp == 1)


def test_without_t5_or_any_text_encoder(folder: Path, tmp_path: Path) -> None:
    short = SD3Pipeline.from_pretrained(folder, text_encoder_3=False)
    assert short.text is not None and short.text.t5 is None
    files = open_model("tiny", text_encoders=False)
    export(files, tmp_path / "none", Target(ParallelConfig(), "float32", "cpu"), exports.LIMITS)
    assert "text_encoder" not in json.loads((tmp_path / "none" / MANIFEST).read_text("utf-8"))["programs"]
    pipe = SD3Pipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no text encoders"):
        pipe("a prompt")

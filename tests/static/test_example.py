"""launch/static_example.py: what it refuses, in one line and before it runs anything; what it imports."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd3par.launch import static_example
from tests.ranks import ROOT
from tests.static import exports
from tests.static.test_refusals import change, flipped

SHAPES = {"context": (2, 50, 96), "pooled": (2, 80), "latents": (1, 16, 8, 10)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.write(tmp_path_factory.mktemp("export") / "whole")


@pytest.fixture
def export(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to be broken, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(static_example, "denoise", lambda *_: pytest.fail("it went to work"))
    return Path(shutil.copytree(whole, "export"))


def refused(capsys: pytest.CaptureFixture[str], said: str, *words: str) -> None:
    """Checks that the example ends with one line that says so, and leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    assert static_example.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("static_example.py: error: ") and said in err, err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "arguments are required: folder"),
        (["nowhere"], "folder: got nowhere; allowed: what sd3par export wrote"),
        (["."], "folder: got .; allowed: what sd3par export wrote, with sd3par-export.json in it"),
        (["export/sd3par-export.json"], "folder: got export/sd3par-export.json"),
        (["export", "--step=2"], "unrecognized arguments: --step=2"),
        (["export", "--steps=0"], "--steps: got 0; allowed: 1 to 1000"),
        (["export", "--steps=x"], "argument --steps: invalid int value: 'x'"),
        (["export", "--guidance_scale=nan"], "--guidance_scale: got nan; allowed: 0 to 100"),
        (["export", "--device=tpu"], "--device: got tpu; allowed: cpu, for which it was exported"),
        (["export", "--device=cpu:1"], "--device: got cpu:1; allowed: cpu, for which"),
        (["export", "--height=100"], "--height: got 100; allowed: multiples of 16 from 16 to 256"),
        (["export", "--width=272"], "--width: got 272; allowed: multiples of 16 from 16 to 256"),
        (["export", "--out=export"], "--out: got export; allowed: a name that ends in .npy"),
        (["export", "--out=none/a.npy"], "--out: got none/a.npy; allowed: a file that can be written (No such file"),
        (["export", "--out=/proc/a.npy"], "--out: got /proc/a.npy; allowed: a file that can be written"),
        (["export", "--inputs=none.npz"], "--inputs: got none.npz; allowed: an .npz file"),
        (["export", "--inputs=export"], "--inputs: got export; allowed: an .npz file"),
        (["export", "--inputs=a.npz", "--height=64"], "--height: got 64; allowed: nothing beside --inputs"),
    ],
)
def test_words(words: list[str], said: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, said, *words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("[" * 100_000, "RecursionError"),
        ("{}", "KeyError: 'format'"),
        ('{"format": 1}', "format: got 1; allowed: 2"),
    ],
)
def test_other_manifests(text: str, said: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "sd3par-export.json").write_text(text)
    refused(capsys, said, "export")


@pytest.mark.parametrize(
    ("values", "words", "said"),
    [
        ({"dp": 2}, [], "for the processes of dp 2 x mp 1 x sp 1; allowed: an export for one process"),
        ({"target": "cuda"}, ["--device=cpu"], "--device: got cpu; allowed: gpu or nvgpu, for which it was exported"),
        ({"target": "cuda"}, [], "--device: got nvgpu; allowed: one of the 0 of this machine, as nvgpu:0"),
        ({"target": "cuda"}, ["--device=gpu:7"], "--device: got gpu:7; allowed: one of the 0 of this machine"),
        ({"target": "cuda"}, ["--device=nvgpu:x"], "--device: got nvgpu:x; allowed: one of the"),
        ({"configs": {}}, [], "KeyError: 'transformer'"),
        ({"scheduler": {"shift": "much"}}, [], "ValueError: could not convert"),
        ({"operators": ["../a.so"]}, [], "folder: got no file export/../a.so"),
        ({"limits": {"side": 64, "images": 1, "text": 8}}, ["--height=128"], "multiples of 16 from 16 to 64"),
    ],
)
def test_exports_for_something_else(
    values: dict[str, Any], words: list[str], said: str, export: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("paddle.device.is_compiled_with_cuda", lambda: False)
    monkeypatch.setattr("paddle.device.get_available_custom_device", lambda: [])
    change(export, **values)
    refused(capsys, said, "export", *words)


@pytest.mark.parametrize("name", ["step-0.pdiparams", "prepare-0.json"])
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: path.unlink(), "no file export/"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "changed since it was exported"),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "changed since it was exported"),
    ],
)
def test_missing_or_changed_files(
    name: str, break_it: Callable[[Path], Any], said: str, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it(export / name)
    refused(capsys, said, "export")


def test_digests_of_blocks(export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of several blocks has several, and the last one counts."""
    monkeypatch.setattr(static_example, "BLOCK", 1 << 20)
    monkeypatch.setattr("sd3par.weights.manifest.BLOCK", 1 << 20)
    from sd3par.weights.manifest import described

    files = json.loads((export / "sd3par-export.json").read_text())["files"]
    change(export, files=described(export, files))
    static_example.Export(export).check_files()
    with (export / "step-0.pdiparams").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    refused(capsys, "step-0.pdiparams, changed since it was exported", "export")


@pytest.mark.parametrize(
    ("name", "change_it", "said"),
    [
        ("context", lambda x: x[..., :95], "a.npz: context: got shape [2, 50, 95]; allowed: [2, 50, 96]"),
        ("context", lambda x: x[0], "a.npz: context: got shape [50, 96]; allowed: 3 axes"),
        ("context", lambda x: x[:, :0], "a.npz: context: got 0 tokens; allowed: 1 to 205"),
        ("context", lambda x: x.astype("U8"), "a.npz: context: got <U8; allowed: an array of numbers"),
        ("context", lambda x: x.astype(object), "an .npz file that is whole and of numbers (Object arrays"),
        ("pooled", lambda x: x[:1], "a.npz: pooled: got shape [1, 80]; allowed: [2, 80]"),
        ("pooled", lambda x: x * np.nan, "a.npz: pooled: got NaN or infinity"),
        ("pooled", lambda x: x.astype(np.float64) * 1e300, "a.npz: pooled: got NaN or infinity"),
        ("latents", lambda x: x[0], "a.npz: latents: got shape [16, 8, 10]; allowed: 4 axes"),
        ("latents", lambda x: x[..., :9], "a.npz: latents: pixels of width: got 72; allowed: multiples of 16"),
        ("latents", lambda x: x.repeat(5, 2), "a.npz: latents: pixels of height: got 320; allowed: multiples of 16"),
        ("latents", lambda x: x.repeat(5, 0), "a.npz: latents: got 5 pictures; allowed: 1 to 4"),
        ("latents", lambda x: x[:, :4], "a.npz: latents: got shape [1, 4, 8, 10]; allowed: [1, 16, 8, 10]"),
        ("latents", lambda x: None, "--inputs: got a.npz without latents; allowed: one with context, pooled, latents"),
    ],
)
def test_inputs(
    name: str, change_it: Callable[[np.ndarray], Any], said: str, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {one: np.ones(shape, np.float32) for one, shape in SHAPES.items()}
    given[name] = change_it(given[name])
    np.savez("a.npz", **{one: array for one, array in given.items() if array is not None})
    refused(capsys, said, "export", "--inputs=a.npz")


def test_inputs_that_are_damaged(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("a.npz", **{one: np.ones(shape, np.float32) for one, shape in SHAPES.items()})
    data = bytearray(Path("a.npz").read_bytes())
    data[500] ^= 1
    Path("a.npz").write_bytes(data)
    refused(capsys, "that is whole and of numbers (Bad CRC-32", "export", "--inputs=a.npz")


def test_a_full_disk(export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_example, "denoise", lambda *_: np.ones(SHAPES["latents"], np.float32))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert static_example.main(["export", "--out=a.npy"]) == 2
    assert "--out: got a.npy; allowed: a file that can be written (No space left on device)" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["export"]


def test_it_imports_nothing_of_sd3par() -> None:
    tree = ast.parse((ROOT / "launch" / "static_example.py").read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "paddle" in names and not [name for name in names if name.startswith(("sd3par", "launch"))]

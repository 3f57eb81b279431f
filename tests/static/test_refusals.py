"""What an export refuses: one line, before any work, on every rank."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sd3par import device
from sd3par.config import ParallelConfig
from sd3par.errors import CheckpointError, ConfigError
from sd3par.pipeline import SD3Pipeline
from sd3par.weights.manifest import MANIFEST
from tests.static import exports


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one process."""
    return exports.write(tmp_path_factory.mktemp("export") / "whole")


@pytest.fixture
def export(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(whole, tmp_path / "export"))


def refusal(path: Path, **options: Any) -> str:
    """Returns the one line that loading an export ends with."""
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        SD3Pipeline.from_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **values: Any) -> None:
    """Writes other values into a manifest."""
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    (path / MANIFEST).write_text(json.dumps(manifest | values), "utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(parallel=ParallelConfig(mp=2)), "--dp_size 1 --mp_size 1 --sp_size 1, for which this model was exported"),
        (dict(parallel="none"), "a ParallelConfig"),
        (dict(dtype="bfloat16"), "auto or float32, in which this model was exported"),
        (dict(engine="graph"), "auto or static"),
        (dict(engine="eager"), "auto or static"),
        (dict(tokenizers="."), "an exported model has its own"),
    ],
)
def test_what_it_was_not_exported_for(whole: Path, options: dict[str, Any], said: str) -> None:
    assert said in refusal(whole, **options)


@pytest.mark.parametrize(("own", "asked"), [("collective", "peer"), ("peer", "collective")])
def test_another_transport(export: Path, own: str, asked: str) -> None:
    whole = json.loads((export / MANIFEST).read_text("utf-8"))
    programs = {name: pairs * 2 for name, pairs in whole["programs"].items()}
    change(export, mp=2, transport=own, programs=programs)
    said = f"transport: got {asked}; allowed: auto or {own}, for which this model was exported"
    assert said in refusal(export, parallel=ParallelConfig(mp=2, transport=asked))


def test_another_world(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    assert "2, the number of processes that were started" in refusal(whole)


@pytest.mark.parametrize(
    ("target", "kind", "said"),
    [
        ("cuda", "cpu", "device: got cpu; allowed: gpu or nvgpu, for which this model was exported"),
        ("cpu", "nvgpu", "device: got nvgpu; allowed: cpu, for which this model was exported"),
    ],
)
def test_another_device(export: Path, target: str, kind: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available", lambda: [kind, "cpu"])
    change(export, target=target)
    assert said in refusal(export, device=kind)


def test_another_format(export: Path) -> None:
    change(export, format=1)
    assert "format 1; allowed: format 2" in refusal(export)


def flipped(data: bytes) -> bytes:
    """Returns data with one bit changed, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes; allowed: "),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "changed since it was exported"),
    ],
)
@pytest.mark.parametrize("name", ["step-0.pdiparams", "prepare-0.json", "decode.json", "text_encoder_3-0.pdiparams"])
def test_missing_or_changed_files(export: Path, name: str, break_it: Callable[[Path], Any], said: str) -> None:
    break_it(export / name)
    found = refusal(export)
    assert said in found and name in found


NAMES = {"prepare": "prepare-0", "step": "step-0", "decode": "decode", "encode": "encode"}
PROGRAMS = {name: [[f"{file}.json", f"{file}.pdiparams"]] for name, file in NAMES.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"dp": "1"},
        {"configs": {}},
        {"configs": {"transformer": []}},
        {"limits": {"side": 256}},
        {"limits": {"side": 256, "images": "4", "text": 1}},
        {"operators": ["other.so"]},
        {"operators": [["decode.json"]]},
        {"programs": None},
        {"programs": PROGRAMS},  # none for the text encoders, whose configs are there
        {"programs": {"step": [["other.json", "decode.pdiparams"]]}},
        {"programs": {"step": [["decode.json"]]}},
        {"programs": {"step": ["decode.json"]}},
        {"programs": {"step": [None, None]}},
        {"programs": {"step": 5}},
        {"files": {"decode.json": 5}},
        {"files": {"decode.json": {"bytes": 5}}},
        {"files": {"decode.json": {"bytes": 5, "sha256": "0"}}},
    ],
)
def test_other_manifests(export: Path, values: dict[str, Any]) -> None:
    change(export, **values)
    assert MANIFEST in refusal(export)


def test_parameters_of_two_programs(export: Path) -> None:
    programs = json.loads((export / MANIFEST).read_text("utf-8"))["programs"]
    change(export, programs=programs | {"encode": [["encode.json", "decode.pdiparams"]]})
    found = refusal(export)
    assert MANIFEST in found and "allowed: of each rank a file of its own for each program" in found


def test_a_checkpoint_is_no_export() -> None:
    with pytest.raises(ConfigError, match="sd3par export makes of it what static runs"):
        SD3Pipeline.from_pretrained("tiny", engine="static")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (dict(height=272), "height: got 272"),
        (dict(num_images_per_prompt=5), "images: got 5; allowed: at most 4, for which this model was exported"),
        (dict(max_sequence_length=129), "max_sequence_length: got 129; allowed: at most 128"),
    ],
)
def test_larger_shapes(whole: Path, request_: dict[str, Any], said: str) -> None:
    pipe = SD3Pipeline.from_pretrained(whole)
    with pytest.raises(ConfigError) as caught:
        pipe("a", **(dict(max_sequence_length=8) | request_))
    assert said in str(caught.value)

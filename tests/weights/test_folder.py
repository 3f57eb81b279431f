"""A component's folder: which file is read, shards, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd3par.errors import CheckpointError
from sd3par.weights.folder import DIFFUSERS_STEM, TRANSFORMERS_STEM, open_component
from tests.weights import malformed

A, B = np.full([2], 1, np.float32), np.full([3], 2, np.float32)
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def folder_with(folder: Path, **files: Any) -> Path:
    """A folder with config.json and one-tensor files: keyword plain, fp16, ... -> value of tensor "a"."""
    (folder / "config.json").write_text('{"hidden_size": 3}')
    for variant, value in files.items():
        dot = "" if variant == "plain" else f".{variant}"
        save_file({"a": np.full([1], value, np.float32)}, folder / f"model{dot}.safetensors")
    return folder


def sharded(folder: Path, weight_map: Any = None) -> Path:
    """A folder with two shards, tensor a in the first and b in the second."""
    folder_with(folder)
    save_file({"a": A}, folder / SHARDS[0], {"format": "pt"})
    save_file({"b": B}, folder / SHARDS[1], {"format": "pt"})
    weight_map = dict(zip("ab", SHARDS, strict=True)) if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    return folder


def test_config_and_tensors(tmp_path: Path) -> None:
    component = open_component(folder_with(tmp_path, plain=4), TRANSFORMERS_STEM)
    assert component.config == {"hidden_size": 3}
    assert component.checkpoint.read("a").tolist() == [4.0]


@pytest.mark.parametrize(
    ("files", "value"),
    [({"plain": 1, "fp16": 2}, 1), ({"fp16": 2}, 2), ({"fp16": 2, "bf16": 3}, 3), ({"plain": 1, "bf16": 3}, 1)],
)
def test_a_variant_is_read_only_without_a_plain_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: dict[str, int], value: int
) -> None:
    caplog.set_level(logging.INFO)
    component = open_component(folder_with(tmp_path, **files), TRANSFORMERS_STEM)
    assert component.checkpoint.read("a").item() == value
    assert bool(caplog.messages) == ("plain" not in files)


def test_shards(tmp_path: Path) -> None:
    checkpoint = open_component(sharded(tmp_path), TRANSFORMERS_STEM).checkpoint
    assert checkpoint.shapes() == {"a": (2,), "b": (3,)}
    assert checkpoint.read("b", (slice(1, 3),)).tolist() == [2.0, 2.0]
    with pytest.raises(CheckpointError, match="c: missing"):
        checkpoint.read("c")


@pytest.mark.parametrize("index", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"])
def test_shards_of_a_variant(tmp_path: Path, index: str) -> None:
    (sharded(tmp_path) / INDEX).rename(tmp_path / index)
    assert open_component(tmp_path, TRANSFORMERS_STEM).checkpoint.read("a").tolist() == [1.0, 1.0]


def test_links_are_followed_as_the_hubs_cache_needs(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs" if (tmp_path / "blobs").mkdir() is None else tmp_path)
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    for i, path in enumerate(sorted(blobs.iterdir())):
        (snapshot / path.name).symlink_to(path.rename(blobs / f"{i:064x}"))
    assert open_component(snapshot, TRANSFORMERS_STEM).checkpoint.read("b").tolist() == [2.0] * 3


OUTSIDE = [
    "../../etc/passwd", "../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "..", "",
    "C:x.safetensors", "x.bin", "x\n.safetensors", "x\0.safetensors", 3, None, ["x.safetensors"],
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"index\.json: b: shard") as error:
        open_component(sharded(tmp_path, {"a": SHARDS[0], "b": name}), TRANSFORMERS_STEM)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, "c: missing"),
        ({"a": SHARDS[0], "b": SHARDS[0]}, "b: missing"),
        ({"a": SHARDS[0], "b": "model-00003-of-00002.safetensors"}, "no such file"),
        ({}, "weight_map: missing or empty"),
        ([], "weight_map: missing or empty"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_component(sharded(tmp_path, weight_map), TRANSFORMERS_STEM)


def test_a_tensor_that_the_index_leaves_out_is_refused(tmp_path: Path) -> None:
    save_file({"b": B, "c": B}, sharded(tmp_path) / SHARDS[1])
    with pytest.raises(CheckpointError, match="c: not in the index"):
        open_component(tmp_path, TRANSFORMERS_STEM)


JSON = {
    "cut off": b'{"a":',
    "an array": b"[1]",
    "twice": b'{"a": 1, "a": 2}',
    "NaN": b'{"a": NaN}',
    "nested deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "too large": b'{"a": "' + b"x" * (5 << 20) + b'"}',
    "no UTF-8": b'{"a": "\xff"}',
    "a huge number": b'{"a": ' + b"9" * 10_000 + b"}",
    "empty": b"",
}


@pytest.mark.parametrize("name", JSON)
def test_a_broken_config_is_refused(tmp_path: Path, name: str) -> None:
    (folder_with(tmp_path, plain=1) / "config.json").write_bytes(JSON[name])
    with pytest.raises(CheckpointError, match=r"config\.json: ") as error:
        open_component(tmp_path, TRANSFORMERS_STEM)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model_state.pdparams"])
def test_a_pickle_alone_is_refused_unread(tmp_path: Path, name: str) -> None:
    (folder_with(tmp_path) / name).write_bytes(malformed.CASES["pickle"][0])
    with pytest.raises(CheckpointError, match=f"{name}: a pickle file.*never read; convert"):
        open_component(tmp_path, TRANSFORMERS_STEM)
    assert open_component(folder_with(tmp_path, plain=1), TRANSFORMERS_STEM).checkpoint.read("a").item() == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        open_component(tmp_path / "nowhere", TRANSFORMERS_STEM)
    with pytest.raises(CheckpointError, match=r"no weights.*diffusion_pytorch_model\.safetensors"):
        open_component(folder_with(tmp_path, plain=1), DIFFUSERS_STEM)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_component(tmp_path, TRANSFORMERS_STEM)


def test_fp8_is_refused_on_opening(tmp_path: Path) -> None:
    file = malformed.file({"a": malformed.tensor([8], 0, 8, "F8_E4M3")}, bytes(8))
    (folder_with(tmp_path) / "model.safetensors").write_bytes(file)
    with pytest.raises(CheckpointError, match="a: fp8 files are not supported"):
        open_component(tmp_path, TRANSFORMERS_STEM)

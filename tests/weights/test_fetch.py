"""A checkpoint's files are fetched from the disk while Paddle is imported: those that will be read, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sd3par.weights import fetch
from sd3par.weights.choice import DIFFUSERS_STEM, PADDLE_STEM
from sd3par.weights.random_model import BUNDLED_FOLDER
from tests import pages
from tests.ranks import ROOT
from tests.weights.test_folder import SHARDS, folder_with, sharded


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of a model: a plain file beside a variant, Paddle's own, shards, a variant alone, a broken index."""
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer"):
        (tmp_path / part).mkdir()
    for name in (f"{DIFFUSERS_STEM}.safetensors", f"{DIFFUSERS_STEM}.fp16.safetensors"):
        (tmp_path / "transformer" / name).write_bytes(b"0")
    (tmp_path / "vae" / f"{PADDLE_STEM}.safetensors").write_bytes(b"0")
    sharded(tmp_path / "text_encoder_3")
    folder_with(tmp_path / "text_encoder", fp16=1)
    folder_with(tmp_path / "text_encoder_2", plain=1)
    return tmp_path


def names(model: Path, **options: bool) -> list[str]:
    return [str(path.relative_to(model)) for path in fetch.weights_of(str(model), **options)]


def test_the_files_that_are_read(model: Path) -> None:
    first = [f"transformer/{DIFFUSERS_STEM}.safetensors", f"vae/{PADDLE_STEM}.safetensors",
             "text_encoder/model.fp16.safetensors", "text_encoder_2/model.safetensors"]  # fmt: skip
    assert names(model, text_encoder_3=False) == first
    assert names(model) == [*first, *(f"text_encoder_3/{name}" for name in SHARDS)]
    single = model / "transformer" / f"{DIFFUSERS_STEM}.safetensors"
    assert fetch.weights_of(str(single)) == [single]


def test_those_of_the_bundled_model_are_all_it_has() -> None:
    assert sorted(fetch.weights_of(str(BUNDLED_FOLDER))) == sorted(BUNDLED_FOLDER.rglob("*.safetensors"))


def test_what_is_no_checkpoint_is_for_others_to_say(model: Path) -> None:
    (model / "text_encoder_3" / "model.safetensors.index.json").write_text("{}")
    for other in (
        str(model),
        str(model / "tokenizer"),
        "random:sd3-medium",
        "",
        "~nobody-of-this-name",
        "a\0b",
        4000 * "a",
    ):
        assert fetch.weights_of(other) == []


@pytest.mark.parametrize("world", [1, 3])
def test_all_of_them_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """In blocks that ranks share; afterwards no thread and no file is left."""
    monkeypatch.setattr(fetch, "BLOCK", 1 << 20)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, size in zip(paths, (5 << 20, 100), strict=True):
        path.write_bytes(os.urandom(size))
        pages.forget(path)
    for rank in range(world):
        assert sum(map(pages.missing, paths)) > 0
        with fetch.fetched(paths, rank, world):
            end = time.monotonic() + 10
            while rank == world - 1 and any(map(pages.missing, paths)) and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.1)
    assert [pages.missing(path) for path in paths] == [0, 0]
    assert not [one.name for one in threading.enumerate() if one.name.startswith("sd3par-fetch")]
    assert str(paths[0]) not in [os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")]


def test_no_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BLOCK", 10)
    monkeypatch.setattr(fetch.os, "sysconf", lambda name: 4 * 12 if "PAGES" in name else 1)
    fetched: list[tuple[str, int]] = []
    monkeypatch.setattr(fetch, "fetch", lambda file, start, stop: fetched.append((Path(file.name).name, start)))
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(15))
    with fetch.fetched([tmp_path / "a", tmp_path / "none", tmp_path / "b"]):
        time.sleep(0.1)
    assert fetched == [("a", 0), ("a", 10)]


def test_it_needs_no_paddle() -> None:
    code = "import sys, sd3par.weights.fetch; sys.exit('paddle' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0

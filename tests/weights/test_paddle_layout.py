"""Folders that ppdiffusers 0.29 and PaddleNLP saved (their layout is in the golden file), read as torch's layout."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from sd3par.errors import CheckpointError, ConfigError
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.vae.autoencoder import VAE
from sd3par.weights import Component
from sd3par.weights.folder import DIFFUSERS_STEM, TRANSFORMERS_STEM, open_component
from sd3par.weights.paddle_layout import torch_config
from tests.arrays import weight

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "weights_paddle_layout.json").read_text())
STEMS = {"text_encoder": TRANSFORMERS_STEM, "text_encoder_3": TRANSFORMERS_STEM, "bfloat16": TRANSFORMERS_STEM}
NORM_BIAS = "norm_out.norm.bias"


def torch_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a tensor in torch's layout, as golden_paddle_layout.py chose it."""
    if name.endswith(".norm.bias"):
        return np.zeros(shape, np.float32)
    return weight(name.replace("encoder.embed_tokens", "shared"), shape)


def stored_value(name: str, entry: list[Any], linears: list[str]) -> np.ndarray:
    """The array as it stands in the file: linears as [in, out], bfloat16 as uint16."""
    dtype, shape, _ = entry
    value = torch_value(name, tuple(shape[::-1])).T if name in linears else torch_value(name, tuple(shape))
    value = np.ascontiguousarray(value)
    return paddle.to_tensor(value).astype("bfloat16").numpy() if dtype == "U16" else value


def rebuild(folder: Path, name: str) -> Path:
    """Writes what ppdiffusers wrote, byte for byte."""
    golden = GOLDEN[name]
    (folder / "config.json").write_text(json.dumps(golden["config"]))
    weight_map = {}
    for file, contents in golden["files"].items():
        tensors = {key: stored_value(key, entry, golden["linears"]) for key, entry in contents["tensors"].items()}
        assert {key: zlib.crc32(array.tobytes()) for key, array in tensors.items()} == {
            key: entry[2] for key, entry in contents["tensors"].items()
        }
        save_file(tensors, folder / file, contents["metadata"])
        weight_map |= dict.fromkeys(tensors, file)
    for index in (file for file in golden["written"] if file.endswith(".index.json")):
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def opened(folder: Path, name: str) -> Component:
    return open_component(rebuild(folder, name), STEMS.get(name, DIFFUSERS_STEM))


@pytest.mark.parametrize("name", GOLDEN)
def test_tensors_are_those_of_torch(tmp_path: Path, name: str) -> None:
    checkpoint = opened(tmp_path, name).checkpoint
    stored = {key for contents in GOLDEN[name]["files"].values() for key in contents["tensors"]}
    assert stored - set(checkpoint.shapes()) == {key for key in stored if key.endswith(".norm.bias")}
    for key, shape in checkpoint.shapes().items():
        want = torch_value(key, shape)
        if name == "bfloat16":
            want = paddle.to_tensor(want).astype("bfloat16").astype("float32").numpy()
        whole = checkpoint.read(key)
        assert whole.dtype == (paddle.bfloat16 if name == "bfloat16" else paddle.float32)
        np.testing.assert_array_equal(whole.astype("float32").numpy(), want)
        for index in ((slice(1, 5),), (slice(None), slice(2, 7)))[: len(shape)]:
            np.testing.assert_array_equal(checkpoint.read(key, index).astype("float32").numpy(), want[index])


LOAD: dict[str, Callable[[Component], object]] = {
    "transformer": lambda component: MMDiT.load(component, "float32", Mesh.single()),
    "to_diffusers": lambda component: MMDiT.load(component, "float32", Mesh.single()),
    "vae": lambda component: VAE.load(component, "float32"),
    "text_encoder": lambda component: CLIPTextEncoder.load(component, "float32"),
    "text_encoder_3": lambda component: T5Encoder.load(component, "float32"),
}


@pytest.mark.parametrize("name", LOAD)
def test_models_take_config_and_tensors(tmp_path: Path, name: str) -> None:
    LOAD[name](opened(tmp_path, name))


def test_an_extension_of_ppdiffusers_is_refused(tmp_path: Path) -> None:
    component = opened(tmp_path, "vae")
    config = torch_config({**component.config, "up_block_out_channels": [8, 16]})
    with pytest.raises(ConfigError, match="up_block_out_channels"):
        VAE.load(replace(component, config=config), "float32")


@pytest.mark.parametrize("name", ["transformer", "to_diffusers"])
def test_a_bias_that_sd3_does_not_have_must_be_zero(tmp_path: Path, name: str) -> None:
    rebuild(tmp_path, name)
    (file,) = GOLDEN[name]["files"]
    golden = GOLDEN[name]["files"][file]
    tensors = {key: stored_value(key, entry, GOLDEN[name]["linears"]) for key, entry in golden["tensors"].items()}
    tensors[NORM_BIAS][3] = 1e-6
    save_file(tensors, tmp_path / file, golden["metadata"])
    with pytest.raises(CheckpointError, match=f"{NORM_BIAS}: not zero"):
        open_component(tmp_path, DIFFUSERS_STEM)


@pytest.mark.parametrize(
    ("file", "metadata"),
    [("diffusion_paddle_model", "pt"), ("diffusion_pytorch_model", "flax"), ("diffusion_pytorch_model", "mlx")],
)
def test_another_frameworks_format_is_refused(tmp_path: Path, file: str, metadata: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.ones(1, np.float32)}, tmp_path / f"{file}.safetensors", {"format": metadata})
    with pytest.raises(CheckpointError, match=f"format {metadata} in the metadata"):
        open_component(tmp_path, DIFFUSERS_STEM)


def test_shards_of_two_layouts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name, kind in (("a", "pt"), ("b", "np")):
        save_file({name: np.ones(1, np.float32)}, tmp_path / f"{name}.safetensors", {"format": kind})
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="shards of several formats"):
        open_component(tmp_path, TRANSFORMERS_STEM)

"""Single files: the same tensors as diffusers' converters make of them, and configs from shapes alone."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd3par.config import ModelConfig, parse_config
from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.vae.autoencoder import VAE
from sd3par.weights import Component
from sd3par.weights.original_text import clip_config, t5_config
from sd3par.weights.original_transformer import transformer_config
from sd3par.weights.original_vae import vae_config
from sd3par.weights.shapes import Shapes
from sd3par.weights.single_file import SingleFile
from tests.weights import malformed, originals

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "weights_single_file.json").read_text())
PREFIX = "model.diffusion_model."
SIZES: dict[str, dict[str, Any]] = {"sd3": originals.TINY_SD3, "sd35": originals.TINY_SD35}

CLIP_L, CLIP_G = originals.clip(128, 2, projected=False), originals.clip(64, 3)
T5 = originals.t5(96, 2, heads=3)


def whole_file(folder: Path, sizes: dict[str, Any] = originals.TINY_SD3) -> Path:
    """A file with every part, and what training and ComfyUI leave in such files."""
    junk = {
        "model_ema.decay": np.float32([1]),
        "denoiser.sigmas": np.float32([1, 2]),
        "text_encoders.clip_l.logit_scale": np.float32([4]),
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": np.arange(77),
    }
    return originals.write(
        folder / "model.safetensors",
        originals.values(originals.transformer(**sizes), PREFIX),
        originals.values(originals.vae(**originals.TINY_VAE), "first_stage_model."),
        originals.values(CLIP_L, "text_encoders.clip_l.transformer."),
        originals.values(CLIP_G, "text_encoders.clip_g.transformer."),
        originals.values(T5, "text_encoders.t5xxl.transformer."),
        junk,
    )


def fingerprints(component: Component) -> dict[str, list[Any]]:
    """Returns what the golden file has: name -> [shape, CRC-32 of the fp32 bytes]."""
    read = {name: component.checkpoint.read(name).numpy() for name in component.checkpoint.shapes()}
    return {name: [list(array.shape), zlib.crc32(array.tobytes())] for name, array in read.items()}


@pytest.mark.parametrize("prefix", [PREFIX, ""])
@pytest.mark.parametrize("name", SIZES)
def test_transformer_equals_diffusers_converter(tmp_path: Path, name: str, prefix: str) -> None:
    values = originals.values(originals.transformer(**SIZES[name]), prefix)
    component = SingleFile(originals.write(tmp_path / "model.safetensors", values)).transformer()
    assert fingerprints(component) == GOLDEN[name]["tensors"]
    assert component.config == GOLDEN[name]["config"]
    assert parse_config(ModelConfig, component.config, "config").num_layers == SIZES[name]["layers"]


def test_vae_equals_diffusers_converter(tmp_path: Path) -> None:
    component = SingleFile(whole_file(tmp_path)).vae()
    assert fingerprints(component) == GOLDEN["vae"]["tensors"]
    assert component.config == GOLDEN["vae"]["config"]


def test_text_encoders_keep_their_names(tmp_path: Path) -> None:
    file = SingleFile(whole_file(tmp_path))
    found = {"clip_l": file.clip("text_encoder"), "clip_g": file.clip("text_encoder_2"), "t5": file.t5()}
    for component, shapes in zip(found.values(), (CLIP_L, CLIP_G, T5), strict=True):
        for name, value in originals.values(shapes).items():
            np.testing.assert_array_equal(component.checkpoint.read(name).numpy(), value)
    assert found["clip_g"].checkpoint.shapes() == CLIP_G
    assert found["t5"].checkpoint.shapes() == T5
    extra = "text_projection.weight"  # diffusers too takes the unit matrix
    assert found["clip_l"].checkpoint.shapes() == CLIP_L | {extra: (128, 128)}
    np.testing.assert_array_equal(found["clip_l"].checkpoint.read(extra).numpy(), np.eye(128))


@pytest.mark.parametrize("name", SIZES)
def test_models_take_config_and_tensors(tmp_path: Path, name: str) -> None:
    file = SingleFile(whole_file(tmp_path, SIZES[name]))
    MMDiT.load(file.transformer(), "float32", Mesh.single())
    VAE.load(file.vae(), "float32")
    T5Encoder.load(file.t5(), "float32")
    for part in ("text_encoder", "text_encoder_2"):
        CLIPTextEncoder.load(file.clip(part), "float32")


def test_configs_of_the_published_models() -> None:
    sizes = {"context": 4096, "pooled": 2048, "channels": 16}
    medium = originals.transformer(1536, 24, grid=192, **sizes)
    medium35 = originals.transformer(1536, 24, grid=384, dual=range(13), norm=True, **sizes)
    large = originals.transformer(2432, 38, grid=192, norm=True, **sizes)
    configs = [ModelConfig(**transformer_config(Shapes("file", shapes))) for shapes in (medium, medium35, large)]
    assert [config.num_attention_heads for config in configs] == [24, 24, 38]
    assert [config.num_layers for config in configs] == [24, 24, 38]
    assert [config.pos_embed_max_size for config in configs] == [192, 384, 192]
    assert [config.qk_norm for config in configs] == [None, "rms_norm", "rms_norm"]
    assert [list(config.dual_attention_layers) for config in configs] == [[], list(range(13)), []]
    vae = vae_config(Shapes("file", originals.vae((128, 256, 512, 512), 16, 2)))
    assert (vae["block_out_channels"], vae["layers_per_block"], vae["latent_channels"]) == ([128, 256, 512, 512], 2, 16)


def test_text_configs_of_the_published_models() -> None:
    clip_l = clip_config(Shapes("file", originals.clip(768, 12, 49408)), "quick_gelu")
    clip_g = clip_config(Shapes("file", originals.clip(1280, 32, 49408)), "gelu")
    heads = [(config["num_attention_heads"], config["num_hidden_layers"]) for config in (clip_l, clip_g)]
    assert heads == [(12, 12), (20, 32)]
    assert (clip_g["intermediate_size"], clip_g["projection_dim"], clip_g["eos_token_id"]) == (5120, 1280, 2)
    t5 = t5_config(Shapes("file", originals.t5(4096, 24, 64, 32128)))
    assert (t5["num_heads"], t5["d_kv"], t5["num_layers"], t5["vocab_size"]) == (64, 64, 24, 32128)


def test_a_packed_part_reads_only_its_rows(tmp_path: Path) -> None:
    file = SingleFile(whole_file(tmp_path))
    checkpoint = file.transformer().checkpoint
    reads: list[tuple[str, tuple[slice, ...]]] = []
    begin = file._file.begin
    file._file.begin = lambda name, index, ahead: reads.append((name, index)) or begin(name, index)  # type: ignore
    part = checkpoint.read("transformer_blocks.1.attn.to_k.weight", (slice(32, 64),))
    assert reads == [(f"{PREFIX}joint_blocks.1.x_block.attn.qkv.weight", (slice(160, 192),))]
    np.testing.assert_array_equal(part.numpy(), begin(*reads[0])().numpy())


STRAY = {  # stored name -> words of the error
    "model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.scale": "not a tensor of SD3's transformer",
    "model.diffusion_model.joint_blocks.7.x_block.attn.proj.bias": r"numbers \[0, 1, 7\]; allowed: .* without a gap",
    "model.diffusion_model.joint_blocks.01.x_block.attn.proj.bias": "not a tensor of SD3's transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "not a tensor of SD3's transformer",
    "first_stage_model.quantize.embedding.weight": "not a tensor of SD3's vae",
    "first_stage_model.encoder.mid.attn_1.norm.scale": "not a tensor of SD3's vae",
    "lora_unet_joint_blocks_0_attn_proj.alpha": "belongs to no part",
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_tensor_is_refused(tmp_path: Path, name: str) -> None:
    path = originals.write(
        tmp_path / "model.safetensors",
        originals.values(originals.transformer(**originals.TINY_SD3), PREFIX),
        originals.values(originals.vae(**originals.TINY_VAE), "first_stage_model."),
        {name: np.ones([1], np.float32)},
    )
    with pytest.raises(CheckpointError, match=STRAY[name]):
        file = SingleFile(path)
        file.transformer(), file.vae()


@pytest.mark.parametrize("missing", ["pos_embed", "final_layer.linear.weight", "context_embedder.weight"])
def test_a_missing_tensor_that_tells_the_config_is_named(tmp_path: Path, missing: str) -> None:
    values = originals.values(originals.transformer(**originals.TINY_SD3), PREFIX)
    del values[PREFIX + missing]
    file = SingleFile(originals.write(tmp_path / "model.safetensors", values))
    with pytest.raises(CheckpointError, match=f"{missing}: missing"):
        file.transformer()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [("transformer_blocks.0.attn.to_q.weight", "diffusers' names"), ("first_stage_model.x", "no MM-DiT")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, tensor: str, words: str) -> None:
    path = originals.write(tmp_path / "model.safetensors", {tensor: np.ones([1], np.float32)})
    with pytest.raises(CheckpointError, match=words):
        SingleFile(path)


def test_fp8_t5_does_not_keep_the_rest_from_being_read(tmp_path: Path) -> None:
    shapes = {f"{PREFIX}{name}": shape for name, shape in originals.transformer(**originals.TINY_SD3).items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = malformed.tensor(shape, at, at := at + 2 * int(np.prod(shape)), "F16")
    for name, shape in originals.t5(64, 1, 1).items():
        name = f"text_encoders.t5xxl.transformer.{name}"
        header[name] = malformed.tensor(shape, at, at := at + int(np.prod(shape)), "F8_E4M3")
    (tmp_path / "model.safetensors").write_bytes(malformed.file(header, bytes(at)))
    file = SingleFile(tmp_path / "model.safetensors")
    assert file.transformer().checkpoint.read("proj_out.bias").shape == [16]
    with pytest.raises(CheckpointError, match="t5xxl.*fp8 files are not supported"):
        file.t5()

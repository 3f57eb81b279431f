"""The autoencoder against diffusers (tests/make/golden_vae.py), and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par.errors import CheckpointError, ConfigError
from sd3par.vae import VAE, VAEConfig, blocks
from sd3par.weights import Component
from tests import tolerances
from tests.arrays import array
from tests.checkpoints import ArrayCheckpoint

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ("sd3", "quant", "no_attention")


@pytest.fixture(autouse=True)
def no_grad():
    with paddle.no_grad():
        yield


def golden(variant: str) -> Any:
    return np.load(GOLDEN / f"vae_{variant}.npz")


def component(variant: str = "no_attention", **changes: Any) -> Component:
    """Returns a golden variant's config and weights; `changes` go into the config."""
    file = golden(variant)
    config = {**json.loads(str(file["config"])), **changes}
    return Component(config, "config.json", ArrayCheckpoint.from_shapes(json.loads(str(file["shapes"]))))


def tensors(variant: str, *names: str) -> list[paddle.Tensor]:
    """Returns the inputs of the golden script."""
    file = golden(variant)
    shapes = {"images": (file["decoded"].shape, 0.5), "latents": (file["mean"].shape, 1.0)}
    shapes["noise"] = shapes["latents"]
    return [paddle.to_tensor(array(f"vae.{name}", *shapes[name])) for name in names]


def error(ours: paddle.Tensor, theirs: np.ndarray) -> float:
    """Returns the largest error, relative to outputs of unit scale."""
    assert list(ours.shape) == list(theirs.shape)
    return float(np.abs(ours.numpy() - theirs).max() / max(1.0, theirs.std()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decode(variant: str) -> None:
    vae = VAE.load(component(variant), "float32")
    assert error(vae.decode(*tensors(variant, "latents")), golden(variant)["decoded"]) < tolerances.VAE


@pytest.mark.parametrize("variant", VARIANTS)
def test_encode(variant: str) -> None:
    vae = VAE.load(component(variant), "float32")
    images, noise = tensors(variant, "images", "noise")
    assert error(vae.encode(images), golden(variant)["mean"]) < tolerances.VAE
    assert error(vae.encode(images, noise), golden(variant)["sample"]) < tolerances.VAE


@pytest.mark.parametrize("variant", VARIANTS)
def test_channels_last(variant: str) -> None:
    """GPUs take this way in half precision; the references of their kernels take it here."""
    vae = VAE.load(component(variant), "float32")
    vae.to_channels_last()
    images, latents, noise = tensors(variant, "images", "latents", "noise")
    assert error(vae.decode(latents), golden(variant)["decoded"]) < tolerances.VAE
    assert error(vae.encode(images, noise), golden(variant)["sample"]) < tolerances.VAE


@pytest.mark.parametrize("last", [False, True])
def test_attention_in_parts(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many queries at once as memory bears, whatever divides them."""
    monkeypatch.setattr(blocks, "MOST_SCORES", 999)
    vae = VAE.load(component("sd3"), "float32", encoder=False)
    if last:
        vae.to_channels_last()
    (latents,) = tensors("sd3", "latents")
    assert latents.shape[0] * latents[0, 0].size ** 2 > 2 * 999
    assert error(vae.decode(latents), golden("sd3")["decoded"]) < tolerances.VAE


def test_decoder_alone_reads_no_encoder() -> None:
    part = component("quant")
    vae = VAE.load(part, "float32", encoder=False)
    read = {name.split(".")[0] for name, _ in part.checkpoint.reads}  # type: ignore[attr-defined]
    assert read == {"decoder", "post_quant_conv"}
    assert error(vae.decode(*tensors("quant", "latents")), golden("quant")["decoded"]) < tolerances.VAE
    with pytest.raises(ConfigError, match="encoder"):
        vae.encode(*tensors("quant", "images"))


def test_decoder_alone_still_refuses_foreign_tensors() -> None:
    part = component()
    part.checkpoint.arrays["loss.logvar"] = array("logvar", (1,))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"loss\.logvar"):
        VAE.load(part, "float32", encoder=False)


def test_encoder_tensors_are_needed_to_encode() -> None:
    part = component()
    del part.checkpoint.arrays["encoder.conv_in.bias"]  # type: ignore[attr-defined]
    VAE.load(part, "float32", encoder=False)
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.bias"):
        VAE.load(part, "float32")


def test_posterior_variance_is_limited() -> None:
    vae = VAE.load(component(), "float32")
    images, noise = tensors("no_attention", "images", "noise")
    channels = vae.config.latent_channels
    vae.encoder.conv_out.bias.set_value(paddle.full([2 * channels], 1000.0))
    spread = (vae.encode(images, noise) - vae.encode(images)) / vae.config.scaling_factor
    assert np.allclose(spread.numpy(), math.exp(10.0) * noise.numpy(), rtol=1e-3, atol=1.0)


def test_rows_do_not_depend_on_each_other() -> None:
    vae = VAE.load(component(), "float32")
    (latents,) = tensors("no_attention", "latents")
    assert error(vae.decode(latents[1:]), vae.decode(latents)[1:].numpy()) < tolerances.MODULE


def test_decode_exports_with_dynamic_sizes() -> None:
    vae = VAE.load(component("sd3"), "float32", encoder=False)
    spec = paddle.static.InputSpec([None, 16, None, None], "float32")
    static = paddle.jit.to_static(vae, input_spec=[spec], full_graph=True)
    assert error(static(*tensors("sd3", "latents")), golden("sd3")["decoded"]) < tolerances.VAE


def test_scale_factor() -> None:
    assert VAE.load(component("sd3"), "float32", encoder=False).scale_factor == 8
    assert VAE.load(component(), "float32", encoder=False).scale_factor == 2


def test_config_of_sd3() -> None:
    values = {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.29.0.dev0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True, "in_channels": 3, "latent_channels": 16, "latents_mean": None, "latents_std": None,
        "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": False, "use_quant_conv": False,
    }  # fmt: skip
    config = VAEConfig.parse(values, "vae/config.json")
    assert (config.scale_factor, config.shift, config.mid_block_add_attention) == (8, 0.0609, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"]),
        ("block_out_channels", [16, 30]),
        ("block_out_channels", [16, "32"]),
        ("block_out_channels", []),
        ("norm_type", "spatial"),
        ("norm_num_groups", 0),
        ("act_fn", "relu"),
        ("in_channels", 4),
        ("layers_per_block", 0),
        ("latent_channels", True),
        ("scaling_factor", 0.0),
        ("scaling_factor", math.nan),
        ("shift_factor", math.inf),
        ("latents_mean", [0.0] * 4),
        ("spectral_norm", True),
    ],
)
def test_config_refuses(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        VAE.load(component(**{key: value}), "float32")
    assert "\n" not in str(caught.value)

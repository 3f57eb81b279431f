"""Models of made-up weights: complete, the same on every mesh, and lively enough that a wrong attention shows."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from sd3par import kernels
from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.errors import CheckpointError, ConfigError
from sd3par.mesh import Axis, Mesh
from sd3par.mmdit import MMDiT
from sd3par.pipeline import SD3Pipeline
from sd3par.weights import Component, open_model, open_transformer
from sd3par.weights.random_model import MODELS
from sd3par.weights.random_tensors import Constant, Uniform, seed_of

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# In millions, of the published models.
SIZES = {"sd3-medium": 2085.0, "sd3.5-medium": 2469.7, "sd3.5-large": 8146.3}
TEXT_SIZES = {"vae": 83.8, "text_encoder": 123.7, "text_encoder_2": 694.7, "text_encoder_3": 4762.3}


def millions(component: Component) -> float:
    return sum(int(np.prod(shape)) for shape in component.checkpoint.shapes().values()) / 1e6


@pytest.mark.parametrize("part", PARTS)
def test_the_bundled_checkpoint_has_these_tensors(part: str) -> None:
    made, stored = (getattr(open_model(name), part).checkpoint.shapes() for name in ("random:tiny", "tiny"))
    assert {name: tuple(shape) for name, shape in made.items()} == {name: tuple(s) for name, s in stored.items()}


@pytest.mark.parametrize("model", SIZES)
def test_sizes_of_the_published_models(model: str) -> None:
    files = open_model(f"random:{model}")
    assert millions(files.transformer) == pytest.approx(SIZES[model], abs=0.1)
    for part, size in TEXT_SIZES.items():
        assert millions(getattr(files, part)) == pytest.approx(size, abs=0.1)


def test_the_table_of_positions_is_diffusers() -> None:
    made, stored = (open_transformer(name).checkpoint.read("pos_embed.pos_embed") for name in ("random:tiny", "tiny"))
    assert np.abs(made.numpy() - stored.astype("float32").numpy()).max() < 2**-12  # the bundled one is fp16


@pytest.mark.parametrize("model", [name for name in MODELS if name != "tiny"])
def test_scales(model: str) -> None:
    tensors = open_transformer(f"random:{model}").checkpoint._tensors
    width = tensors["transformer_blocks.0.attn.to_v.bias"].shape[0]
    bounds = {"to_v.weight": 1, "to_q.weight": 3, "to_q.bias": 3, "add_k_proj.weight": 3, "add_v_proj.bias": 1}
    for name, scale in bounds.items():
        tensor = tensors[f"transformer_blocks.1.attn.{name}"]
        assert isinstance(tensor, Uniform) and tensor.bound == pytest.approx(scale * width**-0.5), name
    assert tensors["transformer_blocks.0.norm1_context.linear.weight"].bound == pytest.approx(4 * width**-0.5)
    assert tensors["norm_out.linear.bias"].bound == pytest.approx(width**-0.5)
    norm = tensors.get("transformer_blocks.0.attn.norm_added_k.weight")
    assert norm == (None if model == "sd3-medium" else Constant((64,), 2.0))


def test_numbers_are_bfloat16_whatever_the_dtype() -> None:
    tensor = open_transformer("random:tiny").checkpoint.read("proj_out.weight")
    assert tensor.dtype == paddle.bfloat16
    numbers = tensor.astype("float32").numpy()
    assert np.abs(numbers).max() <= 128**-0.5 * (1 + 2**-8)
    assert numbers.std() == pytest.approx((3 * 128) ** -0.5, rel=0.05) and abs(numbers.mean()) < 0.003


def test_seeds_are_never_the_global_generators() -> None:
    seeds = [seed_of(f"{part}.{name}") for part in PARTS for name in open_part(part)]
    assert len(set(seeds)) == len(seeds) and min(seeds) > 0 and max(seeds) < 2**31


def open_part(part: str) -> list[str]:
    return list(getattr(open_model("random:sd3.5-large"), part).checkpoint.shapes())


@pytest.mark.parametrize("mp", [2, 4])
def test_the_ranks_together_hold_one_model(mp: int) -> None:
    component = open_transformer("random:tiny")
    whole = dict(MMDiT.load(component, "float32", Mesh.single()).named_parameters())
    parts = [dict(MMDiT.load(component, "float32", Mesh(mp=Axis(mp, rank))).named_parameters()) for rank in range(mp)]
    name = "transformer_blocks.1.ff.up.weight"
    np.testing.assert_array_equal(np.concatenate([part[name].numpy() for part in parts], 1), whole[name].numpy())
    name = "transformer_blocks.0.attn2.to_out.weight"
    np.testing.assert_array_equal(np.concatenate([part[name].numpy() for part in parts], 0), whole[name].numpy())


def test_uniform_attention_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MMDiT.from_pretrained("random:tiny", dtype="float32", device="cpu")
    paddle.seed(0)
    inputs = (paddle.randn([2, 16, 16, 16]), paddle.randn([2, 30, 96]), paddle.randn([2, 80]), paddle.full([2], 500.0))
    want = model(*inputs).numpy()
    attention = kernels.attention
    monkeypatch.setattr(kernels, "attention", lambda heads: attention([paddle.zeros_like(x) for x in heads]))
    wrong = np.abs(model(*inputs).numpy() - want).mean() / want.std()
    assert wrong > 0.05  # bfloat16 itself: below 0.01


def test_a_picture() -> None:
    pipe = SD3Pipeline.load(open_model("random:tiny"), choose("float32", "cpu"), Mesh.single(), ParallelConfig())
    out = pipe("a red circle", num_inference_steps=2, output_type="np", progress=False).images
    assert out.shape == (1, 128, 128, 3) and np.isfinite(out).all() and out.std() > 0.01
    other = pipe("a blue square", num_inference_steps=2, output_type="np", progress=False).images
    assert np.abs(out - other).mean() > 1e-3
    assert pipe.files.name == "random:tiny"


def test_t5_can_be_left_out() -> None:
    assert open_model("random:sd3-medium", text_encoder_3=False).text_encoder_3 is None


@pytest.mark.parametrize("name", ["random:", "random:sd4", "random:SD3-medium"])
def test_unknown_names(name: str) -> None:
    for opened in (open_model, open_transformer):
        with pytest.raises(
            ConfigError, match=r"^model: got random:.*; allowed: random:sd3-medium, random:sd3.5-medium"
        ):
            opened(name)


def test_a_tensor_that_the_model_has_not() -> None:
    with pytest.raises(CheckpointError, match=r"random:tiny \(transformer\): to_q: missing"):
        open_transformer("random:tiny").checkpoint.read("to_q")

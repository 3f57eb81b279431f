"""The whole pipeline against diffusers' on the bundled model: same seed, same picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from PIL import Image

from sd3par import denoise
from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.noise import noise
from sd3par.pipeline import SD3Pipeline
from tests import tolerances
from tests.pipeline_cases import CASES, PROMPTS, TRAINED, picture, random_files

GOLDEN = np.load(Path(__file__).parent / "golden" / "pipeline.npz")


def random_pipe(text_encoder_3: bool = True) -> SD3Pipeline:
    """Returns a pipeline with random weights."""
    return SD3Pipeline.load(random_files(text_encoder_3), choose("float32", "cpu"), Mesh.single(), ParallelConfig())


@pytest.fixture(scope="module")
def pipe() -> SD3Pipeline:
    return random_pipe()


@pytest.fixture(scope="module")
def trained() -> SD3Pipeline:
    return SD3Pipeline.from_pretrained("tiny")


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    """Returns the call's arguments."""
    options = {name: value for name, value in case.items() if name != "text_encoder_3"}
    return options | (dict(image=Image.fromarray(picture())) if "strength" in case else {}) | dict(progress=False)


@pytest.mark.parametrize("name", CASES)
def test_latents_are_diffusers(pipe: SD3Pipeline, name: str) -> None:
    case = CASES[name]
    used = random_pipe(text_encoder_3=False) if name == "no-t5" else pipe
    latents = used(output_type="latent", **arguments(case)).images.numpy()
    golden = GOLDEN[f"{name}/latents"]
    assert np.abs(latents - golden).max() / golden.std() < tolerances.PIPELINE


@pytest.mark.parametrize("name", TRAINED)
def test_pictures_are_diffusers(trained: SD3Pipeline, name: str) -> None:
    pixels = np.stack([np.asarray(image) for image in trained(**arguments(CASES[name])).images]).astype(int)
    assert np.abs(pixels - GOLDEN[f"{name}/pixels"]).max() <= tolerances.PIXEL_LEVELS


def test_prompt_embeds_give_the_prompts_picture(pipe: SD3Pipeline) -> None:
    case = CASES["two-prompts"]
    encode = pipe.text.encode
    states = encode(PROMPTS, PROMPTS, PROMPTS, 77, pipe.transformer.config.joint_attention_dim).rows(range(2))
    negative = case["negative_prompt"]
    uncond = encode(negative, negative, negative, 77, pipe.transformer.config.joint_attention_dim).rows(range(2))
    rest = {name: value for name, value in arguments(case).items() if "prompt" not in name}
    out = pipe(prompt_embeds=states.context, pooled_prompt_embeds=states.pooled.numpy(), output_type="latent",
               negative_prompt_embeds=uncond.context, negative_pooled_prompt_embeds=uncond.pooled, **rest)  # fmt: skip
    golden = GOLDEN["two-prompts/latents"]
    assert np.abs(out.images.numpy() - golden).max() / golden.std() < tolerances.PIPELINE


def test_an_empty_text_beside_the_prompt_is_none(pipe: SD3Pipeline) -> None:
    options = dict(num_inference_steps=1, output_type="latent", progress=False, negative_prompt="blurry")
    empty = dict(prompt_2="", prompt_3="", negative_prompt_2="", negative_prompt_3="")
    wanted, latents, read = (pipe("a cat", **options, **one).images for one in ({}, empty, dict(prompt_2=[""])))
    assert bool((latents == wanted).all()) and not bool((read == wanted).all())


def test_callback_sees_every_step_and_may_stop(pipe: SD3Pipeline) -> None:
    seen = []

    def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, round(timestep, 2), tuple(kwargs["latents"].shape)))
        pipe.interrupt = step == 1
        return kwargs

    out = pipe(output_type="latent", callback_on_step_end=callback, **arguments(CASES["one"]))
    assert out.steps == 2
    assert seen == [(0, 1000.0, (1, 16, 8, 10)), (1, 857.69, (1, 16, 8, 10))]


def test_callback_may_change_latents_and_stop(pipe: SD3Pipeline) -> None:
    def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.interrupt = True
        return {"latents": kwargs["latents"] * 0 + 3}

    out = pipe(output_type="latent", callback_on_step_end=callback, **arguments(CASES["one"]))
    assert (out.images.numpy() == 3).all()


def test_modulations_in_windows_change_nothing(pipe: SD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests too large to hold all steps' modulations compute them in windows (here of one step)."""
    monkeypatch.setattr(denoise, "MODULATION_BYTES", 1)
    latents = pipe(output_type="latent", **arguments(CASES["one"])).images.numpy()
    golden = GOLDEN["one/latents"]
    assert np.abs(latents - golden).max() / golden.std() < tolerances.PIPELINE


def test_numpy_numbers_are_numbers(pipe: SD3Pipeline) -> None:
    given = arguments(CASES["one"]) | dict(seed=np.int64(0), height=np.int32(64), guidance_scale=np.float32(7))
    golden = GOLDEN["one/latents"]
    latents = pipe(output_type="latent", **given).images.numpy()
    assert np.abs(latents - golden).max() / golden.std() < tolerances.PIPELINE


def test_numpy_sizes_of_a_mesh_are_numbers() -> None:
    parallel = ParallelConfig(dp=np.int64(2), mp=np.int32(3))
    assert repr(parallel) == "ParallelConfig(dp=2, mp=3, sp=1, transport='auto')" and parallel.world == 6


def test_latents_from_outside_replace_the_noise(pipe: SD3Pipeline) -> None:
    given = pipe(output_type="latent", latents=noise((1, 16, 8, 10), 0), **(arguments(CASES["one"]) | dict(seed=99)))
    golden = GOLDEN["one/latents"]
    assert np.abs(given.images.numpy() - golden).max() / golden.std() < tolerances.PIPELINE


EMBEDS = dict(prompt_embeds=np.zeros((1, 154, 96)), pooled_prompt_embeds=np.zeros((1, 80)), max_sequence_length=77)
NEGATIVE = dict(negative_prompt_embeds=np.zeros((1, 154, 96)), negative_pooled_prompt_embeds=np.zeros((1, 80)))


def test_arguments_that_there_are_not(pipe: SD3Pipeline) -> None:
    with pytest.raises(ConfigError, match="^steps: got int; allowed: nothing: no such argument$"):
        pipe("x", steps=4)
    with pytest.raises(ConfigError, match="^generator: got object; allowed: nothing: seed takes its place$"):
        pipe("x", generator=object())


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("clip_skip", dict(prompt="x", clip_skip=1)),
        ("prompt", dict()),
        ("prompt", dict(prompt="x", prompt_embeds=np.zeros((1, 154, 64)), pooled_prompt_embeds=np.zeros((1, 64)))),
        ("pooled_prompt_embeds", dict(prompt_embeds=np.zeros((1, 154, 64)))),
        ("prompt_embeds", dict(prompt_embeds=np.zeros((1, 154, 3)), pooled_prompt_embeds=np.zeros((1, 64)))),
        ("prompt_embeds", dict(prompt_embeds="text", pooled_prompt_embeds=np.zeros((1, 64)))),
        ("latents", dict(prompt="x", latents=np.zeros((1, 16, 3, 3)))),
        ("latents", dict(prompt="x", latents=np.full((1, 16, 16, 16), np.nan))),
        ("output_type", dict(prompt="x", output_type="jpg")),
        ("negative_prompt", dict(prompt="x", negative_prompt=["a", "b"])),
        ("prompt", dict(prompt=[])),
        ("prompt", dict(prompt=[3])),
        ("sigmas", dict(prompt="x", sigmas=[0.5, 0.9])),
        ("sigmas", dict(prompt="x", sigmas=0.5)),
        ("prompt", dict(prompt=5)),
        ("prompt", dict(prompt={"a": 1})),
        ("callback_on_step_end", dict(prompt="x", callback_on_step_end=3)),
        ("callback_on_step_end", dict(prompt="x", callback_on_step_end=lambda *_: [])),
        ("callback_on_step_end", dict(prompt="x", callback_on_step_end=lambda *_: {"latents": np.zeros(3)})),
        ("prompt_2", EMBEDS | dict(prompt_2="x")),
        ("negative_prompt", EMBEDS | dict(negative_prompt=["a", "b"])),
        ("negative_prompt", EMBEDS | NEGATIVE | dict(negative_prompt="a")),
        ("prompt_embeds", EMBEDS | dict(max_sequence_length=256)),
        ("prompt", dict(prompt=np.array(["a", "b"]))),
        ("sigmas", dict(prompt="x", sigmas=np.array([0.1, 0.5]))),
        ("sigmas", dict(prompt="x", sigmas=paddle.to_tensor([1.0, 0.5]))),
        ("height", dict(prompt="x", height=paddle.to_tensor([64, 64]))),
        ("seed", dict(prompt="x", seed=np.array([1, 2]))),
        ("output_type", dict(prompt="x", output_type=np.array(["np", "pil"]))),
        ("callback_on_step_end", dict(prompt="x", callback_on_step_end=np.array([1, 2]))),
        ("latents", dict(prompt="x", latents=np.zeros((1, 16, 16, 16), complex))),
    ],
)
def test_bad_arguments_are_named(pipe: SD3Pipeline, field: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        pipe(progress=False, **options)
    assert caught.value.field == field

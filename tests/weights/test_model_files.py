"""What a caller may name as the model, and what the errors say of everything else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sd3par.errors import CheckpointError, ConfigError
from sd3par.weights import model_files, open_model, open_transformer
from tests.weights import malformed, originals
from tests.weights.test_single_file import PREFIX, whole_file

INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusion3Pipeline",
    "_diffusers_version": "0.29.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
    "feature_extractor": None,
}
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def model_folder(folder: Path, **changes: Any) -> Path:
    """A diffusers folder whose parts hold one tensor each; changes go into model_index.json."""
    for part in (*TEXTS, "transformer", "vae", "scheduler", *TOKENIZERS):
        (folder / part).mkdir(parents=True)
    for part in (*TEXTS, "transformer", "vae"):
        stem = "model" if part in TEXTS else "diffusion_pytorch_model"
        save_file({part: np.ones(2, np.float32)}, folder / part / f"{stem}.safetensors", {"format": "pt"})
        config = {"_class_name": INDEX[part][1], "name": part}
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 2.5}')
    (folder / "model_index.json").write_text(json.dumps({**INDEX, **changes}))
    return folder


def tokenizer_folder(folder: Path, *names: str) -> Path:
    for name in names or TOKENIZERS:
        (folder / name).mkdir(parents=True)
    return folder


def test_a_folder(tmp_path: Path) -> None:
    files = open_model(model_folder(tmp_path / "sd3"))
    assert files.name == "sd3" and files.scheduler == {"shift": 2.5}
    for part in (*TEXTS, "transformer", "vae"):
        component = getattr(files, part)
        assert component.config["name"] == part
        assert list(component.checkpoint.shapes()) == [part]
        assert component.where == str(tmp_path / "sd3" / part)
    assert [getattr(files, name) for name in TOKENIZERS] == [tmp_path / "sd3" / name for name in TOKENIZERS]


@pytest.mark.parametrize("dropped", [None, [None, None]])
def test_a_part_that_was_dropped_is_none(tmp_path: Path, dropped: Any) -> None:
    files = open_model(model_folder(tmp_path, text_encoder_3=dropped, tokenizer_3=dropped))
    assert files.text_encoder_3 is None and files.tokenizer_3 is None and files.text_encoder_2 is not None


def test_t5_can_be_left_out(tmp_path: Path) -> None:
    (model_folder(tmp_path) / "text_encoder_3" / "model.safetensors").unlink()
    files = open_model(tmp_path, text_encoder_3=False)
    assert files.text_encoder_3 is None and files.tokenizer_3 is None
    with pytest.raises(CheckpointError, match="text_encoder_3: no weights"):
        open_model(tmp_path)


def test_other_tokenizers_stand_in_for_the_folders_own(tmp_path: Path) -> None:
    mine = tokenizer_folder(tmp_path / "mine")
    assert open_model(model_folder(tmp_path / "sd3"), tokenizers=str(mine)).tokenizer_2 == mine / "tokenizer_2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "_class_name StableDiffusionXLPipeline"),
        ({"_class_name": None}, "_class_name None"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "transformer: class FluxTransformer2DModel"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "scheduler: class DDIMScheduler"),
        ({"vae": [None, None]}, "vae: missing"),
        ({"image_encoder": ["transformers", "SiglipVisionModel"]}, "image_encoder: a part that is not supported"),
        ({"controlnet": ["diffusers", "SD3ControlNetModel"]}, "controlnet: a part that is not supported"),
    ],
)
def test_another_pipeline_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    for open_it in (open_model, open_transformer):
        folder = tmp_path / open_it.__name__
        with pytest.raises(CheckpointError, match=words):
            open_it(model_folder(folder, **changes))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    (model_folder(tmp_path) / part).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{part}.*: no such"):
        open_model(tmp_path)


def test_image_to_image_pipelines_are_the_same_model(tmp_path: Path) -> None:
    open_model(model_folder(tmp_path, _class_name="StableDiffusion3Img2ImgPipeline"))


def test_a_single_file(tmp_path: Path) -> None:
    files = open_model(str(whole_file(tmp_path)), tokenizers=tokenizer_folder(tmp_path / "tokenizers"))
    assert files.name == "model" and files.scheduler == {"shift": 3.0, "num_train_timesteps": 1000}
    assert files.transformer.config["num_layers"] == 2 and files.vae.config["scaling_factor"] == 1.5305
    for part in TEXTS:
        assert getattr(files, part).where.endswith(f"model.safetensors ({part})")
    assert files.text_encoder and files.text_encoder.config["hidden_act"] == "quick_gelu"
    assert files.text_encoder_2 and files.text_encoder_2.config["hidden_act"] == "gelu"
    assert files.text_encoder_3 and files.text_encoder_3.config["num_heads"] == 3
    assert files.tokenizer_3 == tmp_path / "tokenizers" / "tokenizer_3"


def test_a_single_file_needs_tokenizers_for_its_text_encoders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizers: got None; .*--tokenizers FOLDER .*tokenizers=.*tokenizer_3"):
        open_model(whole_file(tmp_path))
    two = tokenizer_folder(tmp_path / "two", "tokenizer", "tokenizer_2")
    assert open_model(whole_file(tmp_path), tokenizers=two, text_encoder_3=False).text_encoder_3 is None
    with pytest.raises(CheckpointError, match="tokenizer_3: no such folder"):
        open_model(whole_file(tmp_path), tokenizers=two)
    for wrong in (tmp_path / "nowhere", "", 5, "a\0b", "~nobody-of-that-name/x"):
        with pytest.raises(ConfigError, match="^tokenizers: got .*allowed: a folder with tokenizer, "):
            open_model(whole_file(tmp_path), tokenizers=wrong)  # type: ignore[arg-type]


def test_a_single_file_without_text_encoders(tmp_path: Path) -> None:
    transformer = originals.values(originals.transformer(**originals.TINY_SD35), PREFIX)
    vae = originals.values(originals.vae(**originals.TINY_VAE), "first_stage_model.")
    files = open_model(originals.write(tmp_path / "a.safetensors", transformer, vae))
    assert [getattr(files, name) for name in (*TEXTS, *TOKENIZERS)] == [None] * 6
    alone = originals.write(tmp_path / "b.safetensors", transformer)
    assert open_transformer(alone).config["qk_norm"] == "rms_norm"
    with pytest.raises(CheckpointError, match=r"b\.safetensors: no VAE"):
        open_model(alone)


def test_the_transformer_alone(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "sd3")
    for path in (folder, folder / "transformer", str(folder / "transformer")):
        assert open_transformer(path).config["name"] == "transformer"
    with pytest.raises(CheckpointError, match=r"config\.json: _class_name AutoencoderKL"):
        open_transformer(folder / "vae")
    with pytest.raises(CheckpointError, match=r"transformer: no model_index\.json"):
        open_model(folder / "transformer")


def test_the_bundled_model_is_a_name_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "tiny")
    assert open_model("./tiny").name == "tiny"
    bundled = model_files._locate("tiny")
    assert bundled == Path(model_files.__file__).parents[1] / "tiny"
    assert open_model(Path("tiny")).transformer.where == str(Path("tiny/transformer"))
    monkeypatch.chdir(tmp_path / "tiny")
    assert model_files._locate(Path("tiny")) == bundled


def test_the_bundled_model() -> None:
    files = open_model("tiny")
    assert files.transformer.config == open_transformer("tiny").config
    assert all(getattr(files, name) for name in (*TEXTS, *TOKENIZERS))


@pytest.mark.parametrize(
    "path", ["stabilityai/stable-diffusion-3-medium-diffusers", "stabilityai/stable-diffusion-3.5-large"]
)
def test_a_hub_id_is_answered_with_the_download_command(path: str) -> None:
    with pytest.raises(ConfigError, match=f"hf download {path} --local-dir {path.split('/')[1]}"):
        open_model(path)


@pytest.mark.parametrize("path", [None, "", 5, b"tiny", ["tiny"]])
def test_what_is_no_path_is_refused_in_one_line(path: Any) -> None:
    for open_it in (open_model, open_transformer):
        with pytest.raises(ConfigError) as error:
            open_it(path)
        assert str(error.value).startswith("model: got ") and str(error.value).isprintable()
        assert "allowed: tiny, or a folder or file that exists" in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["~nobody-of-that-name/x", "nowhere", "/no/where/at/all", "a\0b", "x" * 5000, "https://host/model.safetensors"],
)
def test_a_path_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    for open_it in (open_model, open_transformer):
        with pytest.raises((ConfigError, CheckpointError)) as error:
            open_it(path)
        assert "hf download" not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt", ".bin", ".pdparams"])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(malformed.CASES["pickle"][0])
    for open_it in (open_model, open_transformer):
        with pytest.raises(CheckpointError, match="a pickle file.*never read; convert"):
            open_it(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(ConfigError, match=r"a \.safetensors file"):
        open_model(path)


@pytest.mark.parametrize("scheduler", [True, False])
def test_a_transformer_and_a_vae_alone(tmp_path: Path, scheduler: bool) -> None:
    folder = model_folder(tmp_path)
    for name in ("model_index.json", *TEXTS, *TOKENIZERS, *(() if scheduler else ("scheduler",))):
        (shutil.rmtree if (folder / name).is_dir() else os.unlink)(folder / name)
    files = open_model(folder)
    assert files.text_encoder is None and files.tokenizer is None and files.text_encoder_3 is None
    assert files.scheduler["shift"] == (2.5 if scheduler else 3.0)
    assert open_transformer(folder / "transformer").config["name"] == "transformer"


@pytest.mark.parametrize("missing", ["vae", "transformer"])
def test_not_even_both(tmp_path: Path, missing: str) -> None:
    other = "vae" if missing == "transformer" else "transformer"
    (tmp_path / other).mkdir()
    with pytest.raises(CheckpointError, match=r"no model_index.json; allowed: .* transformer/ and vae/ alone"):
        open_model(tmp_path)

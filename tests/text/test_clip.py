"""CLIP's text encoder against transformers' CLIPTextModelWithProjection."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from sd3par.errors import CheckpointError, ConfigError
from sd3par.text.clip import CLIPTextEncoder
from sd3par.weights import Component
from tests import tolerances
from tests.text.cases import CLIPS, clip_ids
from tests.text.models import GOLDENS, checkpoint, clip, component

# As transformers writes it beside what CLIPTextConfig has.
WRITTEN = {
    "architectures": ["CLIPTextModelWithProjection"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0,
    "initializer_factor": 1.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
    "model_type": "clip_text_model", "pad_token_id": 1, "torch_dtype": "float16", "transformers_version": "4.41.2",
}  # fmt: skip


def run(encoder: CLIPTextEncoder, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with paddle.no_grad():
        hidden, pooled = encoder(paddle.to_tensor(ids))
    return hidden.numpy(), pooled.numpy()


def golden_error(name: str, encoder: CLIPTextEncoder, ids: np.ndarray) -> tuple[float, float]:
    """Largest differences of hidden and pooled states from transformers'."""
    hidden, pooled = run(encoder, ids)
    wanted = GOLDENS[f"clip/{name}/hidden"], GOLDENS[f"clip/{name}/pooled"]
    assert (hidden.shape, pooled.shape) == (wanted[0].shape, wanted[1].shape)
    return np.abs(hidden - wanted[0]).max(), np.abs(pooled - wanted[1]).max()


@pytest.mark.parametrize("name", CLIPS)
def test_parity_with_transformers(name: str) -> None:
    assert max(golden_error(name, clip(name), clip_ids(name))) < tolerances.MODULE


@pytest.mark.parametrize(("name", "changed"), [
    ("quick_gelu", {"hidden_act": "gelu"}), ("gelu", {"hidden_act": "quick_gelu"}),
    ("quick_gelu", {"num_attention_heads": 2}), ("gelu", {"layer_norm_eps": 1e-5}),
])  # fmt: skip
def test_parity_can_fail(name: str, changed: dict) -> None:
    assert min(golden_error(name, clip(name, **changed), clip_ids(name))) > 10 * tolerances.MODULE


@pytest.mark.parametrize("name", CLIPS)
def test_tokens_do_not_see_what_follows_nor_other_rows(name: str) -> None:
    encoder, ids = clip(name), clip_ids(name)
    before, _ = run(encoder, ids)
    changed = ids.copy()
    changed[0, 20:] = (ids[0, 20:] + 1) % 30
    changed[1:] = 7
    after, _ = run(encoder, changed)
    assert np.abs(before - after)[0, :20].max() < tolerances.MODULE
    assert np.abs(before - after)[0, 20:].min(-1).max() > 100 * tolerances.MODULE


def test_pooled_is_the_first_end_of_text() -> None:
    """By id, and by the highest id of the row where the config has the wrong one (eos_token_id 2)."""
    ids = clip_ids("gelu")
    assert (ids == 41).sum(1).min() > 1 and ids.max() == 41
    assert max(golden_error("gelu", clip("gelu", eos_token_id=2), ids)) < tolerances.MODULE
    higher = ids.copy()
    higher[:, 25] = 60  # a token above the end of text: now the two rules differ
    by_id, by_highest = (run(clip("gelu", eos_token_id=end), higher)[1] for end in (41, 2))
    assert np.abs(by_id - by_highest).max() > 100 * tolerances.MODULE


def test_pooled_comes_after_the_last_layer_and_hidden_before_it() -> None:
    ids = clip_ids("gelu")
    arrays = checkpoint("clip/gelu")
    for key in arrays.arrays:
        if "layers.1." in key:
            arrays.arrays[key] = arrays.arrays[key][::-1]
    encoder = CLIPTextEncoder.load(Component(CLIPS["gelu"], "reversed", arrays), "float32")
    hidden, pooled = golden_error("gelu", encoder, ids)
    assert hidden < tolerances.MODULE and pooled > 100 * tolerances.MODULE


def test_every_tensor_is_read_once() -> None:
    found = component("clip/quick_gelu", CLIPS["quick_gelu"])
    CLIPTextEncoder.load(found, "float32")
    read = [name for name, _ in found.checkpoint.reads]  # type: ignore[attr-defined]
    assert sorted(read) == sorted(found.checkpoint.shapes())


def test_tensors_are_used_or_ignored_by_name() -> None:
    found = component("clip/gelu", CLIPS["gelu"])
    arrays = found.checkpoint.arrays  # type: ignore[attr-defined]
    arrays["text_model.embeddings.position_ids"] = np.arange(77, dtype=np.int64)[None]
    CLIPTextEncoder.load(found, "float32")
    arrays["text_model.embeddings.other"] = arrays.pop("text_projection.weight")
    with pytest.raises(CheckpointError, match="text_projection.weight: missing"):
        CLIPTextEncoder.load(found, "float32")


def test_config_as_transformers_writes_it() -> None:
    assert clip("gelu", **{**WRITTEN, **CLIPS["gelu"]}).config == clip("gelu").config


@pytest.mark.parametrize("changed", [
    {"hidden_act": "relu"}, {"num_attention_heads": 5}, {"num_hidden_layers": 0}, {"vocab_size": -1},
    {"hidden_size": 1 << 40}, {"layer_norm_eps": "1e-5"}, {"rope_theta": 1e4}, {"eos_token_id": [1, 2]},
])  # fmt: skip
def test_config_that_is_refused(changed: dict) -> None:
    with pytest.raises(ConfigError, match=f"clip/gelu/config.json: {next(iter(changed))}"):
        clip("gelu", **changed)


@pytest.mark.parametrize("name", CLIPS)
def test_exports_with_any_number_of_rows_and_tokens(name: str) -> None:
    encoder, ids = clip(name), clip_ids(name)
    spec = [paddle.static.InputSpec([None, None], "int64")]
    exported = paddle.jit.to_static(encoder, input_spec=spec, full_graph=True)
    assert max(golden_error(name, exported, ids)) < tolerances.MODULE
    hidden, pooled = run(exported, ids[:1, :9])
    assert np.abs(hidden - GOLDENS[f"clip/{name}/hidden"][:1, :9]).max() < tolerances.MODULE
    assert np.abs(pooled - GOLDENS[f"clip/{name}/pooled"][:1]).max() < tolerances.MODULE

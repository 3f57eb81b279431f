"""T5's encoder against transformers' T5EncoderModel."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from sd3par.errors import CheckpointError, ConfigError
from sd3par.text.config import buckets_of, relative_buckets
from sd3par.text.t5 import T5Encoder
from tests import tolerances
from tests.text.cases import T5S, t5_ids
from tests.text.models import GOLDENS, component, t5

# As transformers 4 and 5 write it beside what T5Config has.
WRITTEN = {
    "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "decoder_start_token_id": 0, "dtype": "float32",
    "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0, "is_decoder": False,
    "is_encoder_decoder": True, "is_gated_act": True, "model_type": "t5", "num_decoder_layers": 24, "use_cache": True,
    "output_past": True, "pad_token_id": 0, "scale_decoder_outputs": True, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.41.2",
}  # fmt: skip


def run(encoder: T5Encoder, ids: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return encoder(paddle.to_tensor(ids)).numpy()


def golden_error(name: str, encoder: T5Encoder) -> float:
    """Largest difference from transformers' states."""
    states = run(encoder, t5_ids(name))
    assert states.shape == GOLDENS[f"t5/{name}/states"].shape
    return np.abs(states - GOLDENS[f"t5/{name}/states"]).max()


@pytest.mark.parametrize("name", T5S)
def test_parity_with_transformers(name: str) -> None:
    assert golden_error(name, t5(name)) < tolerances.MODULE


@pytest.mark.parametrize(("name", "changed"), [
    ("sd3", {"relative_attention_max_distance": 64}), ("narrow", {"relative_attention_max_distance": 30}),
    ("narrow", {"layer_norm_epsilon": 1e-6}),
])  # fmt: skip
def test_parity_can_fail(name: str, changed: dict) -> None:
    assert golden_error(name, t5(name, **changed)) > 10 * tolerances.MODULE


def test_rows_do_not_mix() -> None:
    encoder, ids = t5("sd3"), t5_ids("sd3")
    assert np.abs(run(encoder, ids)[1:] - run(encoder, ids[1:])).max() < tolerances.MODULE
    assert np.abs(run(encoder, ids)[0] - run(encoder, ids)[1]).max() > 0.1


def test_padding_is_seen() -> None:
    """SD3 masks nothing: what stands behind a text changes the states of the text."""
    encoder, ids = t5("sd3"), t5_ids("sd3")[:1]
    longer = np.concatenate([ids, np.zeros_like(ids[:, :9])], axis=1)
    assert np.abs(run(encoder, longer)[:, :77] - run(encoder, ids)).max() > 100 * tolerances.MODULE


def bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """The formula of T5's paper and Mesh TensorFlow, in fp64."""
    half, exact = num_buckets // 2, num_buckets // 4
    after, size = (half if distance > 0 else 0), abs(distance)
    if size < exact:
        return after + size
    share = math.log(size / exact) / math.log(max_distance / exact)
    return after + min(exact + int(share * (half - exact) + 1e-9), half - 1)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (16, 40), (32, 64), (64, 1000), (4, 2)])
def test_buckets(num_buckets: int, max_distance: int) -> None:
    wanted = [bucket(distance, num_buckets, max_distance) for distance in range(-max_distance, max_distance + 1)]
    assert relative_buckets(num_buckets, max_distance) == wanted
    assert set(wanted) == set(range(num_buckets)) - {num_buckets // 2}  # distance 0 counts as before


def test_position_bias_is_computed_once_and_saturates() -> None:
    encoder, calls = t5("narrow"), []
    encoder.position_bias, original = lambda x: calls.append(list(x.shape)) or original(x), encoder.position_bias
    run(encoder, t5_ids("narrow"))
    assert calls == [[256, 256]]
    bias = original(buckets_of(encoder.buckets, encoder.reach, 256)).numpy()  # [heads, L, L]
    assert (bias[:, 0, 20:] == bias[:, :1, 20]).all() and (bias[:, 20:, 0] == bias[:, 20, :1]).all()
    assert (bias[:, 0, 1] != bias[:, 1, 0]).all()


def test_bfloat16_keeps_its_dtype_where_the_device_can() -> None:
    found = T5Encoder.load(component("t5/sd3", T5S["sd3"]), "bfloat16")
    assert {parameter.dtype for parameter in found.parameters()} == {paddle.bfloat16}


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype of T5: got float16; allowed: float32 or bfloat16"):
        T5Encoder.load(component("t5/sd3", T5S["sd3"]), "float16")


def test_every_tensor_is_read_once_and_the_tied_embedding_is_ignored() -> None:
    found = component("t5/narrow", T5S["narrow"])
    names = sorted(found.checkpoint.shapes())
    arrays = found.checkpoint.arrays  # type: ignore[attr-defined]
    arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"]
    T5Encoder.load(found, "float32")
    assert sorted(name for name, _ in found.checkpoint.reads) == names  # type: ignore[attr-defined]
    arrays["lm_head.weight"] = arrays["shared.weight"]
    with pytest.raises(CheckpointError, match="lm_head.weight: not a tensor of the model"):
        T5Encoder.load(found, "float32")


def test_config_as_transformers_writes_it() -> None:
    assert t5("sd3", **WRITTEN).config == t5("sd3").config


@pytest.mark.parametrize("changed", [
    {"feed_forward_proj": "relu"}, {"feed_forward_proj": "gated-silu"}, {"num_heads": 0}, {"d_kv": 1.5},
    {"relative_attention_num_buckets": 2}, {"relative_attention_max_distance": 8},
    {"relative_attention_max_distance": 1 << 40}, {"vocab_size": True}, {"sliding_window": 4},
])  # fmt: skip
def test_config_that_is_refused(changed: dict) -> None:
    with pytest.raises(ConfigError, match=f"t5/sd3/config.json: {next(iter(changed))}"):
        t5("sd3", **changed)


def test_a_plain_relu_t5_is_refused() -> None:
    """transformers' default, where config.json does not name the feed forward."""
    config = {name: value for name, value in T5S["sd3"].items() if name != "feed_forward_proj"}
    with pytest.raises(ConfigError, match="feed_forward_proj: got relu; allowed: gated-gelu"):
        T5Encoder.load(component("t5/sd3", config), "float32")


@pytest.mark.parametrize("name", T5S)
def test_exports_with_any_number_of_rows_and_tokens(name: str) -> None:
    spec = [paddle.static.InputSpec([None, None], "int64")]
    exported = paddle.jit.to_static(t5(name), input_spec=spec, full_graph=True)
    assert golden_error(name, exported) < tolerances.MODULE
    shorter = t5_ids(name)[:1, :11]
    assert np.abs(run(exported, shorter) - run(t5(name), shorter)).max() < tolerances.MODULE

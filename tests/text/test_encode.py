"""From prompts to context: against diffusers' StableDiffusion3Pipeline.encode_prompt."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par.errors import CheckpointError, ConfigError
from sd3par.guidance import join_halves
from sd3par.text import CLIPTextEncoder, CLIPTokenizer, T5Encoder, T5Tokenizer, TextEncoders, TextStates
from sd3par.text.encode import join_context
from tests import tolerances
from tests.text.cases import JOINT_DIM, LENGTH, PIPELINE, PROMPTS, PROMPTS_2, PROMPTS_3, T5_LENGTH, TOKENIZERS
from tests.text.models import GOLDENS, component


def loaded(name: str, layer: type, vocab_size: int, **config: Any) -> Any:
    shape = {**PIPELINE[name], "vocab_size": vocab_size, **config}
    return layer.load(component(f"pipeline/{name}", shape), "float32")


@pytest.fixture(scope="module")
def encoders() -> TextEncoders:
    tokenizer_l, tokenizer_g = CLIPTokenizer(TOKENIZERS / "clip_l"), CLIPTokenizer(TOKENIZERS / "clip_g")
    tokenizer_t5 = T5Tokenizer(TOKENIZERS / "t5")
    sizes = [one.highest_id + 1 for one in (tokenizer_l, tokenizer_g, tokenizer_t5)]
    return TextEncoders(
        loaded("clip_l", CLIPTextEncoder, sizes[0]),
        loaded("clip_g", CLIPTextEncoder, sizes[1], eos_token_id=sizes[1] - 1),
        loaded("t5", T5Encoder, sizes[2]),
        tokenizer_l, tokenizer_g, tokenizer_t5,
    )  # fmt: skip


def encode(encoders: TextEncoders, *prompts: list[str], length: int = T5_LENGTH, dim: int = JOINT_DIM) -> TextStates:
    with paddle.no_grad():
        return encoders.encode(*prompts, length, dim).rows(range(len(prompts[0])))


def difference(states: paddle.Tensor, golden: np.ndarray) -> float:
    assert list(states.shape) == list(golden.shape)
    return np.abs(states.numpy() - golden).max()


def test_parity_with_diffusers(encoders: TextEncoders) -> None:
    states = encode(encoders, PROMPTS, PROMPTS_2, PROMPTS_3)
    assert difference(states.context, GOLDENS["pipeline/context"]) < tolerances.MODULE
    assert difference(states.pooled, GOLDENS["pipeline/pooled"]) < tolerances.MODULE


def test_without_t5_its_tokens_are_zeros(encoders: TextEncoders) -> None:
    alone = dataclasses.replace(encoders, t5=None, tokenizer_t5=None)
    states = encode(alone, PROMPTS, PROMPTS_2, PROMPTS_3)
    wanted = GOLDENS["pipeline/context"].copy()
    wanted[:, LENGTH:] = 0
    assert difference(states.context, wanted) < tolerances.MODULE
    assert difference(states.pooled, GOLDENS["pipeline/pooled"]) < tolerances.MODULE
    assert encode(alone, ["a"], ["a"], ["a"], dim=50, length=3).context.shape == [1, LENGTH + 3, 50]


def test_each_text_goes_to_its_encoder(encoders: TextEncoders) -> None:
    """The goldens' three lists differ, so exchanging two of them shows in the parts that they feed."""
    states = encode(encoders, PROMPTS_2, PROMPTS, PROMPTS_3)
    wrong = np.abs(states.context.numpy() - GOLDENS["pipeline/context"])
    assert wrong[:, :LENGTH].max() > 0.1 and wrong[:, LENGTH:].max() < tolerances.MODULE


def test_equal_prompts_are_encoded_once(encoders: TextEncoders, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    for name in ("clip_l", "clip_g", "t5"):
        encoder = getattr(encoders, name)
        monkeypatch.setattr(encoder, "forward", lambda ids, run=encoder.forward: seen.append(ids.shape) or run(ids))
    negative = ["bad"] * 3
    states = encode(encoders, negative, negative, [*negative[:2], "ugly"])
    assert seen == [[1, LENGTH], [1, LENGTH], [2, T5_LENGTH]]
    assert states.context.shape[0] == states.pooled.shape[0] == 3
    context = states.context.numpy()
    assert (context[0] == context[1]).all() and (context[0, :LENGTH] == context[2, :LENGTH]).all()
    assert (context[0, LENGTH:] != context[2, LENGTH:]).any()


def test_rows_keep_their_order(encoders: TextEncoders) -> None:
    texts = ["a", "b", "a", "c", "b"]
    together = encode(encoders, texts, texts, texts).context.numpy()
    for row, text in zip(together, texts, strict=True):
        alone = encode(encoders, [text], [text], [text]).context.numpy()[0]
        assert np.abs(row - alone).max() < tolerances.MODULE


def test_a_cut_prompt_is_told_once_for_each_encoder(encoders: TextEncoders, caplog: pytest.LogCaptureFixture) -> None:
    long = "red " * 80
    with caplog.at_level(logging.WARNING, logger="sd3par"):
        encode(encoders, ["red", "red"], [long, long], [long, long])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0] == "CLIP reads 77 tokens of a prompt: the last 5 tokens (20 characters) of one were cut"
    assert messages[1].startswith("T5 reads 16 tokens of a prompt: the last ")
    assert "red" not in "".join(messages)  # a prompt is its user's own


@pytest.mark.parametrize(("lists", "field"), [
    ((["a"], ["a", "b"], ["a"]), "prompt_2"), ((["a"], ["a"], []), "prompt_3"), (([], [], []), "prompt"),
    ((["a\ud800"], ["a"], ["a"]), "prompt"), ((["a"], ["a"], [None]), "prompt"),
])  # fmt: skip
def test_prompts_that_are_refused(encoders: TextEncoders, lists: tuple[list[str], ...], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        encode(encoders, *lists)


def test_t5_comes_with_its_tokenizer(encoders: TextEncoders) -> None:
    for part in ("t5", "tokenizer_t5"):
        with pytest.raises(ConfigError, match="tokenizer_3"):
            dataclasses.replace(encoders, **{part: None})


@pytest.mark.parametrize("length", [0, -1])
def test_a_sequence_length_of_nothing_is_refused(encoders: TextEncoders, length: int) -> None:
    for one in (encoders, dataclasses.replace(encoders, t5=None, tokenizer_t5=None)):
        with pytest.raises(ConfigError, match="max_sequence_length"):
            encode(one, ["a"], ["a"], ["a"], length=length)


def test_a_context_that_does_not_fit_is_refused(encoders: TextEncoders) -> None:
    with pytest.raises(ConfigError, match="joint_attention_dim: got 64; allowed: T5's width 32"):
        encode(encoders, ["a"], ["a"], ["a"], dim=64)
    with pytest.raises(ConfigError, match="joint_attention_dim: got 20; allowed: at least 28"):
        join_context(paddle.zeros([1, 2, 12]), paddle.zeros([1, 2, 16]), paddle.zeros([1, 3, 20]), 20)


def test_a_tokenizer_with_ids_beyond_its_encoder_is_refused(encoders: TextEncoders) -> None:
    with pytest.raises(CheckpointError, match=r"clip_g: token id \d+; allowed: ids below 100"):
        small = dataclasses.replace(encoders.clip_l.config, vocab_size=100)
        dataclasses.replace(encoders, clip_g=CLIPTextEncoder(small, "float32"))


def test_states_from_outside_join_those_of_half_precision() -> None:
    """On a GPU the encoders' states are bfloat16, and what a caller gives is fp32."""
    here, given = (TextStates(paddle.ones([1, 2, 3]), paddle.ones([1, 4])) for _ in range(2))
    here = TextStates(here.context.astype("bfloat16"), here.pooled.astype("bfloat16"))
    both = join_halves([here, TextStates(given.context * 2, given.pooled * 2)])
    assert both.context[:, 0, 0].tolist() == both.pooled[:, 0].tolist() == [1, 2]
    assert join_halves([here, here]).context.dtype == paddle.bfloat16

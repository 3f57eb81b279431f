"""From prompts to what the MM-DiT reads of them: three encoders, one context."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.captured import directly
from sd3par.config import require
from sd3par.errors import CheckpointError
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.text.tokenize import CLIPTokenizer, PromptTokenizer, T5Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextStates:
    """R encoded prompts.

    context: [R, Tc, joint_dim], CLIP's tokens (77), then T5's.
    pooled: [R, P], the pooled states of both CLIPs, one after the other.
    """

    context: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class TextEncoders:
    """SD3's text encoders and their tokenizers; without T5, both of its fields are None.

    Raises:
        ConfigError: T5 without its tokenizer, or the other way round.
        CheckpointError: a tokenizer has ids that its encoder does not know.
    """

    clip_l: CLIPTextEncoder
    clip_g: CLIPTextEncoder
    t5: T5Encoder | None
    tokenizer_l: CLIPTokenizer
    tokenizer_g: CLIPTokenizer
    tokenizer_t5: T5Tokenizer | None

    def __post_init__(self) -> None:
        _check_vocabulary(self.tokenizer_l, self.clip_l)
        _check_vocabulary(self.tokenizer_g, self.clip_g)
        whole = (self.t5 is None) == (self.tokenizer_t5 is None)
        require(whole, "tokenizer_3", self.tokenizer_t5, "a tokenizer where there is a text_encoder_3, else none")
        if self.t5 is not None and self.tokenizer_t5 is not None:
            _check_vocabulary(self.tokenizer_t5, self.t5)

    @property
    def clip_length(self) -> int:
        """Tokens that both CLIPs read of a prompt: 77."""
        positions = (encoder.config.max_position_embeddings for encoder in (self.clip_l, self.clip_g))
        return min(self.tokenizer_l.max_length, *positions)

    def encode(
        self,
        prompts: Sequence[str],
        prompts_2: Sequence[str],
        prompts_3: Sequence[str],
        max_sequence_length: int,
        joint_dim: int,
        call: Callable[..., Any] = directly,
    ) -> TextStates:
        """Encodes R prompts as diffusers' `StableDiffusion3Pipeline.encode_prompt` does.

        Args:
            prompts: R texts for CLIP-L.
            prompts_2: R texts for CLIP-G.
            prompts_3: R texts for T5.
            max_sequence_length: tokens that T5 reads of a prompt.
            joint_dim: width of the context that the MM-DiT reads.
            call: what calls an encoder with its tensors (`captured.Captured`).

        Returns:
            context [R, 77 + max_sequence_length, joint_dim]; without T5 its last tokens are zeros.

        Raises:
            ConfigError: the numbers of prompts differ, a prompt is no Unicode text, or `joint_dim` does not fit.
        """
        rows = len(prompts)
        require(rows >= 1, "prompt", prompts, "at least one text")
        require(max_sequence_length >= 1, "max_sequence_length", max_sequence_length, "at least 1")
        for name, texts in (("prompt_2", prompts_2), ("prompt_3", prompts_3)):
            require(len(texts) == rows, name, f"{len(texts)} texts", f"{rows} texts, as many as prompt has")
        hidden_l, pooled_l = self.encode_clip(self.clip_l, self.tokenizer_l, prompts, call)
        hidden_g, pooled_g = self.encode_clip(self.clip_g, self.tokenizer_g, prompts_2, call)
        hidden_t5 = self.encode_t5(prompts_3, max_sequence_length, call)
        if hidden_t5 is None:
            hidden_t5 = paddle.zeros([rows, max_sequence_length, joint_dim], dtype=hidden_l.dtype)
        return TextStates(
            join_context(hidden_l, hidden_g, hidden_t5, joint_dim), paddle.concat([pooled_l, pooled_g], axis=-1)
        )

    def encode_clip(
        self, encoder: CLIPTextEncoder, tokenizer: CLIPTokenizer, prompts: Sequence[str],
        call: Callable[..., Any] = directly,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Returns hidden [R, 77, width] and pooled [R, projection] of R prompts."""
        unique, rows = _unique(prompts)
        hidden, pooled = call(encoder, _token_ids("CLIP", tokenizer, unique, self.clip_length))
        return rows(hidden), rows(pooled)

    def encode_t5(self, prompts: Sequence[str], length: int, call: Callable[..., Any] = directly) -> Tensor | None:
        """Returns T5's states [R, length, d_model] of R prompts, or None without T5."""
        if self.t5 is None or self.tokenizer_t5 is None:
            return None
        unique, rows = _unique(prompts)
        return rows(call(self.t5, _token_ids("T5", self.tokenizer_t5, unique, length)))


def join_context(hidden_l: Tensor, hidden_g: Tensor, hidden_t5: Tensor, joint_dim: int) -> Tensor:
    """Returns what the MM-DiT reads: both CLIPs side by side, filled up with zeros, then T5's tokens.

    Args:
        hidden_l: [R, 77, width of CLIP-L].
        hidden_g: [R, 77, width of CLIP-G].
        hidden_t5: [R, L, joint_dim].

    Returns:
        [R, 77 + L, joint_dim].

    Raises:
        ConfigError: `joint_dim` is not T5's width, or too narrow for both CLIPs.
    """
    require(hidden_t5.shape[-1] == joint_dim, "joint_attention_dim", joint_dim, f"T5's width {hidden_t5.shape[-1]}")
    clip = paddle.concat([hidden_l, hidden_g], axis=-1)  # [R, 77, widths of both]
    width = clip.shape[-1]
    require(width <= joint_dim, "joint_attention_dim", joint_dim, f"at least {width}, the width of both CLIPs")
    clip = F.pad(clip, [0, 0, 0, 0, 0, joint_dim - width])  # [R, 77, joint_dim]
    return paddle.concat([clip, hidden_t5.astype(clip.dtype)], axis=1)


def _unique(prompts: Sequence[str]) -> tuple[list[str], Callable[[Tensor], Tensor]]:
    """Returns the different prompts, and what makes R rows of their states again."""
    unique = list(dict.fromkeys(prompts))
    index = paddle.to_tensor([unique.index(prompt) for prompt in prompts], dtype="int64")
    return unique, lambda states: paddle.index_select(states, index) if len(unique) < len(prompts) else states


def _token_ids(name: str, tokenizer: PromptTokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Returns ids [R, length] int64, and warns of every prompt that was cut."""
    ids, cuts = tokenizer.tokenize(prompts, length)
    for cut in cuts:
        if cut.tokens:
            logger.warning(
                "%s reads %d tokens of a prompt: the last %d tokens (%d characters) of one were cut",
                name, length, cut.tokens, cut.characters,
            )  # fmt: skip
    return paddle.to_tensor(ids)


def _check_vocabulary(tokenizer: PromptTokenizer, encoder: CLIPTextEncoder | T5Encoder) -> None:
    """An id beyond the table would be read from foreign memory on a GPU."""
    size = encoder.config.vocab_size
    if tokenizer.highest_id >= size:
        raise CheckpointError(
            tokenizer.folder, f"token id {tokenizer.highest_id}", f"ids below {size}, the encoder's vocab_size"
        )

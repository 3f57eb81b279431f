"""From prompts to what the MM-DiT reads of them: three encoders, one context.

Every rank is given the same prompts. All of them are tokenized before the first is encoded: where one cannot be read
all ranks refuse it, and none waits. Each encoder reads every different text once, on the ranks that have it; one sum
over the world, of what a rank encoded and zeros for the rest, gives the same bits to all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par.captured import Call, directly
from sd3par.config import require
from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.text.place import Place
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


class Encoder(Protocol):
    """A text encoder: a model, or an exported one's program. `config` has `vocab_size`, and a CLIP's its positions."""

    config: Any
    dtype: str
    place: Place

    def shapes(self, rows: int, length: int) -> list[list[int]]:
        """The shapes of what it gives for ids [rows, length]."""
        ...

    def __call__(self, ids: Tensor) -> Tensor | tuple[Tensor, ...]:
        """ids: [R, L] int64 -> hidden [R, L, width], and of a CLIP pooled [R, projection]."""
        ...


class _Texts(NamedTuple):
    """What an encoder reads of R prompts: ids [U, L] of the different ones, and which of these each prompt is."""

    ids: Tensor
    which: list[int]

    @classmethod
    def of(cls, name: str, tokenizer: PromptTokenizer, prompts: Sequence[str], length: int) -> _Texts:
        unique = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        return cls(_token_ids(name, tokenizer, list(unique), length), [unique[prompt] for prompt in prompts])

    def rows(self, states: Tensor, prompts: Sequence[int]) -> Tensor:
        """states: [U, ...] -> those of some of the R prompts, by their numbers: [len(prompts), ...]."""
        return paddle.index_select(states, paddle.to_tensor([self.which[one] for one in prompts], dtype="int64"))


class _Reading(NamedTuple):
    """An encoder, what it reads, and what calls it."""

    encoder: Encoder
    texts: _Texts
    call: Call

    def states(self) -> list[Tensor]:
        """Returns the encoder's states of U texts, zeros where another rank gives them: hidden [U, L, width], and of a
        CLIP pooled [U, projection]."""
        encoder, ids = self.encoder, self.texts.ids
        states = self.call(encoder, ids) if encoder.place.here else None
        if not encoder.place.gives:
            return [paddle.zeros(shape, dtype=encoder.dtype) for shape in encoder.shapes(*ids.shape)]
        return list(states) if isinstance(states, tuple) else [states]


@dataclass(frozen=True)
class Encoded:
    """R encoded prompts, the same on every rank.

    texts: of CLIP-L, CLIP-G and, if there is one, T5.
    states: hidden and pooled of CLIP-L, then of CLIP-G, then T5's: [U, ...] of the U different texts of each.
    length: tokens that T5 has in the context. joint_dim: width of the context.
    """

    texts: list[_Texts]
    states: list[Tensor]
    length: int
    joint_dim: int

    def rows(self, prompts: Sequence[int]) -> TextStates:
        """Returns the states of some of the R prompts, by their numbers; without T5 its tokens are zeros.

        Raises:
            ConfigError: `joint_dim` does not fit.
        """
        text_l, text_g, *text_t5 = self.texts
        hidden_l, pooled_l = (text_l.rows(states, prompts) for states in self.states[:2])
        hidden_g, pooled_g = (text_g.rows(states, prompts) for states in self.states[2:4])
        if text_t5:
            hidden_t5 = text_t5[0].rows(self.states[4], prompts)
        else:
            hidden_t5 = paddle.zeros([len(prompts), self.length, self.joint_dim], dtype=hidden_l.dtype)
        context = join_context(hidden_l, hidden_g, hidden_t5, self.joint_dim)
        return TextStates(context, paddle.concat([pooled_l, pooled_g], axis=-1))


@dataclass(frozen=True)
class TextEncoders:
    """SD3's text encoders and their tokenizers; without T5, both of its fields are None.

    mesh: the processes that share the work; each encoder's `place` says which run it. Every rank calls `encode`.

    Raises:
        ConfigError: T5 without its tokenizer, or the other way round.
        CheckpointError: a tokenizer has ids that its encoder does not know.
    """

    clip_l: Encoder
    clip_g: Encoder
    t5: Encoder | None
    tokenizer_l: CLIPTokenizer
    tokenizer_g: CLIPTokenizer
    tokenizer_t5: T5Tokenizer | None
    mesh: Mesh = Mesh.single()

    def __post_init__(self) -> None:
        _check_vocabulary(self.tokenizer_l, self.clip_l)
        _check_vocabulary(self.tokenizer_g, self.clip_g)
        whole = (self.t5 is None) == (self.tokenizer_t5 is None)
        require(whole, "tokenizer_3", self.tokenizer_t5, "a tokenizer where there is a text_encoder_3, else none")
        if self.t5 is not None and self.tokenizer_t5 is not None:
            _check_vocabulary(self.tokenizer_t5, self.t5)

    @property
    def split(self) -> bool:
        """Whether several processes run T5 together: all of them, and all alike."""
        return self.t5 is not None and self.t5.place.axis.size > 1

    @property
    def clip_length(self) -> int:
        """Tokens that both CLIPs read of a prompt: 77."""
        positions = (encoder.config.max_position_embeddings for encoder in (self.clip_l, self.clip_g))
        return min(self.tokenizer_l.max_length, *positions)

    def encode(
        self, prompts: Sequence[str], prompts_2: Sequence[str], prompts_3: Sequence[str], max_sequence_length: int,
        joint_dim: int, call: Call = directly, together: Call = directly,
    ) -> Encoded:  # fmt: skip
        """Encodes R prompts as diffusers' `StableDiffusion3Pipeline.encode_prompt` does.

        Args:
            prompts: what CLIP-L reads.
            prompts_2: what CLIP-G reads.
            prompts_3: what T5 reads.
            max_sequence_length: tokens that T5 reads of a prompt.
            joint_dim: width of the context.
            call: runs an encoder on the rank that has it.
            together: runs T5 where processes split it, on all of them alike.

        Raises:
            ConfigError: the numbers of prompts differ, a prompt is no Unicode text, or `joint_dim` does not fit.
        """
        rows = len(prompts)
        require(rows >= 1, "prompt", prompts, "at least one text")
        require(max_sequence_length >= 1, "max_sequence_length", max_sequence_length, "at least 1")
        for name, texts in (("prompt_2", prompts_2), ("prompt_3", prompts_3)):
            require(len(texts) == rows, name, f"{len(texts)} texts", f"{rows} texts, as many as prompt has")
        read = [
            _Reading(self.clip_l, _Texts.of("CLIP", self.tokenizer_l, prompts, self.clip_length), call),
            _Reading(self.clip_g, _Texts.of("CLIP", self.tokenizer_g, prompts_2, self.clip_length), call),
        ]
        if self.t5 is not None and self.tokenizer_t5 is not None:
            texts_t5 = _Texts.of("T5", self.tokenizer_t5, prompts_3, max_sequence_length)
            read.append(_Reading(self.t5, texts_t5, together if self.split else call))
        states = self._exchange([state for one in read for state in one.states()])
        return Encoded([one.texts for one in read], states, max_sequence_length, joint_dim)

    def _exchange(self, states: list[Tensor]) -> list[Tensor]:
        """Returns the sums over the world of states [...], by one all-reduce: what one rank has and others zeros."""
        if self.mesh.world.size == 1:
            return states
        total = self.mesh.all_reduce(self.mesh.world, paddle.concat([state.flatten() for state in states]))
        pieces = total.split([state.size for state in states])
        return [piece.reshape(state.shape) for piece, state in zip(pieces, states, strict=True)]


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


def _check_vocabulary(tokenizer: PromptTokenizer, encoder: Encoder) -> None:
    """An id beyond the table would be read from foreign memory on a GPU."""
    size = encoder.config.vocab_size
    if tokenizer.highest_id >= size:
        raise CheckpointError(
            tokenizer.folder, f"token id {tokenizer.highest_id}", f"ids below {size}, the encoder's vocab_size"
        )

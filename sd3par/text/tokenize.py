"""Prompts to token ids, byte for byte as transformers' CLIPTokenizer and T5Tokenizer make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from sd3par.config import require
from sd3par.errors import ConfigError
from sd3par.text.vocabulary import build_clip, build_t5, open_pipeline, parsed, read_settings

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Cut(NamedTuple):
    """What of one prompt did not fit: so many tokens, so many characters at its end."""

    tokens: int
    characters: int


class Tokens(NamedTuple):
    """Token ids [R, L] int64 and what was cut from each of the R prompts."""

    ids: np.ndarray
    cut: tuple[Cut, ...]


class PromptTokenizer:
    """A pipeline, the tokens around a text, and the padding after it.

    folder: where they come from.
    highest_id: the highest that `ids` can hold.
    """

    def __init__(self, folder: Path, pipeline: Tokenizer, start: Sequence[str], end: str, pad: str) -> None:
        self.folder = folder
        self._pipeline = pipeline
        vocabulary = pipeline.get_vocab(with_added_tokens=True)
        self._start = [vocabulary[token] for token in start]
        self._end, self._pad = vocabulary[end], vocabulary[pad]
        self.highest_id = max(vocabulary.values())

    def ids(self, prompts: Sequence[str], length: int) -> np.ndarray:
        """Returns `tokenize(prompts, length).ids`: [R, length] int64."""
        return self.tokenize(prompts, length).ids

    def tokenize(self, prompts: Sequence[str], length: int) -> Tokens:
        """Returns the ids of each prompt: its first tokens, the end token, and padding up to `length`.

        Raises:
            ConfigError: `length` has no room for the tokens around a text, or a prompt is no Unicode text.
            CheckpointError: the tokenizer's vocabulary has no token for unknown text.
        """
        around = len(self._start) + 1
        require(length >= around, "max_sequence_length", length, f"at least {around}")
        ids = np.full((len(prompts), length), self._pad, dtype=np.int64)
        cuts = []
        for row, prompt in zip(ids, prompts, strict=True):
            found, cut = self._first_tokens(prompt, length - around)
            row[: len(found) + around] = [*self._start, *found, self._end]
            cuts.append(cut)
        return Tokens(ids, tuple(cuts))

    def _first_tokens(self, prompt: str, room: int) -> tuple[list[int], Cut]:
        """Returns the ids of the first `room` tokens of a prompt, and what is left of it."""
        text = _encodable(prompt)
        encoding = parsed(self.folder, lambda: self._pipeline.encode(text, add_special_tokens=False))
        if len(encoding) <= room:
            return encoding.ids, Cut(0, 0)
        return encoding.ids[:room], Cut(len(encoding) - room, len(text) - encoding.offsets[room][0])


class CLIPTokenizer(PromptTokenizer):
    """CLIP's tokenizer from a folder with tokenizer.json, or with vocab.json and merges.txt.

    SD3's first CLIP pads with <|endoftext|> and its second with "!": the folder's configuration says so.

    Raises:
        CheckpointError: a file is missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        settings = read_settings(Path(folder), CLIP_TOKENS)
        named = settings.named
        pipeline = open_pipeline(Path(folder), settings, models.BPE, build_clip)
        super().__init__(Path(folder), pipeline, [named["bos_token"]], named["eos_token"], named["pad_token"])
        self.max_length = settings.max_length


class T5Tokenizer(PromptTokenizer):
    """T5's tokenizer from a folder with tokenizer.json, or with spiece.model.

    Raises:
        CheckpointError: a file is missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        settings = read_settings(Path(folder), T5_TOKENS)
        pipeline = open_pipeline(Path(folder), settings, models.Unigram, build_t5)
        super().__init__(Path(folder), pipeline, [], settings.named["eos_token"], settings.named["pad_token"])


def _encodable(prompt: str) -> str:
    """Returns `prompt`, which has no lone surrogates: half characters, as broken UTF-16 or file names leave them."""
    if not isinstance(prompt, str):
        raise ConfigError("prompt", prompt, "a string")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"{prompt[error.start : error.start + 1]!a} at character {error.start}"
        raise ConfigError("prompt", found, "Unicode text without lone surrogates") from None
    return prompt

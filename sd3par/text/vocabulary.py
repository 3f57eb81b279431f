"""From a tokenizer folder to a pipeline of the `tokenizers` library, the same as transformers builds from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from sd3par.errors import CheckpointError, shorten
from sd3par.text import spiece

T = TypeVar("T")

# OpenAI's CLIP (simple_tokenizer.py): special tokens, English contractions, runs of letters, single digits, the rest.
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
UNLIMITED = 1 << 30
MOST_EXTRA_IDS = 1000  # T5 has 100
UNKNOWN_PIECE = 2  # sentencepiece_model.proto: SentencePiece.Type.UNKNOWN


@dataclass(frozen=True)
class Settings:
    """What a tokenizer folder says beside its vocabulary.

    named: "bos_token", "eos_token", "unk_token" and "pad_token", where the folder names them.
    added: the tokens that are looked for in a prompt before anything else is done to it.
    max_length: tokens that its encoder reads.
    extra_ids: T5's tokens beyond those in spiece.model.
    """

    named: Mapping[str, str]
    added: tuple[AddedToken, ...]
    max_length: int
    extra_ids: int


def read_settings(folder: Path, defaults: Mapping[str, str]) -> Settings:
    """Returns the settings of `folder`: tokenizer_config.json, and special_tokens_map.json where that lists no tokens.

    Raises:
        CheckpointError: one of the files is broken.
    """
    where = folder / "tokenizer_config.json"
    config = _read_json(where) if where.exists() else {}
    special = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and special.exists():
        config = {**config, **_read_json(special)}
    return parsed(where, lambda: _settings(config, defaults))


def _settings(config: Mapping[str, Any], defaults: Mapping[str, str]) -> Settings:
    given = {name: config.get(name) or defaults.get(name) for name in NAMED_TOKENS}
    tokens = {name: _added_token(value) for name, value in given.items() if value}
    listed = [_added_token(value) for value in config.get("added_tokens_decoder", {}).values()]
    # Of two that describe one token, the list's counts, then that of the last name: so transformers has it.
    added = {token.content: token for token in [*tokens.values(), *listed]}
    named = {name: token.content for name, token in tokens.items()}
    limit, extra_ids = config.get("model_max_length") or UNLIMITED, int(config.get("extra_ids", 100))
    if not 0 <= extra_ids <= MOST_EXTRA_IDS:
        raise ValueError(f"{extra_ids} extra ids, more than {MOST_EXTRA_IDS}")
    return Settings(named, tuple(added.values()), int(min(limit, UNLIMITED)), extra_ids)


def _added_token(value: Any) -> AddedToken:
    """Returns the token that a config gives as a string or as an object."""
    if isinstance(value, str):
        return AddedToken(value, normalized=False, special=True)
    flags = {name: bool(value[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=True, **flags)


def open_pipeline(
    folder: Path, settings: Settings, model: type, build: Callable[[Path, Settings], Tokenizer]
) -> Tokenizer:
    """Returns the pipeline in `folder`: tokenizer.json where that stands there, else what `build` makes of other files.

    tokenizer.json counts as it stands. transformers 5 rebuilds T5's, so where an older one is read, texts with U+0085
    or U+2581 may get other ids than there: those of sentencepiece and of transformers 4.

    Args:
        model: the kind of model that tokenizer.json must hold.

    Raises:
        CheckpointError: a file is missing, broken or of another kind of tokenizer.
    """
    where = folder / "tokenizer.json"
    pipeline = _read_pipeline(where) if where.exists() else build(folder, settings)
    if not isinstance(pipeline.model, model):
        raise CheckpointError(where, f"a {type(pipeline.model).__name__} tokenizer", f"a {model.__name__} tokenizer")
    pipeline.no_truncation()
    pipeline.no_padding()
    known = {token.content for token in pipeline.get_added_tokens_decoder().values()}
    pipeline.add_tokens([token for token in settings.added if token.content not in known])
    return pipeline


def _read_pipeline(where: Path) -> Tokenizer:
    text = read_text(where)
    return parsed(where, lambda: Tokenizer.from_str(text))


def build_clip(folder: Path, settings: Settings) -> Tokenizer:
    """Returns CLIP's byte-level BPE from vocab.json and merges.txt.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    vocabulary = _read_vocabulary(folder / "vocab.json")
    where = folder / "merges.txt"
    lines = [line.rstrip("\r") for line in read_text(where).split("\n")]
    merges: list[Any] = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    unknown = settings.named["unk_token"]
    model = parsed(where, lambda: models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=unknown))
    pipeline = Tokenizer(model)
    pipeline.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return pipeline


def _read_vocabulary(where: Path) -> dict[str, int]:
    vocabulary = _read_json(where)
    if not all(type(i) is int and 0 <= i < UNLIMITED for i in vocabulary.values()):
        raise CheckpointError(where, "broken: a token without an id", "a JSON object from token to id")
    return vocabulary


def build_t5(folder: Path, settings: Settings) -> Tokenizer:
    """Returns T5's unigram tokenizer from spiece.model, with the extra ids that the model file does not list.

    Raises:
        CheckpointError: the file is missing or broken.
    """
    where = folder / "spiece.model"
    data = read_bytes(where)
    model = parsed(where, lambda: spiece.parse_model(where, data))
    extra = [f"<extra_id_{i}>" for i in range(settings.extra_ids - 1, -1, -1)]
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces] + [(text, 0.0) for text in extra]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN_PIECE), None)
    pipeline = Tokenizer(parsed(where, lambda: models.Unigram(vocabulary, unk_id=unknown)))
    if model.normalizer_spec.precompiled_charsmap:
        pipeline.normalizer = parsed(where, lambda: normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")]
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(words)
    pipeline.add_tokens([_added_token(text) for text in extra])
    return pipeline


def read_bytes(where: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    try:
        return where.read_bytes()
    except OSError as error:
        raise CheckpointError(where, error.strerror or "cannot be read", "a sound tokenizer file") from None


def read_text(where: Path) -> str:
    """As `read_bytes`, decoded.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not UTF-8.
    """
    data = read_bytes(where)
    return parsed(where, lambda: data.decode("utf-8"))


def _read_json(where: Path) -> dict[str, Any]:
    text = read_text(where)
    value = parsed(where, lambda: json.loads(text))
    if not isinstance(value, dict):
        raise CheckpointError(where, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def parsed(where: Path, parse: Callable[[], T]) -> T:
    """Returns parse().

    Raises:
        CheckpointError: it failed: what stands at `where` is broken.
    """
    try:
        return parse()
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and BaseException where its Rust code panics
        raise CheckpointError(where, f"broken: {shorten(str(error))}", "a sound tokenizer file") from None

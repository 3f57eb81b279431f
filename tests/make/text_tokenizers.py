"""Trains the small tokenizers in tests/golden/text/, in the file formats that SD3's tokenizers are found in."""

from __future__ import annotations

import io
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from tests.text.cases import END, LENGTH, START, TOKENIZERS, legacy_clip_folder

CORPUS = [
    "a red circle on a blue background", "the blue square of the green star", "two orange rings in front of snow",
    "caf\u00e9 na\u00efve stra\u00dfe \u00e5ngstr\u00f6m", "\u0437\u0438\u043c\u0430 \u0438 \u0441\u043d\u0435\u0433",
    "\u4e00\u4e2a\u7ea2\u8272\u7684\u5706 \u4e00\u4e2a", "\U0001f600 \U0001f534 \U0001f600",
    "don't it's we'll they're 12 34",
]  # fmt: skip
_FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}


def make_tokenizers() -> None:
    """Writes every flavour."""
    TOKENIZERS.mkdir()
    write_clip_l(TOKENIZERS / "clip_l")
    write_clip_g(TOKENIZERS / "clip_g")
    write_t5(TOKENIZERS / "t5", TOKENIZERS / "t5_json")


def write_clip_l(folder: Path) -> None:
    """As SD3 ships its first tokenizer: vocab.json, merges.txt, and the special tokens in tokenizer_config.json."""
    folder.mkdir()
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    trained.pre_tokenizer = pre_tokenizers.Sequence(splits)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" comes first, as in CLIP
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*bytes_, *(byte + "</w>" for byte in bytes_), *("".join(merge) for merge in merges), START, END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
    listed = {
        str(ids[START]): {"content": START, "normalized": True, **_FLAGS},
        str(ids[END]): {"content": END, "normalized": False, **_FLAGS},
    }
    named = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": listed, **named, "model_max_length": LENGTH})


def write_clip_g(folder: Path) -> None:
    """As transformers 5 saves the second tokenizer: tokenizer.json, padding with "!"."""
    with tempfile.TemporaryDirectory() as scratch:
        _save_fast(CLIPTokenizer.from_pretrained(legacy_clip_folder(Path(scratch) / "clip", "!")), folder)


def write_t5(folder: Path, json_folder: Path) -> None:
    """Twice the same tokenizer: spiece.model, and tokenizer.json as transformers 5 saves it."""
    folder.mkdir()
    (folder / "spiece.model").write_bytes(train_sentencepiece())
    _write_json(folder / "tokenizer_config.json", {"extra_ids": 100, "model_max_length": 512})
    _save_fast(T5Tokenizer.from_pretrained(folder), json_folder)


def _save_fast(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def train_sentencepiece() -> bytes:
    """A unigram model with T5's first ids (padding 0, end 1, unknown 2), less the paths that its trainer noted."""
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch) / "rules.tsv"
        rules.write_text(normalisation_rules())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 8), model_writer=out, model_type="unigram", vocab_size=180,
            normalization_rule_tsv=str(rules), character_coverage=1.0, hard_vocab_limit=False, num_threads=1,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    model.trainer_spec.ClearField("input")
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    return model.SerializeToString()


def normalisation_rules() -> str:
    """Some of T5's normalisation, NFKC, as sentencepiece rules; the whole of it would be 240 kB."""
    codes = [0x9, 0xA, 0xD, 0xA0, 0xBD, *range(0x2000, 0x200B), 0x3000, *range(0xFF01, 0xFF5F), 0xFB01]
    pairs = [(code, unicodedata.normalize("NFKC", chr(code)).strip() or " ") for code in codes]
    return "".join(f"{code:X}\t{' '.join(f'{ord(c):X}' for c in target)}\n" for code, target in pairs)

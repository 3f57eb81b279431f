"""Makes the three tokenizers of the bundled model: two of CLIP's byte-level BPE, one sentencepiece for T5.

PYTHONPATH=. python tests/make/tiny_tokenizers.py FOLDER
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import sentencepiece
from tiny_data import caption_table
from transformers import CLIPTokenizer, T5TokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
# The real SD3 pads the first CLIP with its end token and the second with token 0, "!".
PADS = {"tokenizer": END, "tokenizer_2": "!"}


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in CLIP's vocabulary, in its order: "!" comes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(spare)]


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    symbols: list[str] = []
    for symbol in word:
        if symbols and (symbols[-1], symbol) == pair:
            symbols[-1] += symbol
        else:
            symbols.append(symbol)
    return tuple(symbols)


def learn_merges(counts: Counter[str], most: int) -> list[tuple[str, str]]:
    """The byte pair merges learnt from ASCII words and their counts."""
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in counts.items()}
    merges = []
    for _ in range(most):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_joined(word, best): count for word, count in words.items()}
    return merges


def write_clip(folder: Path, pad: str, merges: list[tuple[str, str]]) -> None:
    """Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json of one CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges), START, END]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    special = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    config = {"add_prefix_space": False, **special, "do_lower_case": True, "model_max_length": MAX_LENGTH}
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)}, indent=None)
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "CLIPTokenizer"})


def normalisation_rules() -> str:
    """A small cut of NFKC as sentencepiece rules: spaces, full-width ASCII, ligatures. The whole is 240 kB."""
    codes = [0x9, 0xA, 0xD, 0xA0, *range(0x2000, 0x200B), 0x3000, *range(0xFF01, 0xFF5F), *range(0xFB00, 0xFB05)]
    lines = []
    for code in codes:
        target = unicodedata.normalize("NFKC", chr(code)).strip() or " "
        lines.append(f"{code:X}\t{' '.join(f'{ord(c):X}' for c in target)}")
    return "\n".join(lines) + "\n"


def train_sentencepiece(texts: list[str], vocab_size: int) -> bytes:
    """A unigram model with T5's ids (pad 0, end 1, unknown 2) and all printable ASCII."""
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text(normalisation_rules())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=out,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_tsv=str(rules),
            required_chars="".join(chr(code) for code in range(33, 127)),
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
    return out.getvalue()


def without_trainer_spec(model: bytes) -> bytes:
    """The sentencepiece model less the paths that its trainer noted."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for spec in (proto.trainer_spec, proto.normalizer_spec):
        for field in ("input", "model_prefix", "normalization_rule_tsv"):
            if field in spec.DESCRIPTOR.fields_by_name:
                spec.ClearField(field)
    return proto.SerializeToString()


def write_t5(folder: Path, texts: list[str], vocab_size: int) -> None:
    """Writes spiece.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(without_trainer_spec(train_sentencepiece(texts, vocab_size)))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {**special, "extra_ids": 0, "additional_special_tokens": [], "model_max_length": 512}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "T5Tokenizer"})
    T5TokenizerFast.from_pretrained(folder, extra_ids=0).backend_tokenizer.save(str(folder / "tokenizer.json"), False)


def _write_json(path: Path, value: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def make_tokenizers(folder: Path, merges: int = 120, t5_vocab: int = 320) -> None:
    """Writes tokenizer/, tokenizer_2/ and tokenizer_3/ below the folder."""
    texts = [text for row in caption_table() for text in row]
    words: Counter[str] = Counter(re.findall(r"[a-z]+|[^\sa-z]+", " ".join(texts).lower()))
    learnt = learn_merges(words, merges)
    for name, pad in PADS.items():
        write_clip(folder / name, pad, learnt)
    write_t5(folder / "tokenizer_3", texts[::7], t5_vocab)
    for name in PADS:
        assert CLIPTokenizer.from_pretrained(folder / name)("a red circle").input_ids[-1] == 513 + len(learnt)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make_tokenizers(parser.parse_args().folder)

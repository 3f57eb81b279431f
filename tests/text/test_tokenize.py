"""The tokenizers against transformers' ids, and what they do with texts and files that are wrong."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sd3par.errors import CheckpointError, ConfigError
from sd3par.text.tokenize import CLIPTokenizer, Cut, PromptTokenizer, T5Tokenizer
from tests.text.cases import GOLDEN, LENGTH, ODD_TEXTS, TOKENIZERS, legacy_clip_folder

GOLDENS = np.load(GOLDEN)
KINDS = {"clip_l": CLIPTokenizer, "clip_g": CLIPTokenizer, "t5": T5Tokenizer, "t5_json": T5Tokenizer}


def opened(flavour: str) -> PromptTokenizer:
    return KINDS[flavour](TOKENIZERS / flavour)


def ascii_start(text: str) -> str:
    """A test's name."""
    return ascii(text[:4])


def copied(flavour: str, folder: Path) -> Path:
    shutil.copytree(TOKENIZERS / flavour, folder / flavour)
    return folder / flavour


@pytest.mark.parametrize("flavour", KINDS)
def test_ids_are_those_of_transformers(flavour: str) -> None:
    found = opened(flavour).ids(ODD_TEXTS, LENGTH)
    wrong = [text for text, ours, theirs in zip(ODD_TEXTS, found, GOLDENS[f"tokens/{flavour}"], strict=True)
             if not np.array_equal(ours, theirs)]  # fmt: skip
    assert wrong == []
    assert found.dtype == np.int64 and len(ODD_TEXTS) >= 40


def test_ids_from_a_folder_with_special_tokens_map(tmp_path: Path) -> None:
    folder = legacy_clip_folder(tmp_path / "clip", {"content": "!", "normalized": False})
    assert np.array_equal(CLIPTokenizer(folder).ids(ODD_TEXTS, LENGTH), GOLDENS["tokens/clip_legacy"])


def test_special_tokens_map_is_not_read_where_the_config_lists_tokens(tmp_path: Path) -> None:
    folder = copied("clip_l", tmp_path)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    assert np.array_equal(CLIPTokenizer(folder).ids(ODD_TEXTS, LENGTH), GOLDENS["tokens/clip_l"])


def test_merges_with_the_line_ends_of_windows(tmp_path: Path) -> None:
    folder = copied("clip_l", tmp_path)
    (folder / "merges.txt").write_bytes((folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert np.array_equal(CLIPTokenizer(folder).ids(ODD_TEXTS, LENGTH), GOLDENS["tokens/clip_l"])


def test_more_extra_ids_than_memory_are_refused(tmp_path: Path) -> None:
    folder = copied("t5", tmp_path)
    (folder / "tokenizer_config.json").write_text('{"extra_ids": 1000000000000}')
    with pytest.raises(CheckpointError, match="tokenizer_config.json: broken: 1000000000000 extra ids"):
        T5Tokenizer(folder)


def test_flavours_differ() -> None:
    """Else the goldens could not tell them apart: padding, "!" as a token, upper-case special tokens."""
    differ = {
        flavour: GOLDENS["tokens/clip_l"] != GOLDENS[f"tokens/{flavour}"] for flavour in ("clip_g", "clip_legacy")
    }
    assert all(rows.any() for rows in differ.values())
    assert GOLDENS["tokens/clip_l"][0, -1] != 0 and GOLDENS["tokens/clip_g"][0, -1] == 0


def test_golden_texts_are_no_mere_unknowns() -> None:
    for flavour in KINDS:
        assert len({row.tobytes() for row in GOLDENS[f"tokens/{flavour}"]}) > 30


@pytest.mark.parametrize("flavour", KINDS)
@pytest.mark.parametrize("length", [2, 3, 16, 77, 300])
def test_end_token_stays_when_a_text_is_cut(flavour: str, length: int) -> None:
    tokenizer = opened(flavour)
    whole = tokenizer.ids(["red circle " * 200], 4000)[0]
    (cut,) = tokenizer.ids(["red circle " * 200], length)
    assert np.array_equal(cut[:-1], whole[: length - 1])
    assert cut[-1] == tokenizer.ids([""], length)[0, 1 if flavour.startswith("clip") else 0]


def test_cut_counts_tokens_and_characters() -> None:
    prompt = "caf\u00e9 red circle red circle"
    for flavour in KINDS:
        tokenizer = opened(flavour)
        around = 2 if flavour.startswith("clip") else 1
        whole = np.argmax(tokenizer.ids([prompt], 200)[0] == tokenizer.ids([""], 2)[0, around - 1]) + 1
        kept = np.argmax(tokenizer.ids(["caf\u00e9 red"], 200)[0] == tokenizer.ids([""], 2)[0, around - 1]) + 1
        ids, cut = tokenizer.tokenize([prompt, "red"], int(kept))
        assert ids.shape == (2, kept)
        assert cut[0].tokens == whole - kept and cut[0].characters in (17, 18)  # with or without the space before
        assert cut[1] == Cut(0, 0)


def test_padding_and_length_of_sd3() -> None:
    clip_l, clip_g = CLIPTokenizer(TOKENIZERS / "clip_l"), CLIPTokenizer(TOKENIZERS / "clip_g")
    assert clip_l.max_length == clip_g.max_length == 77
    assert clip_l.ids([""], 77)[0, -1] == clip_l.highest_id  # <|endoftext|>
    assert clip_g.ids([""], 77)[0, -1] == 0  # "!"


LONG = ["a" * 100_000, "red " * 25_000, "!" * 100_000, "z" + "\u0301" * 50_000, "\u4e00" * 33_000,
        "\U0001f600" * 25_000, " " * 100_000, "<|endoftext|>" * 7_700]  # fmt: skip


@pytest.mark.parametrize("flavour", KINDS)
@pytest.mark.parametrize("text", LONG, ids=ascii_start)
def test_long_prompts_are_quick(flavour: str, text: str) -> None:
    tokenizer = opened(flavour)
    start = time.perf_counter()
    assert tokenizer.ids([text], 77).shape == (1, 77)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("flavour", KINDS)
@pytest.mark.parametrize("prompt", ["a\ud800b", "\udfff", "\udce9.png", None, 3, b"red"])
def test_what_is_no_text_is_refused(flavour: str, prompt: object) -> None:
    with pytest.raises(ConfigError, match="^prompt: "):
        opened(flavour).ids([prompt], 77)  # type: ignore[list-item]


@pytest.mark.parametrize(("flavour", "least"), [("clip_l", 2), ("t5", 1)])
def test_length_has_room_for_the_end_token(flavour: str, least: int) -> None:
    assert opened(flavour).ids(["red"], least).shape == (1, least)
    with pytest.raises(ConfigError, match="max_sequence_length"):
        opened(flavour).ids(["red"], least - 1)


FILES = [
    ("clip_l", "vocab.json"),
    ("clip_l", "merges.txt"),
    ("clip_l", "tokenizer_config.json"),
    ("clip_g", "tokenizer.json"),
    ("t5", "spiece.model"),
    ("t5", "tokenizer_config.json"),
    ("t5_json", "tokenizer.json"),
]
BROKEN = [b"", b"\xff\xfe\x00", b"[]", b"{", b"null", b'{"a": {"b": []}}', b"{}{}", b"a b c\n"]


@pytest.mark.parametrize(("flavour", "name"), FILES)
@pytest.mark.parametrize("content", BROKEN)
def test_broken_files_are_named(flavour: str, name: str, content: bytes, tmp_path: Path) -> None:
    folder = copied(flavour, tmp_path)
    (folder / name).write_bytes(content)
    if (name, content) in [("merges.txt", b""), ("tokenizer_config.json", b'{"a": {"b": []}}')]:
        assert KINDS[flavour](folder).ids(["red"], 77).any()  # no merges, no settings: possible
        return
    with pytest.raises(CheckpointError, match=name) as raised:
        KINDS[flavour](folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("flavour", "name"), [pair for pair in FILES if pair[1] != "tokenizer_config.json"])
def test_missing_files_are_named(flavour: str, name: str, tmp_path: Path) -> None:
    folder = copied(flavour, tmp_path)
    (folder / name).unlink()
    missing = {"clip_g": "vocab.json", "t5_json": "spiece.model"}.get(flavour, name)
    with pytest.raises(CheckpointError, match=f"{missing}: No such file"):
        KINDS[flavour](folder)


def test_a_truncated_sentencepiece_model_is_refused_at_every_length(tmp_path: Path) -> None:
    folder = copied("t5", tmp_path)
    data = (folder / "spiece.model").read_bytes()
    for size in range(0, len(data), 37):
        (folder / "spiece.model").write_bytes(data[:size])
        try:
            T5Tokenizer(folder)  # cut between two fields it may still be a model
        except CheckpointError as error:
            assert "spiece.model" in str(error)


def test_tokenizers_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer.json: a Unigram tokenizer; allowed: a BPE tokenizer"):
        CLIPTokenizer(TOKENIZERS / "t5_json")
    with pytest.raises(CheckpointError, match="tokenizer.json: a BPE tokenizer; allowed: a Unigram tokenizer"):
        T5Tokenizer(TOKENIZERS / "clip_g")


def _without_unknown(value: dict) -> None:
    value["model"]["unk_id"] = None


def _broken_charsmap(value: dict) -> None:
    value["normalizer"]["precompiled_charsmap"] = base64.b64encode(b"\x08\0\0\0" + b"\xff" * 8).decode()


@pytest.mark.parametrize("break_it", [_without_unknown, _broken_charsmap])
def test_a_vocabulary_that_fails_on_a_prompt_is_a_checkpoint_error(
    break_it: Callable[[dict], None], tmp_path: Path
) -> None:
    """The second one panics in the library's Rust code."""
    folder = copied("t5_json", tmp_path)
    value = json.loads((folder / "tokenizer.json").read_text())
    break_it(value)
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="t5_json: broken"):
        T5Tokenizer(folder).ids(["\u2603"], 77)


def test_a_pad_token_that_no_vocabulary_has_gets_an_id_of_its_own(tmp_path: Path) -> None:
    """As in transformers; the encoder then refuses it, having no embedding for it."""
    plain = CLIPTokenizer(TOKENIZERS / "clip_l")
    odd = CLIPTokenizer(legacy_clip_folder(tmp_path / "clip", "[PAD]"))
    assert odd.highest_id == plain.highest_id + 1
    assert odd.ids([""], 77)[0, -1] == odd.highest_id

"""What the golden maker and the tests of the text part share: shapes, inputs, odd texts, tokenizer folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.arrays import array, weight

GOLDEN = Path(__file__).parent.parent / "golden" / "text.npz"
TOKENIZERS = Path(__file__).parent.parent / "golden" / "text"  # folders of tokenizers, by flavour

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # of all token goldens

# Both activations; the end-of-text id as configs had it before transformers corrected it, and as it should be.
CLIPS: dict[str, dict[str, Any]] = {
    "quick_gelu": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, projection_dim=20,
        vocab_size=90, hidden_act="quick_gelu", eos_token_id=2,
    ),
    "gelu": dict(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, projection_dim=24,
        vocab_size=90, hidden_act="gelu", eos_token_id=41, layer_norm_eps=1e-3,
    ),
}  # fmt: skip

# Heads whose widths do not add up to d_model; SD3's buckets, and narrow ones that 256 tokens leave far behind.
T5S: dict[str, dict[str, Any]] = {
    "sd3": dict(
        vocab_size=90, d_model=24, d_kv=8, d_ff=40, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu"
    ),
    "narrow": dict(
        vocab_size=90, d_model=16, d_kv=12, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=20, layer_norm_epsilon=1e-2,
    ),
}  # fmt: skip
T5_SIZES = {"sd3": (2, 77), "narrow": (1, 256)}  # rows, tokens

# The whole way, from prompts to context: three small encoders behind real tokenizers.
JOINT_DIM, T5_LENGTH = 32, 16
PIPELINE: dict[str, dict[str, Any]] = {
    "clip_l": dict(
        hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, projection_dim=10,
        hidden_act="quick_gelu", eos_token_id=2,
    ),
    "clip_g": dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, projection_dim=14,
        hidden_act="gelu",
    ),
    "t5": dict(
        d_model=JOINT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    ),
}  # fmt: skip
PROMPTS = ["a red circle", "Two <|endoftext|> one!", "a blue square on a green background, " * 20, "a red circle"]
PROMPTS_2 = ["", "in oil", "a red circle", "a red circle!"]
PROMPTS_3 = ["snow", "snow", "a blue square </s> on a green background, " * 9, ""]

ODD_TEXTS = [
    "",
    " ",
    "\t\n  \r",
    "a",
    "A RED CIRCLE",
    "a  red\n\ncircle ",
    "  a red circle",
    "a,red;circle...!?",
    "don't we'll I'd they're you've it's I'm 'tis o'clock",
    "x'S 'RE",
    "12345 3.14159 1e-5 \u00bd \u2167",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m A\u030a",
    "STRASSE stra\u00dfe \u0130stanbul \ufb01ne",
    "\u0437\u0438\u043c\u0430 \u0417\u0418\u041c\u0410",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e9\u05dc\u05d5\u05dd",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u4e00\u4e2a\u7ea2\u8272\u7684\u5706",
    "\u8d64\u3044\u4e38",
    "\ube68\uac04 \uc6d0",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "a\U0001f534b",
    "z" + "\u0301\u0323" * 40,
    "\u202eright to left\u202c",
    "\u200bzero\u200bwidth\ufeff",
    "nul\x00in\x00side",
    "\x01\x1b[31m\x7f\x80\x9f",
    "a\u00a0b\u3000c\u2003d\u2028e\u0085f",
    "\uff32\uff25\uff24 \uff11\uff12",
    "\ue000\ufffd\uffff\U0010ffff",
    "<|startoftext|> a <|endoftext|> b",
    "<|STARTOFTEXT|><|EndOfText|>",
    "<|endoftext",
    "</s> <pad> <unk> <extra_id_0><extra_id_99>",
    "<extra_id_100> </S>",
    "!",
    "hello! world!! !!!",
    "\u2581 \u2581a b\u2581c",
    "_under_score-and-dash\u2014",
    "$%^&*()[]{}|\\/~`",
    '"quoted" \u2018curly\u2019 \u00abguillemets\u00bb',
    "http://example.org/a?b=c&d=%20",
    "r\u0336e\u0336d\u0336",
    "\U0001d400\U0001d4b6\U0001d552",
    "a" * 200,
    "ab " * 100,
    "!" * 90,
    "\u4e00" * 60,
    "\U0001f600" * 40,
    "the red circle of a blue square " * 12,
]

_FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}


def ids(name: str, rows: int, length: int, ends: int) -> np.ndarray:
    """Token ids [rows, length] below 90; each row has the end token `ends`, as its highest id, at several places."""
    found = np.abs(array(f"{name}.ids", (rows, length), 1e4)).astype(np.int64) % ends
    for row in range(rows):
        found[row, 5 + 7 * row :: 3] = ends
    return found


def clip_ids(name: str) -> np.ndarray:
    """Token ids of the CLIP variant `name`: [3, 77], or fewer tokens than there are positions: [2, 30]."""
    return ids(name, 3, LENGTH, 89) if name == "quick_gelu" else ids(name, 2, 30, 41)


def t5_ids(name: str) -> np.ndarray:
    """Token ids of the T5 variant `name`: [rows, tokens] of `T5_SIZES`."""
    return ids(name, *T5_SIZES[name], 89)


def t5_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `weight`, in the proportions of T5's own initialisation: unit embeddings, and queries that need no scaling.

    With large scores the softmax magnifies rounding, torch's as well as ours, to the tolerance.
    """
    scale = shape[1] ** 0.5 if name == "shared.weight" else 0.3 if ".SelfAttention.q." in name else 1.0
    return weight(name, shape) * np.float32(scale)


def legacy_clip_folder(folder: Path, pad: object) -> Path:
    """Writes a CLIP tokenizer as old as special_tokens_map.json, with the vocabulary of flavour "clip_l"."""
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((TOKENIZERS / "clip_l" / name).read_bytes())
    start, unknown = ({"content": token, "normalized": True, **_FLAGS} for token in (START, END))
    special = {"bos_token": start, "eos_token": END, "unk_token": unknown, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LENGTH, "pad_token": END}))
    return folder

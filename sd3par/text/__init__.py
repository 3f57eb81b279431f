"""Prompts to text states: tokenizers, CLIP, T5, and how SD3 joins them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sd3par.text.encode import TextEncoders, TextStates
from sd3par.text.tokenize import CLIPTokenizer, T5Tokenizer

if TYPE_CHECKING:
    from sd3par.text.clip import CLIPTextEncoder
    from sd3par.text.t5 import T5Encoder

__all__ = ["CLIPTextEncoder", "CLIPTokenizer", "T5Encoder", "T5Tokenizer", "TextEncoders", "TextStates"]
_MODELS = {"CLIPTextEncoder": "clip", "T5Encoder": "t5"}


def __getattr__(name: str) -> Any:
    """Imports a model when it is first used: an exported one does without."""
    if name in _MODELS:
        return getattr(importlib.import_module(f"sd3par.text.{_MODELS[name]}"), name)
    raise AttributeError(f"module 'sd3par.text' has no attribute {name!r}")

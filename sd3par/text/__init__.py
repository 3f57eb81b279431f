"""Prompts to text states: tokenizers, CLIP, T5, and how SD3 joins them."""

from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.encode import TextEncoders, TextStates
from sd3par.text.t5 import T5Encoder
from sd3par.text.tokenize import CLIPTokenizer, T5Tokenizer

__all__ = ["CLIPTextEncoder", "CLIPTokenizer", "T5Encoder", "T5Tokenizer", "TextEncoders", "TextStates"]

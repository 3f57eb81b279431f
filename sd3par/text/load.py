"""From an opened model to its text encoders."""

from __future__ import annotations

from pathlib import Path

from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.encode import TextEncoders
from sd3par.text.place import clip_places
from sd3par.text.t5 import T5Encoder
from sd3par.text.tokenize import CLIPTokenizer, T5Tokenizer
from sd3par.weights import Component, ModelFiles


def load_text(files: ModelFiles, dtype: str, mesh: Mesh = Mesh.single()) -> TextEncoders | None:
    """Returns the encoders and tokenizers of a model, None where it has none; T5 may be left out of it.

    Each process reads the weights that it runs; tokenizers are on all.

    Raises:
        ConfigError, CheckpointError: a part is missing or does not fit.
    """
    if files.text_encoder is None:
        return None
    t5 = files.text_encoder_3
    place_l, place_g = clip_places(mesh)
    return TextEncoders(
        clip_l=CLIPTextEncoder.load(files.text_encoder, dtype, place_l),
        clip_g=CLIPTextEncoder.load(_part(files, files.text_encoder_2, "text_encoder_2"), dtype, place_g),
        t5=None if t5 is None else T5Encoder.load(t5, dtype, mesh),
        tokenizer_l=CLIPTokenizer(_folder(files, files.tokenizer, "tokenizer")),
        tokenizer_g=CLIPTokenizer(_folder(files, files.tokenizer_2, "tokenizer_2")),
        tokenizer_t5=None if t5 is None else T5Tokenizer(_folder(files, files.tokenizer_3, "tokenizer_3")),
        mesh=mesh,
    )  # fmt: skip


def _part(files: ModelFiles, part: Component | None, name: str) -> Component:
    if part is None:
        raise CheckpointError(files.name, f"no {name}", "both CLIP text encoders, or none")
    return part


def _folder(files: ModelFiles, folder: Path | None, name: str) -> Path:
    if folder is None:
        raise CheckpointError(files.name, f"no {name}", "a tokenizer for each text encoder")
    return folder

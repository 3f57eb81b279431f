"""Exported text encoders, in the places that the model's own have."""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import Tensor

from sd3par.config import parse_config
from sd3par.mesh import Mesh
from sd3par.static.program import Program
from sd3par.text.config import CLIP_IGNORED, T5_IGNORED, CLIPTextConfig, T5Config, buckets_of, relative_buckets
from sd3par.text.encode import TextEncoders
from sd3par.text.place import Place, clip_places, t5_place
from sd3par.text.tokenize import CLIPTokenizer, T5Tokenizer
from sd3par.weights import Component, ModelFiles

Load = Callable[[str], "Program | None"]  # the name of a program -> the program, None where another rank runs it


class StaticCLIP:
    """A CLIP text encoder's program, None where another rank runs it."""

    def __init__(self, config: CLIPTextConfig, dtype: str, place: Place, program: Program | None) -> None:
        self.config, self.dtype, self.place, self._program = config, dtype, place, program

    def shapes(self, rows: int, length: int) -> list[list[int]]:
        """Returns the shapes of what it gives for ids [rows, length]."""
        return [[rows, length, self.config.hidden_size], [rows, self.config.projection_dim]]

    def __call__(self, ids: Tensor) -> tuple[Tensor, ...]:
        """ids: [R, L] int64 -> hidden [R, L, width], pooled [R, projection]."""
        assert self._program is not None
        return tuple(self._program(ids, paddle.arange(ids.shape[0])))


class StaticT5:
    """T5's program, or this rank's part of it; None where another rank runs it."""

    def __init__(self, config: T5Config, dtype: str, place: Place, program: Program | None) -> None:
        self.config, self.dtype, self.place, self._program = config, dtype, place, program
        self._reach = config.relative_attention_max_distance
        buckets = relative_buckets(config.relative_attention_num_buckets, self._reach)
        self._buckets = paddle.to_tensor(buckets, dtype="int64")

    def shapes(self, rows: int, length: int) -> list[list[int]]:
        """Returns the shape of what it gives for ids [rows, length], as the only one of a list."""
        return [[rows, length, self.config.d_model]]

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [R, L] int64 -> [R, L, d_model]."""
        assert self._program is not None
        return self._program(ids, buckets_of(self._buckets, self._reach, ids.shape[1]))[0]


def load_static_text(files: ModelFiles, load: Load, dtype: str, mesh: Mesh) -> TextEncoders | None:
    """Returns the encoders and tokenizers of an export, None where it has none; T5 may be left out of `files`."""
    if files.text_encoder is None or files.text_encoder_2 is None:
        return None
    assert files.tokenizer is not None and files.tokenizer_2 is not None
    place_l, place_g = clip_places(mesh)
    t5 = files.text_encoder_3
    return TextEncoders(
        clip_l=_clip(files.text_encoder, dtype, place_l, load("text_encoder")),
        clip_g=_clip(files.text_encoder_2, dtype, place_g, load("text_encoder_2")),
        t5=None if t5 is None else _t5(t5, dtype, mesh, load("text_encoder_3")),
        tokenizer_l=CLIPTokenizer(files.tokenizer),
        tokenizer_g=CLIPTokenizer(files.tokenizer_2),
        tokenizer_t5=None if t5 is None or files.tokenizer_3 is None else T5Tokenizer(files.tokenizer_3),
        mesh=mesh,
    )


def _clip(component: Component, dtype: str, place: Place, program: Program | None) -> StaticCLIP:
    return StaticCLIP(
        parse_config(CLIPTextConfig, component.config, component.where, CLIP_IGNORED), dtype, place, program
    )


def _t5(component: Component, dtype: str, mesh: Mesh, program: Program | None) -> StaticT5:
    config = parse_config(T5Config, component.config, component.where, T5_IGNORED)
    return StaticT5(config, dtype, t5_place(mesh, config.num_heads), program)

"""Reads a sentencepiece model file: what makes T5's tokenizer where a folder has no tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sd3par.errors import CheckpointError


def parse_model(where: Path, data: bytes) -> Any:
    """Returns the ModelProto that a `spiece.model` holds: pieces in the order of their ids, normalizer_spec, ...

    Raises:
        CheckpointError: the sentencepiece package is not installed.
        ValueError: not such a file, cut off, or not a unigram model.
    """
    proto, broken = _library(where)
    model = proto.ModelProto()
    try:
        model.ParseFromString(data)
    except broken as error:
        raise ValueError(str(error)) from None
    if model.trainer_spec.model_type != proto.TrainerSpec.UNIGRAM:
        raise ValueError("not a unigram model")
    if not model.pieces:
        raise ValueError("no pieces")
    return model


def _library(where: Path) -> tuple[Any, type[Exception]]:
    """Imports sentencepiece's message type and the error it raises.

    Not a dependency of every install: it wants a protobuf so new that other packages may not bear it, and the published
    SD3 folders have a tokenizer.json.
    """
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:  # protobuf raises its own VersionError where it is too old
        what = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else "needs a package"
        allowed = "a tokenizer.json beside it, or: pip install 'sentencepiece>=0.2.3' 'protobuf>=7.36.1'"
        raise CheckpointError(where, what, allowed) from None
    return sentencepiece_model_pb2, DecodeError

"""Reads a sentencepiece model file: what makes T5's tokenizer."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

UNKNOWN = proto.ModelProto.SentencePiece.UNKNOWN


def parse_model(data: bytes) -> Any:
    """Returns the ModelProto that a `spiece.model` holds: pieces in the order of their ids, normalizer_spec, ...

    Raises:
        ValueError: not such a file, cut off, or not a unigram model.
    """
    model = proto.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    if model.trainer_spec.model_type != proto.TrainerSpec.UNIGRAM:
        raise ValueError("not a unigram model")
    if not model.pieces:
        raise ValueError("no pieces")
    return model

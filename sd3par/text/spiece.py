"""Reads a sentencepiece model file: the few fields of its protobuf message that make T5's tokenizer."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# sentencepiece_model.proto: SentencePiece.Type, TrainerSpec.ModelType
NORMAL, UNKNOWN = 1, 2
UNIGRAM = 1


class Piece(NamedTuple):
    """One token: its text, its log probability and its kind (`NORMAL`, `UNKNOWN`, ...)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """The vocabulary in the order of its ids, and the compiled table by which text is normalised (may be empty)."""

    pieces: tuple[Piece, ...]
    charsmap: bytes


def parse_model(data: bytes) -> SentencePieceModel:
    """Returns what a `spiece.model` holds.

    Raises:
        ValueError: not such a file, cut off, or not a unigram model.
    """
    pieces: list[Piece] = []
    charsmap = b""
    for number, value in _fields(memoryview(data)):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            _check_unigram(_message(value))
        elif number == 3:
            charsmap = bytes(next((_message(v) for n, v in _fields(_message(value)) if n == 2), b""))
    if not pieces:
        raise ValueError("no pieces")
    return SentencePieceModel(tuple(pieces), charsmap)


def _piece(message: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1:
            text = bytes(_message(value)).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _check_unigram(trainer_spec: memoryview) -> None:
    for number, value in _fields(trainer_spec):
        if number == 3 and value != UNIGRAM:
            raise ValueError("not a unigram model")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (number, value) of each field of a protobuf message: a varint as int, everything else as its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value, at = _varint(data, at) if wire in (0, 2) else (0, at)
        if wire == 0:
            yield number, value
            continue
        size = {1: 8, 2: value, 5: 4}.get(wire)
        if size is None or at + size > len(data):
            raise ValueError("cut off, or no sentencepiece model")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the number that starts at `at`, seven bits a byte, lowest first, and where the next field starts."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError("cut off, or no sentencepiece model")

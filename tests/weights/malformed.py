"""Files that are no safetensors, each wrong in one way."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

HEADER_TOO_LARGE = 100_000_001


def file(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file from a header (JSON, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: Any, start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    """One entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def archive() -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inside:
        inside.writestr("data.pkl", "x")
    return buffer.getvalue()


_TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(tensor([2], 0, 8)).encode(),) * 2)

# name -> (bytes of the file, words of the error)
CASES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "header too small"),
    "7 bytes": (b"1234567", "header too small"),
    "8 zero bytes": (b"\0" * 8, "header"),
    "header length 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "header of 9223372036854775808 bytes"),
    "header length 2^64 - 1": (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes"),
    "header over 100 MB": (struct.pack("<Q", HEADER_TOO_LARGE) + b"{" + b" " * 64, "header of 100000001 bytes"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "invalid header length"),
    "header no UTF-8": (file(b"\xff\xfe{}"), "UTF-8"),
    "header an array": (file([1, 2]), "header"),
    "header cut off": (file(b'{"a":'), "header"),
    "header nested deep": (file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header"),
    "NaN in the header": (file(b'{"a":NaN}'), "header"),
    "a tensor twice": (file(_TWICE, bytes(8)), "a stands twice"),
    "metadata no strings": (file({"__metadata__": {"format": 3}}), "header"),
    "overlap": (file({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "offset"),
    "hole": (file({"a": tensor([2], 0, 8), "b": tensor([2], 12, 20)}, bytes(20)), "offset"),
    "offsets reversed": (file({"a": tensor([2], 8, 0)}, bytes(8)), "offset"),
    "offset 2^64": (file({"a": tensor([2], 0, 1 << 64)}, bytes(8)), "header"),
    "no offsets": (file({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets"),
    "negative shape": (file({"a": tensor([-2], 0, 8)}, bytes(8)), "-2"),
    "huge shape": (file({"a": tensor([1 << 40, 1 << 40], 0, 8)}, bytes(8)), "overflow"),
    "huge empty shape": (file({"a": tensor([0, 1 << 62], 0, 0)}), "a: shape"),
    "fractional shape": (file({"a": tensor([2.0], 0, 8)}, bytes(8)), "2.0"),
    "shape null": (file({"a": tensor(None, 0, 8)}, bytes(8)), "null"),
    "100 axes": (file({"a": tensor([1] * 100, 0, 4)}, bytes(4)), "a: shape"),
    "shape and offsets differ": (file({"a": tensor([3], 0, 8)}, bytes(8)), "shape"),
    "unknown dtype": (file({"a": tensor([2], 0, 8, "FLOAT")}, bytes(8)), "FLOAT"),
    "trailing byte": (file({"a": tensor([2], 0, 8)}, bytes(9)), "not fully covered"),
    "last byte missing": (file({"a": tensor([2], 0, 8)}, bytes(7)), "not fully covered"),
    "no header entry for the data": (file({}, bytes(8)), "not fully covered"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer"),
    "HTML page": (b"\n <!DOCTYPE html><html><title>Access denied</title></html>", "HTML"),
    "zip": (archive(), "zip archive"),
    "pickle": (b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "pickle"),
}

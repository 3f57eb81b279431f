"""The request inside a PNG file: written for people and other programs, read back as hostile input."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from PIL.PngImagePlugin import PngInfo

from sd3par.errors import ConfigError

KEYWORD = "sd3par"
MAX_TEXT = 1 << 20  # bytes of the JSON chunk
MAX_CHUNKS = 1 << 16  # a picture of 200 MB in chunks of 8 KB has half as many
MAX_PIXELS = 1 << 28
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """What made a picture; every field is JSON. None: not given, or not known of a picture of an earlier version.

    steps: as asked for; image-to-image runs the part of them that `strength` says. image: name of the picture that it
    began with, without its folder. text_encoder_3: whether T5 was used.
    """

    prompt: str
    prompt_2: str | None = None
    prompt_3: str | None = None
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    image: str | None = None
    strength: float | None = None
    width: int
    height: int
    max_sequence_length: int | None = None
    model: str
    text_encoder_3: bool | None = None
    dtype: str
    dp: int
    mp: int
    sp: int
    engine: str
    version: str

    def to_json(self) -> str:
        """Returns one line of ASCII JSON, so that it fits any PNG text chunk."""
        return json.dumps(dataclasses.asdict(self))

    def to_parameters(self) -> str:
        """Returns the text that A1111's web UI writes under `parameters` and other tools look for.

        Each prompt is one line, so that a prompt cannot add fields for tools which read line by line.
        """
        fields = {
            "Steps": self.steps,
            "Sampler": "Euler flow-match",
            "CFG scale": self.guidance_scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Denoising strength": self.strength,
            "Model": _quoted(self.model),
            "Version": _quoted(f"sd3par {self.version}"),
        }
        lines = [_one_line(self.prompt), f"Negative prompt: {_one_line(self.negative_prompt)}"]
        lines.append(", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None))
        return "\n".join(lines)

    def to_png(self) -> PngInfo:
        """Returns both texts as PNG chunks."""
        chunks = PngInfo()
        chunks.add_text("parameters", self.to_parameters())
        chunks.add_text(KEYWORD, self.to_json())
        return chunks


def _one_line(text: str) -> str:
    """Returns `text` without line breaks, zero bytes or halves of surrogate pairs, which PNG text cannot hold."""
    whole = text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    return " ".join(whole.splitlines())


def _quoted(text: str) -> str:
    """Returns `text` as A1111 writes a value: in quotes where it would break the list of fields."""
    line = _one_line(text)
    return json.dumps(line, ensure_ascii=False) if set(line) & set(',:"') else line


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the object in the `sd3par` chunk of a PNG file; its fields are as the file has them, unchecked.

    The file may be anything: sizes are checked before anything is read, and pixels are never decoded.

    Raises:
        ConfigError: no such file, not a PNG file, broken, too large, or without a chunk that holds a JSON object.
    """
    if not Path(path).is_file():  # not for pipes and devices: reading them could wait for ever
        raise ConfigError("image", str(path), "an existing PNG file")
    try:
        with open(path, "rb") as file:
            text = _find_text(file, str(path))
    except OSError as error:
        raise ConfigError("image", str(path), f"a file that can be read ({error.strerror})") from None
    try:
        values = json.loads(text.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        _refuse(path, "its sd3par chunk is not JSON")
    return values if isinstance(values, dict) else _refuse(path, "its sd3par chunk is not a JSON object")


def _refuse(path: object, why: str) -> NoReturn:
    raise ConfigError("image", str(path), f"a PNG file that sd3par wrote; {why}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _find_text(file: BinaryIO, path: str) -> bytes:
    """Returns the bytes of the first `sd3par` text chunk."""
    if file.read(len(SIGNATURE)) != SIGNATURE:
        _refuse(path, "it is not PNG")
    for number in range(MAX_CHUNKS):
        length, kind = _read_header(file, path)
        if (kind == b"IHDR") != (number == 0):
            _refuse(path, "its chunks are out of order")
        start = file.tell()
        if kind == b"IHDR":
            _check_size(_read_chunk(file, kind, length, path), path)
        elif kind == b"tEXt" and file.read(len(KEYWORD) + 1) == KEYWORD.encode() + b"\0":
            file.seek(start)
            return _read_chunk(file, kind, length, path)[len(KEYWORD) + 1 :]
        elif kind == b"IEND":
            _refuse(path, "it has no sd3par chunk")
        file.seek(start + length + 4)
    _refuse(path, "it has too many chunks")


def _read_header(file: BinaryIO, path: str) -> tuple[int, bytes]:
    """Returns (length, type) of the next chunk."""
    header = file.read(8)
    if len(header) < 8:
        _refuse(path, "it ends early")
    return struct.unpack(">I4s", header)


def _read_chunk(file: BinaryIO, kind: bytes, length: int, path: str) -> bytes:
    """Returns the checked bytes of one chunk."""
    if length > MAX_TEXT:
        _refuse(path, f"a chunk of {length} bytes is too large")
    data, check = file.read(length), file.read(4)
    if check != struct.pack(">I", zlib.crc32(kind + data)):
        _refuse(path, "a chunk is broken")
    return data


def _check_size(header: bytes, path: str) -> None:
    """Checks width and height in the bytes of chunk IHDR."""
    if len(header) != 13:
        _refuse(path, "its header is broken")
    width, height = struct.unpack(">II", header[:8])
    if not 0 < width * height <= MAX_PIXELS:
        _refuse(path, f"it claims to be of {width} x {height} pixels")

"""One safetensors file: its header checked on opening, its tensors read by slice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from paddle import Tensor
from safetensors import SafetensorError, safe_open

from sd3par.errors import CheckpointError, shorten
from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index, Part
from sd3par.weights.fill import Checkpoint, Pending
from sd3par.weights.host_tensor import cpu_copy
from sd3par.weights.json_file import parse_object

HEADER_LIMIT = 16 << 20  # bytes; all of SD3.5-large with its text encoders has 0.3 MB, a thumbnail in the metadata 1 MB
_RANK_LIMIT, _AXIS_LIMIT = 8, 1 << 31  # beyond these numpy cannot describe a tensor, even an empty one
_COMPLETE = "a complete safetensors file"
_CHUNK = 1 << 21  # elements that are checked at a time: few enough for a cache; between two comes Python's lock

_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # numpy has no bfloat16
# "format" in the metadata: ppdiffusers writes "pd", PaddleNLP (the text encoders) "np", torch's libraries "pt".
PADDLE_FORMATS = frozenset({"pd", "np"})

# First bytes of what stands under a .safetensors name by mistake: what it is, what to do.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer", "the file itself: run `git lfs pull`"),
    (b"<", "an HTML or XML page", "the file itself: download it again, logged in where the model needs that"),
    (b"PK\x03\x04", "a zip archive (as torch.save writes)", "a safetensors file; pickles are never read"),
    (b"\x80", "a pickle", "a safetensors file; pickles are never read"),
)


@dataclass(frozen=True)
class _Entry:
    """Where one tensor stands; `start` and `stop` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile(Checkpoint):
    """A checkpoint (`weights.Checkpoint`) in one file.

    A read opens the file, goes through it in bounded blocks and leaves nothing but the tensor: pages of a memory map
    would count as this process's memory for as long as the map stands. `safe_open(framework="paddle")` is not used:
    its tensors crash Paddle 3.3.1 when they are freed.

    Args:
        path: the file.

    Raises:
        CheckpointError: no such file, or not a valid safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        header, self._start, self._identity = _read_header(path)
        metadata = header.pop("__metadata__", None) or {}
        self.format: str | None = metadata.get("format")
        self._entries = {name: self._entry(name, entry) for name, entry in header.items()}
        self._shapes = {name: entry.shape for name, entry in self._entries.items()}
        self._path = path.absolute()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor."""
        return self._shapes

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what reads tensor `name`, or its part `index`, in the file's dtype.

        Raises:
            CheckpointError: no such tensor, or a dtype that no weight has.
        """
        entry = self._find(name)
        if entry.dtype not in _NUMPY:
            raise self._bad_dtype(name)
        part = Part(self._start + entry.start, entry.shape, np.dtype(_NUMPY[entry.dtype]), index)
        if ahead is not None:
            return ahead.begin(part, partial(self._read, name))
        return partial(self._tensor, name, part)

    def check_fp8(self, names: Iterable[str]) -> None:
        """Raises CheckpointError if one of `names` is fp8: said on opening, before minutes of reading."""
        for name in names:
            if self._find(name).dtype.startswith("F8"):
                raise self._bad_dtype(name)

    def _tensor(self, name: str, part: Part) -> Tensor:
        """Returns a part on the CPU. It is copied: out of NumPy's own memory a model was not loaded faster."""
        values = np.empty(part.shape, part.dtype)
        self._read(name, part, values)
        return cpu_copy(values)

    def _read(self, name: str, part: Part, values: np.ndarray) -> None:
        """Reads a part of tensor `name`, and checks it; calls nothing of Paddle's."""
        try:
            with self._path.open("rb", buffering=0) as file:
                if _identity(file) != self._identity:
                    raise EOFError("it has changed")
                part.read(file, values)
        except (OSError, EOFError) as error:
            what = f"cannot be read any more ({getattr(error, 'strerror', error)})"
            raise CheckpointError(f"{self.where}: {name}", what, "the file as it was when it was opened") from None
        if not _finite(values.reshape(-1)):
            raise CheckpointError(f"{self.where}: {name}", "NaN or infinity", "finite values")

    def _bad_dtype(self, name: str) -> CheckpointError:
        dtype = self._find(name).dtype
        what = "fp8 files are not supported" if dtype.startswith("F8") else f"dtype {dtype}"
        return CheckpointError(f"{self.where}: {name}", what, f"weights in {', '.join(sorted(_NUMPY))}")

    def _find(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.where}: {name}", "missing", "a tensor of the file")
        return self._entries[name]

    def _entry(self, name: str, entry: dict[str, Any]) -> _Entry:
        shape = tuple(entry["shape"])
        if len(shape) > _RANK_LIMIT or any(size >= _AXIS_LIMIT for size in shape):
            raise CheckpointError(f"{self.where}: {name}", f"shape {shorten(shape)}", f"at most {_RANK_LIMIT} axes")
        # Paddle's numpy stand-in for bfloat16 is uint16, and ppdiffusers saves it as that.
        bfloat16 = entry["dtype"] == "U16" and self.format in PADDLE_FORMATS
        return _Entry("BF16" if bfloat16 else entry["dtype"], shape, *entry["data_offsets"])


def _read_header(path: Path) -> tuple[dict[str, Any], int, tuple[int, ...]]:
    """Returns the JSON header, found consistent with the file by `safe_open`, where data begins, and `_identity`."""
    if not path.is_file():
        raise CheckpointError(path, "not a file" if path.exists() else "no such file", "a safetensors file")
    try:
        with path.open("rb") as file:
            length = _header_length(path, file.read(64))
            with safe_open(path, framework="np"):
                file.seek(8)
                return parse_object(file.read(length), str(path)), 8 + length, _identity(file)
    except SafetensorError as error:
        what = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(path, shorten(what, 160), f"{_COMPLETE}: download or convert it again") from None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", _COMPLETE) from None


def _identity(file: IO[bytes]) -> tuple[int, ...]:
    """Returns what tells an open file from another, or from itself after it was written to."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _header_length(path: Path, start: bytes) -> int:
    """Returns the header's length, its first 8 bytes; refused here before anything large is parsed."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length <= HEADER_LIMIT:
        return length
    for magic, name, remedy in _IMPOSTORS:
        if start.lstrip().startswith(magic):
            raise CheckpointError(path, f"this is {name}", remedy)
    raise CheckpointError(path, f"a header of {length} bytes", f"a header of at most {HEADER_LIMIT} bytes")


def _finite(values: np.ndarray) -> bool:
    """Whether all of `values` [n] are finite; uint16 stands for bfloat16."""
    chunks = (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))
    if values.dtype == np.uint16:
        return all(_finite_bfloat16(chunk) for chunk in chunks)
    return all(bool(np.isfinite(chunk).all()) for chunk in chunks)


def _finite_bfloat16(bits: np.ndarray) -> bool:
    """Infinity and NaN have the largest bits of their sign: twice as fast as to mask the exponent, 8 ones in both."""
    return bool(bits.max() < 0xFF80 and bits.view(np.int16).max() < 0x7F80)

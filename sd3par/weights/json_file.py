"""JSON as model folders have it, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from sd3par.errors import CheckpointError, shorten

SIZE_LIMIT = 4 << 20  # bytes; the largest that models have, the index of a sharded T5, is 20 KB


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        CheckpointError: no such file, larger than `SIZE_LIMIT`, or not one strict JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(path, _reason(error), "a readable JSON file") from None
    if len(data) > SIZE_LIMIT:
        raise CheckpointError(path, "too large", f"a JSON file of at most {SIZE_LIMIT} bytes")
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object in `data` (UTF-8).

    Raises:
        CheckpointError: not JSON, not an object, a key twice, nested too deep, NaN or Infinity.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(where, "JSON nested too deep", "a flat JSON object") from None
    except ValueError as error:
        raise CheckpointError(where, f"not JSON: {shorten(str(error))}", "a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise CheckpointError(where, f"JSON {type(value).__name__}", "a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {shorten(key)} stands twice")
        values[key] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _reason(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"

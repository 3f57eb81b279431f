"""What can go wrong, as one line each: what, where, what is allowed."""

from __future__ import annotations

import re


class Sd3parError(Exception):
    """Base of every error that a caller can cause or should handle; its text is one line."""


class ConfigError(Sd3parError, ValueError):
    """A value that a caller chose is not possible.

    Args:
        field: name of the option, argument or config key, as the caller wrote it.
        value: what was given.
        allowed: what would have been accepted, in words, with what to type where that is known.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: got {shorten(value)}; allowed: {allowed}")


class CheckpointError(Sd3parError):
    """A file of a checkpoint is missing, broken or does not fit.

    Args:
        where: the file or folder, and the tensor or key in it where there is one.
        what: what is wrong with it.
        allowed: what would have been accepted.
    """

    def __init__(self, where: object, what: str, allowed: str) -> None:
        self.where, self.what, self.allowed = str(where), what, allowed
        super().__init__(f"{shorten(self.where, 400)}: {what}; allowed: {allowed}")


class RankFailure(Sd3parError):
    """Another process of the mesh failed, died or stopped answering."""


class OutOfMemory(Sd3parError, MemoryError):
    """A device has not the memory that a request takes: on a mesh an error on all ranks, which can go on.

    What the request took is free again, and a smaller one works.
    """


class Cancelled(Sd3parError):
    """The caller's callback asked to stop between two steps."""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or what another process says of one, is that memory did not suffice.

    Paddle's allocator raises MemoryError; NVIDIA's libraries and Triton, which ask the driver themselves, have words.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "resourceexhausted" in text


def shorten(value: object, limit: int = 120) -> str:
    """Returns `value` on one line of at most `limit` printable characters."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() or not text.isascii() else text
    text = f"{text[: limit - 3]}..." if len(text) > limit else text
    return text or "''"


def describe(error: BaseException) -> str:
    """Returns an error of any kind as one line, Paddle's many lines included."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")] or [""]
    # Paddle writes a C++ stack first; what happened begins with an error type, on its line or on the next.
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r"\w*(Error|Exception):", line):
            return shorten(f"{line} {following}" if line.endswith(":") else line, 220)
    kind = "" if isinstance(error, RankFailure) else type(error).__name__
    return shorten(": ".join(filter(None, [kind, lines[0]])), 220)

"""One finding of `sd3par doctor`, and how a check that may fail becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sd3par.errors import Sd3parError, shorten


@dataclass(frozen=True)
class Check:
    """One finding. state: "ok", "off" (works without it), or "bad" (does not work). advice: what to do, or nothing."""

    state: Literal["ok", "off", "bad"]
    name: str
    detail: str
    advice: str = ""


def attempt(name: str, work: Callable[[], str], advice: str) -> Check:
    """Returns what became of `work`: a doctor does not fall ill."""
    try:
        return Check("ok", name, work())
    except Sd3parError as error:
        return Check("bad", name, str(error), advice)
    except Exception as error:
        return Check("bad", name, shorten(f"{type(error).__name__}: {error}"), advice)

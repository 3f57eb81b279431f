"""What comes through the door: a request that was checked, with all that it brings, the same on every rank."""

from __future__ import annotations

import zlib
from collections.abc import Hashable
from dataclasses import dataclass

from sd3par.callback import NAME, StepCallback
from sd3par.config import GenerationRequest, require
from sd3par.inputs import Inputs, Start
from sd3par.scheduler import Schedule

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Admitted:
    """A sized request, what its loop begins with, and its steps.

    shape: (B, C, h, w) of its latents.
    """

    request: GenerationRequest
    inputs: Inputs
    start: Start
    shape: tuple[int, int, int, int]
    plan: Schedule
    output_type: str
    callback: StepCallback | None

    @property
    def footprint(self) -> Hashable:
        """All that decides how much memory the request takes."""
        return self.shape, self.output_type, self.plan.steps, *self.inputs.footprint(self.request)

    def fingerprint(self) -> int:
        """Returns a number of 32 bits; a rank that was given anything else has another."""
        calls = self.callback is not None  # after each step all ranks meet where there is one
        given = self.request, self.output_type, calls, self.inputs.described(), self.start.digest()
        return zlib.crc32(repr(given).encode())


def check_result(output_type: object, callback: object) -> None:
    """Raises ConfigError unless these are a kind of result and a function to call after each step, or None."""
    known = isinstance(output_type, str) and output_type in OUTPUT_TYPES
    require(known, "output_type", output_type, ", ".join(OUTPUT_TYPES))
    allowed = "a function of (pipe, step, timestep, kwargs)"
    require(callback is None or callable(callback), NAME, callback, allowed)

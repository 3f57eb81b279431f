"""What `sd3par bench` measures: cases, and the processes that measure many of them one after the other."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sd3par.config import GenerationRequest, ParallelConfig
from sd3par.errors import shorten

CLIP_TOKENS = 77  # of every SD3; T5's follow them
AXES = ("dp", "mp", "sp")
_MEANINGLESS = {"vae": ("text_tokens", "steps", "guidance"), "text": ("height", "width", "steps")}


@dataclass(frozen=True)
class Case:
    """`images` pictures at once, of a request without prompts, rendered again and again with an engine.

    bench: the kind of sweep that it is of; what: one of `parts.PARTS`. height, width: pixels; tokens: T5's; warm_ups:
    calls that do not count, repeats: calls that do, of which some are left out once it has taken `case_s`. keep: the
    file that takes the pictures where they are wanted.
    """

    bench: str
    what: str
    engine: str
    height: int
    width: int
    images: int
    steps: int
    guidance: float
    tokens: int
    warm_ups: int
    repeats: int
    case_s: float | None = None
    keep: str = ""

    @property
    def request(self) -> GenerationRequest:
        """What the pipeline is asked for."""
        return GenerationRequest(
            None, height=self.height, width=self.width, num_inference_steps=self.steps, guidance_scale=self.guidance,
            max_sequence_length=self.tokens,
        )  # fmt: skip

    @property
    def text_tokens(self) -> int:
        """Text tokens of each picture."""
        return CLIP_TOKENS + self.tokens

    def row(self) -> dict[str, Any]:
        """What a row of results says of the case before it was measured."""
        row = {
            "bench": self.bench, "engine": self.engine, "height": self.height, "width": self.width,
            "text_tokens": self.text_tokens, "steps": self.steps, "images": self.images, "guidance": self.guidance,
        }  # fmt: skip
        return {name: value for name, value in row.items() if name not in _MEANINGLESS.get(self.what, ())}

    @property
    def shape(self) -> tuple[Any, ...]:
        """All that recordings and kernels are made for: a case of the same shape as another finds them."""
        size = (self.height, self.width, self.images, self.tokens, self.steps)
        return self.what, self.engine, *size, self.request.guidance

    def needs_no_less(self, other: Case) -> bool:
        """Whether it takes at least the memory of `other`: the same with as many pictures or more, or larger ones."""
        same = (self.what, self.engine, self.request.guidance) == (other.what, other.engine, other.request.guidance)
        larger = self.images >= other.images and self.height >= other.height and self.width >= other.width
        return same and larger and self.tokens >= other.tokens


@dataclass(frozen=True)
class Group:
    """What processes are started for, and measure cases with: a model, loaded once, on a mesh.

    memory_gib: how much of a GPU's memory is left to them, None for all. text: whether text encoders are loaded. name:
    what rows call the model, "" for `model`.
    """

    model: str
    dtype: str
    parallel: ParallelConfig
    memory_gib: float | None = None
    text: bool = False
    name: str = ""

    def row(self) -> dict[str, Any]:
        """What the rows of all its cases say."""
        sizes = {axis: getattr(self.parallel, axis) for axis in AXES}
        memory = {} if self.memory_gib is None else {"memory_gib": self.memory_gib}
        name = self.name or self.model.removeprefix("random:")
        return {"model": name, **sizes, "world": self.parallel.world, **memory}

    def job(self, cases: Sequence[Case], **shared: Any) -> dict[str, Any]:
        """What its processes are told, as JSON can hold it."""
        return {**asdict(self), **shared, "cases": [asdict(case) for case in cases]}


def cases_of(job: Mapping[str, Any]) -> tuple[Case, ...]:
    """Returns the cases of `Group.job`."""
    return tuple(Case(**case) for case in job["cases"])


def mesh_of(text: str) -> ParallelConfig | str:
    """Returns the mesh that "dp2,sp2" means, "auto" as it is."""
    if text in ("auto", "one"):
        return text if text == "auto" else ParallelConfig()
    sizes = re.findall(r"(dp|mp|sp)([1-9][0-9]{0,2})(?:,|$)", text)
    if not sizes or ",".join(axis + size for axis, size in sizes) != text or len(dict(sizes)) != len(sizes):
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: auto, one, or sizes as dp2 or dp2,sp4")
    found = {axis: int(size) for axis, size in sizes}
    return ParallelConfig(found.get("dp", 1), found.get("mp", 1), found.get("sp", 1))


def name_of(mesh: Mapping[str, Any] | ParallelConfig) -> str:
    """Returns "dp2,sp2", or "one", of a mesh or of a row of results."""
    sizes = {axis: mesh[axis] if isinstance(mesh, Mapping) else getattr(mesh, axis) for axis in AXES}
    return ",".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "one"


def mesh_flags(mesh: ParallelConfig) -> list[str]:
    """Returns the flags of `sd3par generate` for a mesh."""
    return [f"--{axis}_size={getattr(mesh, axis)}" for axis in AXES if getattr(mesh, axis) > 1]


def size_of(text: str) -> tuple[int, int]:
    """Returns width and height in pixels of "1024" or "1280x768"."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    if match is None:
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: pixels as 1024, or width x height as 1280x768")
    return int(match[1]), int(match[2] or match[1])

"""What a command prints when it is done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sd3par.config import GenerationRequest


@dataclass(frozen=True)
class Run:
    """What rendering a request took: denoise steps that ran, and seconds of "encode", "denoise" and "decode"."""

    steps: int
    seconds: Mapping[str, float]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as aligned lines."""
    widths: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):  # the last cell of a row may be as long as it likes
            widths[column] = max(widths.get(column, 0), len(cell))
    lines = [[cell.ljust(widths[column]) for column, cell in enumerate(row[:-1])] + [row[-1]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def seconds(value: float) -> str:
    """Returns a time, right-aligned, in seconds."""
    return f"{value:8.3f} s"


def rendered(
    outputs: Sequence[Path], request: GenerationRequest, load_s: float, runs: Sequence[Run], mesh: str, device: str
) -> str:
    """Returns where the pictures are, and how long each part took.

    Args:
        request: the first one of all.
        runs: one of each request.
        mesh, device: in words.
    """
    steps = sum(run.steps for run in runs)
    encode, denoise, decode = (sum(run.seconds[part] for run in runs) for part in ("encode", "denoise", "decode"))
    where = str(outputs[0]) if len(outputs) == 1 else f"{outputs[0]} ... {outputs[-1].name} ({len(outputs)})"
    rows = [
        ("picture" if len(outputs) == 1 else "pictures", where),
        ("what", f"{request.width} x {request.height}, seed {request.seed}, {steps_of(request, runs)}"),
        ("where", f"{device}, {mesh}"),
        ("load", seconds(load_s)),
        ("encode", seconds(encode)),
        ("denoise", f"{seconds(denoise)}  {1000 * denoise / steps:.1f} ms per step"),
        ("decode", seconds(decode)),
        ("total", seconds(load_s + encode + denoise + decode)),
    ]
    return table(rows)


def steps_of(request: GenerationRequest, runs: Sequence[Run]) -> str:
    """Returns how many steps ran, and of how many: image-to-image leaves out the first ones."""
    ran, asked = runs[0].steps, request.num_inference_steps
    return f"{ran} steps" if ran == asked else f"{ran} of {asked} steps"


def benchmarked(request: GenerationRequest, load_s: float, repeats: Sequence[Run], mesh: str, device: str) -> str:
    """Returns the median and the shortest time of loop (prompt embeddings to latents) and image (to pixels)."""
    loop = [run.seconds["denoise"] for run in repeats]
    image = [run.seconds["denoise"] + run.seconds["decode"] for run in repeats]
    per_step = [1000 * run.seconds["denoise"] / run.steps for run in repeats]
    rows = [
        ("what", f"{request.width} x {request.height}, {steps_of(request, repeats)}, {len(repeats)} repeats"),
        ("where", f"{device}, {mesh}"),
        ("load", seconds(load_s)),
        ("", "  median", "       min"),
        ("loop", seconds(statistics.median(loop)), seconds(min(loop))),
        ("image", seconds(statistics.median(image)), seconds(min(image))),
        ("step", f"{statistics.median(per_step):8.2f} ms", f"{min(per_step):8.2f} ms"),
    ]
    return table(rows)

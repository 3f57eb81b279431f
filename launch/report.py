"""What a command prints when it is done."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from sd3par.config import GenerationRequest


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
    outputs: Sequence[Path],
    request: GenerationRequest,
    load_s: float,
    parts: Mapping[str, float],
    mesh: str,
    device: str,
) -> str:
    """Returns where the pictures are, and how long each part took.

    Args:
        request: the first one of all.
        parts: seconds of "encode", "denoise" and "decode", summed over the requests.
        mesh, device: in words.
    """
    per_request = len(outputs) // request.num_images_per_prompt
    steps = request.num_inference_steps * per_request
    where = str(outputs[0]) if len(outputs) == 1 else f"{outputs[0]} ... {outputs[-1].name} ({len(outputs)})"
    rows = [
        ("picture" if len(outputs) == 1 else "pictures", where),
        ("what", f"{request.width} x {request.height}, seed {request.seed}, {request.num_inference_steps} steps"),
        ("where", f"{device}, {mesh}"),
        ("load", seconds(load_s)),
        ("encode", seconds(parts["encode"])),
        ("denoise", f"{seconds(parts['denoise'])}  {1000 * parts['denoise'] / steps:.1f} ms per step"),
        ("decode", seconds(parts["decode"])),
        ("total", seconds(load_s + sum(parts.values()))),
    ]
    return table(rows)


def benchmarked(
    request: GenerationRequest, load_s: float, repeats: Sequence[Mapping[str, float]], mesh: str, device: str
) -> str:
    """Returns the median and the shortest time of the loop (prompt embeddings to latents) and of the image (to pixels).

    Args:
        repeats: seconds of "denoise" and "decode" of each repeat.
    """
    loop = [parts["denoise"] for parts in repeats]
    image = [parts["denoise"] + parts["decode"] for parts in repeats]
    per_step = [1000 * each / request.num_inference_steps for each in loop]
    rows = [
        ("what", f"{request.width} x {request.height}, {request.num_inference_steps} steps, {len(repeats)} repeats"),
        ("where", f"{device}, {mesh}"),
        ("load", seconds(load_s)),
        ("", "  median", "       min"),
        ("loop", seconds(statistics.median(loop)), seconds(min(loop))),
        ("image", seconds(statistics.median(image)), seconds(min(image))),
        ("step", f"{statistics.median(per_step):8.2f} ms", f"{min(per_step):8.2f} ms"),
    ]
    return table(rows)

"""What figures show, of rows of results: numbers alone, nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sd3par.launch.bench.case import name_of
from sd3par.launch.bench.results import newest

Row = dict[str, Any]
Bar = dict[str, tuple[float, float]]  # by kernel: ms a step, and the least that the card could take for it
SMALL_SHARE = 0.01  # of a step: what takes less is one of the others


def by_cards(rows: Sequence[Row]) -> dict[str, dict[int, tuple[Row, float]]]:
    """Returns by setting, and by number of cards, the fastest mesh and the loop of one card in the same run.

    Settings that only one number of cards was measured with are left out.
    """
    timed = [row for row in rows if row["bench"] in ("parallel", "loop") and row.get("loop_s") and "dp" in row
             and row.get("engine") not in ("eager", "plain")]  # fmt: skip
    best = {words: _best_of_each_world(found) for words, found in _settings(timed).items()}
    return {words: points for words, points in best.items() if len(points) > 1}


def _settings(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns rows by what they are of, in words."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        count = f"{row['images']} x " if row["images"] > 1 else ""
        words = f"{row['model']}, {count}{row['width']} x {row['height']}, {row['steps']} steps"
        words += "" if row["text_tokens"] == 333 else f", {row['text_tokens']} text tokens"
        found.setdefault(words + ("" if row["who"] == "sd3par" else f", {row['who']}"), []).append(row)
    return found


def _best_of_each_world(rows: Sequence[Row]) -> dict[int, tuple[Row, float]]:
    """Returns by cards the fastest row of the newest run that has it, and the loop of one card in that same run."""
    points: dict[int, tuple[Row, float]] = {}
    alone = {row["run_id"]: row["loop_s"] for row in rows if row["world"] == 1}
    for (world, _), found in newest(rows, "world", "run_id").items():  # the oldest first: a newer one takes its place
        fastest = min(found, key=lambda row: float(row["loop_s"]))
        if fastest["run_id"] in alone:
            points[world] = fastest, alone[fastest["run_id"]]
    return dict(sorted(points.items()))


def per_second(row: Row, steps: int) -> float:
    """Returns pictures a second at `steps` steps: of a case with fewer by the time of its steps, and of decoding."""
    return float(row["images"] / (steps * row["step_ms"] / 1e3 + row["image_s"] - row["loop_s"]))


def by_batch(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Returns by setting, and by pictures at once, the newest run's rows."""
    kinds = [row for row in rows if row["bench"] in ("batch", "throughput") and "images_per_s" in row]
    names = ("bench", "model", "height", "width", "dp", "mp", "sp", "engine", "memory_gib", "gpu")
    series = {}
    for (bench, model, height, width, *_), found in newest(kinds, *names).items():
        points = {row["images"]: row for row in found}
        memory = f", {found[0]['memory_gib']:g} GiB free" if "memory_gib" in found[0] else ""
        if len(points) > 1:
            series[f"{bench}: {model}, {width} x {height}, {name_of(found[0])}{memory}"] = points
    return series


def breakdowns(rows: Sequence[Row]) -> tuple[dict[str, Bar], list[Row]]:
    """Returns by model and size the kernels of the newest breakdown, and the rows that it is made of."""
    bars: dict[str, Bar] = {}
    used: list[Row] = []
    parts = [row for row in rows if row["bench"] in ("breakdown", "kernels") and "ms" in row and "height" in row]
    for (model, height, width, images), found in newest(parts, "model", "height", "width", "images").items():
        whole = sum(row["ms"] for row in found if row["kernel"] != "step")
        bar: Bar = {}
        for row in found:
            if row["kernel"] == "step":
                continue
            kernel = row["kernel"] if row["ms"] > SMALL_SHARE * whole else "others"
            ms, least = bar.get(kernel, (0.0, 0.0))
            bar[kernel] = ms + row["ms"], least + row.get("count", 0) * row.get("floor_us", 0.0) / 1e3
        bars[f"{model}, {f'{images} x ' if images > 1 else ''}{width} x {height}"] = bar
        used += found
    return bars, used


def total(bar: Bar) -> float:
    """Returns the ms of all kernels."""
    return sum(ms for ms, _ in bar.values())

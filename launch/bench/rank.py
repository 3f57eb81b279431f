"""One process of a mesh that measures cases for `sd3par bench`, one after the other on a model loaded once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd3par.config import ParallelConfig
from sd3par.launch import endings, record
from sd3par.launch.bench.case import Case, cases_of
from sd3par.launch.endings import Place
from sd3par.launch.flags import Group
from sd3par.launch.parser import Parser
from sd3par.launch.worker import attach
from sd3par.plan import check_world

if TYPE_CHECKING:
    from paddle import Tensor

    from sd3par.pipeline import SD3Pipeline

JOB, ROWS = "job.json", "rows.jsonl"  # in the run's folder: what to measure, and what was measured
_GIB = 1 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Measures on this rank what `--run_dir`'s job says; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return endings.run(lambda: _main(words), Place(), "--debug" in words)


def _main(argv: Sequence[str]) -> int:
    parser = Parser(prog="measure.py", description="Measures one mesh for sd3par bench.")
    Group(parser, "where").value("run_dir", "FOLDER", f"with {JOB}, of sd3par bench; gets {ROWS}")
    Group(parser, "when something is wrong").switch("debug", "show the traceback of an error")
    options = parser.parse(argv)
    place = Place.here(options.run_dir)
    attach(place)
    return endings.run(lambda: _measure(place), place, options.debug)


def _measure(place: Place) -> int:
    from sd3par import weights
    from sd3par.pipeline import SD3Pipeline

    endings.prepare(place)
    folder = place.run_dir or Path()
    job, begin = json.loads((folder / JOB).read_text(encoding="utf-8")), time.perf_counter()
    parallel = ParallelConfig(**job["parallel"])
    check_world(parallel, place.world)
    ballast = hold_all_but(job["memory_gib"], job["dtype"], job["device"])
    files = weights.open_model(job["model"], text_encoders=False)
    pipe = SD3Pipeline.from_pretrained(
        files, job["dtype"], parallel, "eager", device=job["device"], rank_timeout_s=job["rank_timeout_s"]
    )
    tell(place, {"load_s": time.perf_counter() - begin})
    for case in cases_of(job):
        tell(place, measure(pipe, case, len(ballast)))
    return endings.DONE


def tell(place: Place, row: Mapping[str, Any]) -> None:
    """Lets `sd3par bench` know, on rank 0."""
    if place.rank == 0:
        record.append((place.run_dir or Path()) / ROWS, row)


def hold_all_but(gib: float | None, dtype: str, kind: str) -> list[Tensor]:
    """Returns tensors of one GiB that leave so many GiB of the device free; none for None."""
    from sd3par import device

    if gib is None:
        return []
    import paddle

    card = device.choose(dtype, kind)
    card.activate()
    count = int((card.memory()[0] - gib * _GIB) / _GIB)
    return [paddle.empty([_GIB], dtype="uint8") for _ in range(max(0, count))]


def measure(pipe: SD3Pipeline, case: Case, held_gib: int = 0) -> dict[str, Any]:
    """Returns times and memory of a case, those of the slowest and of the largest rank; all ranks call it.

    held_gib: what is taken on purpose, and is nobody's need.
    """
    from sd3par import device
    from sd3par.launch.bench.engines import running_by
    from sd3par.launch.bench.timing import largest, percentile90, seconds, summary  # late: they import Paddle

    card = device.Device(device.current(), pipe.transformer.dtype)
    with pipe.watchdog.told_of_errors(), running_by(pipe, case.engine) as engine:
        card.reset_peak_memory()
        taken = [seconds(pipe, case.request, case.images, case.text_tokens, seed)
                 for seed in range(case.warm_ups + case.repeats)][case.warm_ups :]  # fmt: skip
        peak = card.peak_memory()
        peak_gib, reserved_gib = (largest(pipe, bytes_ / _GIB - held_gib) for bytes_ in peak)
        engine = engine if engine == case.engine else pipe.engine  # a step that cannot be recorded makes it eager
    loops, images = ([times[i] for times in taken] for i in range(2))
    loop, image = summary("loop", loops), summary("image", images)
    return {
        "engine": engine, "dtype": pipe.transformer.dtype, "transport": pipe.transformer.routes.transport,
        **loop, **image, "step_ms": 1e3 * loop["loop_s"] / case.steps, "images_per_s": case.images / image["image_s"],
        "images_per_s_per_gpu": case.images / image["image_s"] / pipe.mesh.world.size,
        "loops_s": [round(each, 6) for each in loops], "repeats": case.repeats, "warm_ups": case.warm_ups,
        "spread": percentile90(loops) / loop["loop_s"] - 1, "peak_gib": peak_gib, "reserved_gib": reserved_gib,
    }  # fmt: skip

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
from sd3par.launch.bench.case import cases_of
from sd3par.launch.endings import Place
from sd3par.launch.flags import Group
from sd3par.launch.parser import Parser
from sd3par.launch.worker import attach
from sd3par.plan import check_world

if TYPE_CHECKING:
    from paddle import Tensor

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
    from sd3par.launch.bench.parts import Measurer
    from sd3par.pipeline import SD3Pipeline

    endings.prepare(place)
    folder = place.run_dir or Path()
    job, begin = json.loads((folder / JOB).read_text(encoding="utf-8")), time.perf_counter()
    parallel = ParallelConfig(**job["parallel"])
    check_world(parallel, place.world)
    ballast = hold_all_but(job["memory_gib"], job["dtype"], job["device"])
    files = weights.open_model(job["model"], text_encoders=job["text"])
    pipe = SD3Pipeline.from_pretrained(
        files, job["dtype"], parallel, "eager", device=job["device"], rank_timeout_s=job["rank_timeout_s"]
    )
    measurer = Measurer(pipe, held_gib=len(ballast))
    tell(place, {"load_s": time.perf_counter() - begin})
    for case in cases_of(job):
        late = job["end"] is not None and time.time() > job["end"]
        if pipe.mesh.any(late):
            tell(place, {"failed": "not run: the time for all was used up"})
        else:
            tell(place, measurer.measure(case))
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

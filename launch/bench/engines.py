"""What runs a loaded pipeline's operators: its own engines, and Paddle without our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sd3par import device
from sd3par.captured import Captured
from sd3par.graph import StepGraphs
from sd3par.launch.bench.swap import references, swapped
from sd3par.pipeline import SD3Pipeline

PLAIN = "plain"  # Paddle's operators one by one, none of our kernels: PaddleMIX calls it dygraph


def use(pipe: SD3Pipeline, engine: str) -> None:
    """Switches the engine of a loaded pipeline, and gives back what its recordings hold."""
    for recordings in (pipe.graphs, pipe.captured):
        if recordings is not None:
            recordings.clear()
    device.release_idle_memory()
    card = device.Device(device.current(), pipe.transformer.dtype)
    pipe.graphs = StepGraphs.choose(engine, card, pipe.mesh.world.size)
    pipe.captured = Captured.choose(engine, card, pipe.mesh)


@contextmanager
def running_by(pipe: SD3Pipeline, engine: str, again: bool = False) -> Iterator[str]:
    """Within it an engine of the pipeline's or `PLAIN` runs; yields what rows call it.

    again: it ran before this, and its recordings are kept.
    """
    if not again:
        use(pipe, "eager" if engine == PLAIN else engine)
    if engine != PLAIN:
        yield pipe.engine
        return
    with swapped(references()):
        yield PLAIN

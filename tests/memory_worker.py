"""One rank of tests/test_rehearsal.py: requests for which rank 1 of 2 has too little memory, on every mesh of two.

Run: python -m tests.memory_worker (with the launcher's environment). Prints one JSON line a mesh.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from paddle import Tensor

from sd3par import graph
from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.errors import OutOfMemory
from sd3par.graph import StepGraphs
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.pipeline import SD3Pipeline
from sd3par.rehearsal import Rehearsals
from sd3par.text.t5 import T5Encoder
from sd3par.vae import VAE
from sd3par.weights import open_model

SMALL: dict[str, Any] = dict(prompt="a red circle", height=64, width=64, num_inference_steps=2, max_sequence_length=77,
                             output_type="np", progress=False)  # fmt: skip
# What asks for more than the small request does, and where that memory goes first.
LARGE = {
    "reading the prompts": (dict(max_sequence_length=200), T5Encoder, "forward"),
    "denoising": (dict(height=128), MMDiT, "step"),
    "decoding": (dict(height=128), VAE, "_decode"),
}
MESHES = {"dp 2": ParallelConfig(dp=2), "mp 2": ParallelConfig(mp=2), "sp 2": ParallelConfig(sp=2)}


@contextmanager
def at_most(numbers: int, owner: type, name: str) -> Iterator[None]:
    """Within it a device has room for what a method computes of so many numbers, as Paddle would say."""
    works = getattr(owner, name)

    def limited(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        if x.size > numbers:
            raise MemoryError(
                "\n\nResourceExhaustedError: \n\nOut of memory error on nvgpu:1. Cannot allocate 1.250000GB memory on "
                "nvgpu:1, available memory is only 700.500000MB.\n\nPlease check ..."
            )
        return works(self, x, *rest, **named)

    with mock.patch.object(owner, name, limited):
        yield


def numbers_of(pipe: SD3Pipeline, owner: type, name: str) -> int:
    """Returns how many numbers the small request computes of in a method, at most."""
    works, seen = getattr(owner, name), [0]

    def counted(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(x.size)
        return works(self, x, *rest, **named)

    with mock.patch.object(owner, name, counted):
        pipe(**SMALL)
    return max(seen)


def attempts(pipe: SD3Pipeline, want: np.ndarray) -> dict[str, Any]:
    """Returns for each part of a request: the error, how often memory was given back, whether the next picture is
    right."""
    found = {}
    for what, (options, owner, name) in LARGE.items():
        most = numbers_of(pipe, owner, name) if pipe.mesh.world.rank == 1 else 1 << 40
        if pipe.mesh.world.rank == 0:
            pipe(**SMALL)
        given_back: list[int] = []
        pipe.rehearsals = Rehearsals(pipe.mesh, lambda: 1 << 40)
        pipe.give_back = lambda seen=given_back: seen.append(1)
        with at_most(most, owner, name):
            try:
                pipe(**(SMALL | options))
                error = "none"
            except OutOfMemory as caught:
                error = str(caught)
            same = bool((pipe(**SMALL).images == want).all())
        found[what] = [error, len(given_back), same]
    return found


def recording(pipe: SD3Pipeline, want: np.ndarray) -> list[Any]:
    """Returns the same where memory does not suffice for a second graph on rank 1, nor for it alone."""
    pipe.graphs = StepGraphs(choose("float32", "cpu"), must=True)
    pipe(**SMALL)
    works, tries = graph.CapturedGraph, []

    def limited(*given: Any, **named: Any) -> Any:
        tries.append(len(pipe.graphs._graphs))
        if pipe.mesh.world.rank == 1:
            raise MemoryError("the device is full")
        return works(*given, **named)

    with mock.patch.object(graph, "CapturedGraph", limited):
        try:
            pipe(**(SMALL | dict(height=128)))
            error = "none"
        except OutOfMemory as caught:
            error = str(caught)
    return [error, tries, bool((pipe(**SMALL).images == want).all())]


def main() -> None:
    """Tests every mesh."""
    for name, parallel in MESHES.items():
        mesh = Mesh.from_env(parallel)
        pipe = SD3Pipeline.load(open_model("tiny"), choose("float32", "cpu"), mesh, parallel)
        want = pipe(**SMALL).images
        line = {"mesh": name, "attempts": attempts(pipe, want), "recording": recording(pipe, want)}
        print("RESULT", json.dumps(line), flush=True)
    mesh.barrier()


if __name__ == "__main__":
    main()

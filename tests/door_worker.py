"""One rank of tests/test_door.py: python -m tests.door_worker SCENE (with the launcher's environment).

Prints one JSON line of what this rank has found.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from sd3par import watchdog
from sd3par.config import ParallelConfig
from sd3par.errors import Sd3parError
from sd3par.pipeline import SD3Pipeline
from tests.arrays import array

ALIKE_S = 1.5
SMALL: dict[str, Any] = dict(prompt="a red circle", height=64, width=64, num_inference_steps=2, output_type="latent",
                             max_sequence_length=77, progress=False)  # fmt: skip


def loaded() -> SD3Pipeline:
    return SD3Pipeline.from_pretrained("tiny", parallel=ParallelConfig(sp=2), device="cpu")


def refused(pipe: SD3Pipeline, **options: Any) -> str:
    """Returns the field of what a request raises, or that it worked."""
    try:
        pipe(**(SMALL | options))
    except Sd3parError as error:
        return getattr(error, "field", type(error).__name__)
    return "works"


def differences(pipe: SD3Pipeline) -> dict[str, str]:
    """Returns how requests end of which each rank has been given another part."""
    rank = pipe.mesh.world.rank
    return {
        "callback": refused(pipe, callback_on_step_end=None if rank else lambda *_: {}),
        "result": refused(pipe, output_type="np" if rank else "latent"),
        "sigmas": refused(pipe, sigmas=[1.0, 0.5, 0.2][: 2 + rank]),
        "image": refused(pipe, image=None if rank else np.zeros([64, 64, 3], np.uint8), strength=1.0),
        "another image": refused(pipe, image=np.full([64, 64, 3], rank, np.uint8)),
        "latents": refused(pipe, latents=array(f"latents {rank}", (1, 16, 8, 8))),
        "nothing": refused(pipe, latents=array("latents", (1, 16, 8, 8)), sigmas=np.array([1.0, 0.5])),
    }


def watched() -> list[int]:
    """Returns how many threads watch over this process, processes guard it, and files it has open."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    watching = [thread for thread in threading.enumerate() if "watchdog" in thread.name]
    return [len(watching), len(children), len(list(Path("/proc/self/fd").iterdir()))]


def loading() -> list[list[int]]:
    """Returns the same after each of three models, of which two are gone."""
    found = []
    for _ in range(3):
        pipe = loaded()
        pipe(**SMALL)
        found.append(watched())
    return found


def nothing(*_: Any) -> None:
    """A callback that does nothing."""


def raises(error: Exception) -> Callable[..., Any]:
    """Returns a callback that raises this error."""

    def callback(*_: Any) -> None:
        raise error

    return callback


def said(work: Callable[[], object]) -> str:
    """Returns what `work` raises, or that it worked."""
    try:
        work()
        return "works"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def alike() -> dict[str, str]:
    """Returns how requests end that fail in the same way on all ranks, one after another, and one that follows."""
    pipe = loaded()
    rank, before = pipe.mesh.world.rank, drawn(pipe)
    spoilt = {"latents": paddle.full([1, 16, 8, 8], np.nan)}

    def late(_: SD3Pipeline, step: int, *__: Any) -> None:
        time.sleep(rank * step)
        _ = [0][step]

    requests: dict[str, dict[str, Any]] = {
        "not finite": dict(output_type="np", callback_on_step_end=lambda *_: spoilt),
        "not finite again": dict(output_type="pil", callback_on_step_end=lambda *_: spoilt),
        "raises": dict(callback_on_step_end=raises(KeyError("a mistake"))),
        "second step": dict(callback_on_step_end=late),
        "result": dict(callback_on_step_end=lambda *_: 3),
        "some": dict(callback_on_step_end=lambda _, step, time, given: None if rank else given),
    }
    found = {name: said(lambda one=one: pipe(**(SMALL | one))) for name, one in requests.items()}
    return found | {"then": "the same" if np.array_equal(drawn(pipe), before) else "another picture"}


def drawn(pipe: SD3Pipeline) -> np.ndarray:
    """Returns the latents [1, 16, 8, 8] of a request with a callback."""
    latents: np.ndarray = pipe(**SMALL, callback_on_step_end=nothing).images.numpy()
    return latents


def unlike() -> list[str]:
    """Returns what a rank says whose callback fails in other words than the other's, and then."""
    pipe = loaded()
    callback = raises(ValueError(f"rank {pipe.mesh.world.rank}"))
    return [said(work) for work in (lambda: pipe(**SMALL, callback_on_step_end=callback), lambda: pipe(**SMALL))]


def failure(others: Callable[..., Any]) -> list[str]:
    """Rank 0's callback fails, and its caller goes on: returns what it is told from then on. others: rank 1's."""
    pipe = loaded()
    callback = others if pipe.mesh.world.rank else raises(KeyError("a mistake"))
    works = (lambda: pipe(**SMALL, callback_on_step_end=callback), lambda: pipe(**SMALL), loaded)
    return [said(work) for work in works]


def death() -> str:
    """Rank 1 dies between two requests, before its watchers can know, and rank 0 stands at the door."""
    pipe = loaded()
    pipe(**SMALL)
    if pipe.mesh.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    pipe(**SMALL)
    return "works"


def main() -> None:
    """Plays a scene; an error waits for its like on other ranks for a shorter time than it would."""
    watchdog.ALIKE_S = ALIKE_S
    scenes = {"differences": lambda: differences(loaded()), "loading": loading, "death": death, "alike": alike,
              "unlike": unlike, "failure, others work": lambda: failure(lambda *_: time.sleep(ALIKE_S + 4)),
              "failure, others wait": lambda: failure(nothing)}  # fmt: skip
    print("RESULT", json.dumps(scenes[sys.argv[1]]()), flush=True)


if __name__ == "__main__":
    main()

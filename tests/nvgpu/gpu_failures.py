"""Two processes on two GPUs of which rank 1 dies, stops, raises or lacks memory: who ends when, and what is said.

    python -m tests.nvgpu.gpu_failures [--cases dp2:oom,kill mp2:stop ...] [--budget 140]

A case is MESH[:ENGINE]:EVENT; `oom` may stand before another event, since processes go on after it. Nobody but the
ranks themselves ends them: no launcher. Prints a table; 1 if a case did not end as it must.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.ranks import ROOT, environment, free_ports

MESHES = ("dp2", "mp2", "sp2")
CASES = [*(f"{mesh}:{event}" for mesh in MESHES for event in ("oom,kill", "stop", "raise")),
         "mp2:collective:stop", "sp2:eager:stop"]  # fmt: skip
PROMISE_S = 60.0
ENDS = (75, -signal.SIGKILL)  # by itself, or by its guard where a call held it
START_S = 60.0  # until the loop begins
IN_THE_LOOP_S = 1.5  # after its begin
LOOP_STEPS, RAISE_AT = 1000, 40
FREE_GIB = 1.0  # that rank 1 is left with; its small request needs less, its large one more
Row = dict[str, Any]


# One rank.


def embeds(pipe: Any, seed: int = 0) -> Any:
    """Returns the text states of a request, so that no text encoder has a part in it."""
    from sd3par.launch.bench.timing import embeds as states

    one = states(pipe, 1, 154, seed)
    return {"prompt_embeds": one.prompt, "pooled_prompt_embeds": one.pooled, "negative_prompt_embeds": one.negative,
            "negative_pooled_prompt_embeds": one.negative_pooled}  # fmt: skip


@contextmanager
def held(free_gib: float) -> Iterator[None]:
    """Takes all of the device's memory but so much, by the GiB."""
    import paddle

    from sd3par import device

    device.release_idle_memory()
    card = device.Device(device.current(), "bfloat16")
    taken = [paddle.empty([1 << 29], dtype="bfloat16") for _ in range(int(card.memory()[0] / 2**30 - free_gib))]
    yield
    del taken
    device.release_idle_memory()


def lacking(pipe: Any, small: Row, large: Row) -> Row:
    """Returns how a request ended for which rank 1 has too little memory, and how those after it."""
    from sd3par.errors import OutOfMemory

    first = pipe(**small).images
    with held(FREE_GIB) if pipe.mesh.world.rank == 1 else nullcontext():
        begin = time.monotonic()
        try:
            pipe(**large)
            error = "none"
        except OutOfMemory as caught:
            error = str(caught)
        seconds = time.monotonic() - begin
        same = bool((pipe(**small).images == first).all())
    count = len(pipe(**large).images)
    return {"error": error, "error_s": round(seconds, 2), "next_is_right": same, "large_after": count}


def rank(options: argparse.Namespace) -> None:
    """What each of the two processes does."""
    import sd3par
    from sd3par.config import ParallelConfig
    from sd3par.weights import open_model

    logger = logging.getLogger("sd3par")
    logger.handlers, logger.propagate = [logging.StreamHandler()], False
    transport = "collective" if options.engine == "collective" else "auto"
    engine = {"collective": "auto", "": "auto"}.get(options.engine, options.engine)
    parallel = ParallelConfig(**{options.mesh[:2]: 2}, transport=transport)
    files = open_model(options.model, text_encoder_3=False)
    pipe = sd3par.SD3Pipeline.from_pretrained(files, parallel=parallel, engine=engine, device=options.device,
                                              rank_timeout_s=options.timeout)  # fmt: skip
    say("loaded", transport=pipe.transformer.routes.transport, engine=pipe.engine)
    common = embeds(pipe) | {"output_type": "latent", "progress": False}
    small = common | {"height": options.px, "width": options.px, "num_inference_steps": 4}
    if "oom" in options.events:
        large = common | {"height": options.px, "width": options.px, "num_inference_steps": 2,
                          "num_images_per_prompt": options.images}  # fmt: skip
        say("lacking", **lacking(pipe, small, large))
    pipe(**small)
    if "raise" in options.events and pipe.mesh.world.rank == 1:
        pipe._ticks = raising(pipe._ticks)
    say("loop", pid=os.getpid())
    pipe(**(small | {"num_inference_steps": LOOP_STEPS}))
    say("done")


def raising(ticks: Any) -> Any:
    """Returns ticks of a loop that raise in it."""

    @contextmanager
    def broken(*given: Any) -> Iterator[Any]:
        with ticks(*given) as numbers:
            yield itertools.chain(itertools.islice(numbers, RAISE_AT), fail())

    return broken


def fail() -> Iterator[int]:
    """Raises when it is asked for a number."""
    raise ValueError("the cat ate it")
    yield 0


def say(what: str, **more: Any) -> None:
    """Tells the parent."""
    print("SAID", json.dumps({"what": what, **more}), flush=True)


# The parent of both.


class Ranks:
    """The processes of one case, with their output in files."""

    def __init__(self, case: str, folder: Path, options: argparse.Namespace) -> None:
        mesh, *engine, events = case.split(":")
        self.folder, self.events = folder, events.split(",")
        ports = free_ports(3)
        words = [sys.executable, "-W", "ignore", "-m", "tests.nvgpu.gpu_failures", "--rank", "--mesh", mesh,
                 "--engine", *(engine or [""]), "--events", events, "--model", options.model,
                 "--device", options.device, "--px", str(options.px), "--timeout", str(options.timeout),
                 "--images", str(options.images)]  # fmt: skip
        self.processes = []
        for number in range(2):
            env = environment(number, 2, ports) | {"FLAGS_selected_nvgpus": str(number)}
            env.setdefault("NCCL_NVLS_ENABLE", "0")
            with open(folder / f"out.{number}", "wb") as out, open(folder / f"err.{number}", "wb") as err:
                self.processes.append(subprocess.Popen(words, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out,
                                                       stderr=err))  # fmt: skip

    def said(self, number: int, what: str) -> Row | None:
        """Returns what a rank has said of something."""
        lines = (self.folder / f"out.{number}").read_text(errors="replace").splitlines()
        found = [json.loads(line[5:]) for line in lines if line.startswith("SAID")]
        return next((one for one in found if one["what"] == what), None)

    def wait_for(self, what: str, limit_s: float) -> bool:
        """Waits until both have said something; returns whether they did."""
        end = time.monotonic() + limit_s
        while not all(self.said(number, what) for number in range(2)):
            if time.monotonic() > end or any(one.poll() is not None for one in self.processes):
                return False
            time.sleep(0.02)
        return True

    def end(self, limit_s: float) -> float | None:
        """Waits for both to end; returns the seconds, None if they had to be killed."""
        begin = time.monotonic()
        while any(one.poll() is None for one in self.processes):
            if time.monotonic() - begin > limit_s:
                for one in self.processes:
                    one.kill()
                return None
            time.sleep(0.02)
        return time.monotonic() - begin

    def last_line(self, number: int) -> str:
        """Returns the last line on a rank's stderr."""
        lines = (self.folder / f"err.{number}").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def play(case: str, folder: Path, options: argparse.Namespace) -> Row:
    """Returns a row of the table; `right` says whether both ended in time and rank 0 named rank 1."""
    begin = time.monotonic()
    ranks = Ranks(case, folder, options)
    row: Row = {"case": case, "right": False}
    if ranks.wait_for("loop", START_S):
        time.sleep(IN_THE_LOOP_S)
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(ranks.events[-1])
        if number is not None:
            ranks.processes[1].send_signal(number)
        row["ended_s"] = ranks.end(PROMISE_S)
        codes = [one.returncode for one in ranks.processes]
        named = "rank 1" in ranks.last_line(0).removeprefix("sd3par: error: [rank 0] ")
        row["right"] = row["ended_s"] is not None and codes[0] in ENDS and codes[1] != 0 and named
    else:
        ranks.end(0.0)
    row |= {"codes": [one.returncode for one in ranks.processes], "start_s": round(time.monotonic() - begin, 1)}
    row["start_s"] = round(row["start_s"] - (row.get("ended_s") or 0.0), 1)
    row["route"] = " ".join(str(value) for key, value in (ranks.said(0, "loaded") or {}).items() if key != "what")
    row["said"] = [ranks.last_line(number)[-150:] for number in range(2)]
    row["lacking"] = [ranks.said(number, "lacking") for number in range(2)] if "oom" in ranks.events else []
    for found in row["lacking"]:
        row["right"] &= found is not None and "rank 1" in found["error"] and found["next_is_right"]
    return row


def show(row: Row) -> None:
    """Prints a row."""
    ended = "HUNG" if row.get("ended_s") is None else f"{row['ended_s']:.1f} s"
    print(f"{'ok  ' if row['right'] else 'BAD '} {row['case']:<20} {row['route']:<18} start {row['start_s']:5.1f} s  "
          f"ended {ended:>7}  codes {row['codes']}", flush=True)  # fmt: skip
    for number, text in enumerate(row["said"]):
        print(f"       rank {number} last said: {text}")
    for number, found in enumerate(row["lacking"]):
        print(f"       rank {number} lacking: {found}", flush=True)


def main() -> int:
    """Plays the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--budget", type=float, default=140.0, help="seconds; no case begins after them")
    parser.add_argument("--model", default="random:sd3-medium")
    parser.add_argument("--device", default="nvgpu")
    parser.add_argument("--px", type=int, default=512)
    parser.add_argument("--images", type=int, default=64, help="of the request that is too large")
    parser.add_argument("--timeout", type=float, default=6.0, help="seconds of silence that ranks bear")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    for name in ("mesh", "engine", "events"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options)
        return 0
    begin, right = time.monotonic(), True
    for case in options.cases:
        if time.monotonic() - begin > options.budget:
            print(f"     {case}: not played, no time left")
            continue
        with TemporaryDirectory() as folder:
            row = play(case, Path(folder), options)
            if not row["right"]:
                for number in range(2):
                    print((Path(folder) / f"err.{number}").read_text(errors="replace")[-1500:])
        show(row)
        right &= row["right"]
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

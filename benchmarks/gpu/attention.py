"""Joint attention in every way that the kernels can cut it, right and timed: python -m benchmarks.gpu.attention

A worker takes one variant after another and is watched: one that says nothing for 20 seconds is stopped, and the next
worker goes on behind the variant that hung. The last output is a table, the fastest variant first.

    us: of ten launches in a CUDA graph, each; sustained: the same for half a second, so that power limits the clock;
    error: the largest over the cases, as a share of what is allowed, 1.05 times that of the plain-Paddle reference.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Event, choose
from sd3par.kernels.attention import Tiles, attention_reference, attention_triton
from sd3par.kernels.attention_hopper import Plan, attention_hopper
from tests.kernels.gpu_attention import MAIN, case, error

SILENCE_S = 20.0  # more than the longest compilation
RECORDED, REPLAYS, SUSTAINED = 10, 5, 100
ROOM = 1.05
TIMED = {"1024": MAIN, "512": (2, (1024, 333), 24, 64), "large": (2, (4096, 333), 38, 64)}
# Numbers of tokens that are alike to Triton: one compilation a variant
CHECKED = [("bfloat16", *MAIN, 0), ("bfloat16", 2, (192, 77), 2, 64, 130), ("bfloat16", 2, (704, 257), 38, 64, 1, 10.0),
           ("bfloat16", 2, (704, 257), 5, 64, 1, 60.0)]  # fmt: skip
TILES = [Tiles(64, 64, 4, 3)]
PLANS = [
    Plan(192, 128, 2), Plan(192, 128, 2, anchored=True), Plan(128, 128, 2, anchored=True),
    Plan(128, 128, 3, anchored=True, held=True), Plan(192, 128, 2, turns=True, anchored=True),
    Plan(128, 128, 2, turns=True, anchored=True), Plan(192, 128, 2, cubic=8, anchored=True),
    Plan(128, 128, 2, cubic=4, anchored=True),
]  # fmt: skip
Attend = Callable[[list[Tensor]], list[Tensor]]
Row = dict[str, Any]


def variants() -> dict[str, Attend]:
    """Returns every way to call attention, by name."""
    found: dict[str, Attend] = {"triton " + _name(tiles): partial(attention_triton, tiles=tiles) for tiles in TILES}
    plans: dict[str, Attend] = {"hopper " + _name(plan): partial(attention_hopper, plan=plan) for plan in PLANS}
    return {**plans, **found}


def _name(cut: Tiles | Plan) -> str:
    return " ".join(f"{key}={int(value)}" for key, value in cut._asdict().items())


@paddle.no_grad()
def work(names: list[str]) -> None:
    """Checks and times variants; prints a line of JSON when one begins and when it ends."""
    device = choose("bfloat16")
    device.activate()
    cases = [case(*arguments) for arguments in CHECKED]
    allowed = [ROOM * error(one.chosen(attention_reference(one.segments)), one.want) + 1e-7 for one in cases]
    timed = {name: _segments(*shape) for name, shape in TIMED.items()}
    for name in names:
        attend, row = variants()[name], _row(name)
        print(json.dumps({"begins": name}), flush=True)
        try:
            shares = [error(one.chosen(attend(one.segments)), one.want) for one in cases]
            row["error"] = max(share / most for share, most in zip(shares, allowed, strict=True))
            for size, segments in timed.items():
                row[size] = _replayed_us(partial(attend, segments), REPLAYS)
            row["sustained"] = _replayed_us(partial(attend, timed["1024"]), SUSTAINED)
        except Exception as failure:  # of this variant; the others are to be seen
            row["failed"] = f"{type(failure).__name__}: {failure}"[-300:]
        print(json.dumps(row), flush=True)
        if "failed" in row:  # a broken kernel leaves nothing in this process that works
            return


def _row(name: str) -> Row:
    return {"variant": name}


def _segments(rows: int, tokens: tuple[int, ...], heads: int, head_dim: int) -> list[Tensor]:
    return [paddle.randn([rows, count, 3, heads, head_dim]).astype("bfloat16") for count in tokens]


def _replayed_us(call: Callable[[], object], replays: int) -> float:
    graph = CapturedGraph(choose("bfloat16"), lambda: [call() for _ in range(RECORDED)])
    begin, end = Event(), Event()
    graph()
    begin.record()
    for _ in range(replays):
        graph()
    end.record()
    taken = 1e3 * begin.elapsed_ms(end) / (RECORDED * replays)
    graph.reset()
    return taken


def watch(names: list[str]) -> list[Row]:
    """Has workers take the variants; returns a row for each, also for those that hung or crashed."""
    rows: list[Row] = []
    while len(rows) < len(names):
        rows += _watched(names[len(rows) :])
    return rows


def _watched(names: list[str]) -> list[Row]:
    """Returns the rows of one worker, at least one: it ends with the last variant or with what stopped it."""
    command = [sys.executable, "-m", "benchmarks.gpu.attention", "--work", *names]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(worker, lines), daemon=True).start()
    rows: list[Row] = []
    patience = 3 * SILENCE_S  # Paddle is loaded and the references are computed before the first variant
    while len(rows) < len(names):
        try:
            line = lines.get(timeout=patience)
        except queue.Empty:
            rows.append({"variant": names[len(rows)], "failed": f"silent for {patience:.0f} s"})
            break
        if line is None:
            rows.append({"variant": names[len(rows)], "failed": "the worker ended"})
            break
        if line.startswith('{"variant"'):
            rows.append(json.loads(line))
            print(line, end="", flush=True)
            if "failed" in rows[-1]:
                break
        if line.startswith('{"'):
            patience = SILENCE_S
    worker.kill()
    worker.wait()
    return rows


def _read(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    for line in worker.stdout or ():
        lines.put(line)
    lines.put(None)


def table(rows: list[Row]) -> str:
    """Returns rows as text, the fastest first."""
    columns = [*TIMED, "sustained"]
    lines = [f"{'variant':<88}{'error':>7}" + "".join(f"{name:>12}" for name in columns) + f"{'TFLOP/s':>9}"]
    rows_, tokens, heads, head_dim = MAIN
    flops = 4 * rows_ * heads * sum(tokens) ** 2 * head_dim
    for row in sorted(rows, key=lambda row: float(row.get("1024", 1e9))):
        text = f"{row['variant']:<88}"
        if "failed" in row:
            lines.append(text + row["failed"].splitlines()[-1])
            continue
        values = "".join(f"{row[name]:>12.1f}" for name in columns)
        lines.append(f"{text}{row['error']:>7.3f}{values}{flops / row['1024'] / 1e6:>9.0f}")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code: 1 if a variant failed or is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--work", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work)
        return 0
    rows = watch([name for name in variants() if options.only in name])
    print(table(rows), flush=True)
    return int(any("failed" in row or row["error"] > 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Where the time of a denoising step goes, kernel by kernel, beside what the card can do at best.

The step runs eagerly with CUDA events around each kernel of the model, behind a queue that is never empty: clocks, L2
and order are those of a real run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paddle

from sd3par import device
from sd3par.graph import StepGraphs
from sd3par.launch.bench.clock import Ceilings, Timer
from sd3par.launch.bench.steps import Loop
from sd3par.launch.bench.watch import Watch
from sd3par.launch.report import table
from sd3par.mmdit import MMDiT

SKIPPED = 3  # steps that do not count: the first one looks at all tensors, the next ones fill the queue
BUSY_MS = 1.0  # of work is left when the host has asked for everything: then the device never waited for it
STALL = 4096  # rows and columns of the products that keep the device busy
ROOM = 1.3  # the device gets so much more work ahead than the host needs
Row = dict[str, Any]


def watched(loop: Loop, stall: Callable[[float], None], ahead_ms: float) -> tuple[Watch, float, float]:
    """Returns the watch of a loop's steps, the host's milliseconds a step, and those of the device behind the host.

    ahead_ms: what `stall` gives the device to do before each step, so that the host is far ahead in it.
    """
    watch = Watch()
    device.synchronize()
    begin = time.perf_counter()

    def ticks() -> Iterator[int]:
        for index in range(loop.steps):
            stall(ahead_ms)
            watch.begin_step()
            yield index
            watch.end_step()

    with watch.watching():
        loop.run(ticks())
    asked = time.perf_counter()
    device.synchronize()
    return watch, 1e3 * (asked - begin) / loop.steps, 1e3 * (time.perf_counter() - asked)


def stalling(best: Ceilings, dtype: str) -> Callable[[float], None]:
    """Returns what keeps the device busy for some milliseconds: products, which leave it as hot as steps do."""
    size = 64 if device.current() == "cpu" else STALL
    x = paddle.randn([size, size]).astype(dtype)
    each_ms = 2e3 * size**3 / best.flops

    def stall(wanted_ms: float) -> None:
        for _ in range(round(wanted_ms / each_ms)):
            paddle.matmul(x, x)

    return stall


@dataclass(frozen=True)
class Step:
    """What is measured: steps of `images` pictures of a size, height and width in pixels, by how many text tokens.

    count: steps that count.
    """

    size: tuple[int, int]
    images: int
    tokens: int
    count: int

    def loop(self, model: MMDiT, graphs: StepGraphs | None = None) -> Loop:
        """Returns steps of a model, those that do not count too."""
        return Loop(model, self.size, self.tokens, self.images, SKIPPED + self.count, graphs)


def measure(model: MMDiT, step: Step, timer: Timer, best: Ceilings) -> tuple[list[Row], Watch]:
    """Returns a row for each kind of work, one for the other operators before each kernel, and one for the step.

    Also what was watched, of which a trace can be made.
    """
    stall = stalling(best, model.dtype)
    loop, ahead_ms = step.loop(model), 0.0
    watch, host_ms, behind_ms = watched(loop, stall, ahead_ms)
    alone = device.current() == "cpu"  # which is its own host
    if behind_ms < BUSY_MS and not alone:  # small steps: the host needs longer for one than the device
        ahead_ms = ROOM * host_ms
        watch, host_ms, behind_ms = watched(loop, stall, ahead_ms)
    event_us = timer.event_us()
    kernels, others, whole_us = watch.times(event_us, SKIPPED)
    rows: list[Row] = []
    for work, count, us in kernels:
        floor_us = count * best.floor_us(work.flops, work.bytes)
        rows.append({
            "kernel": work.kernel, "shape": work.shape, "count": count, "us": us / count, "ms": us / 1e3,
            "flops": work.flops, "bytes": work.bytes, "floor_us": floor_us / count,
            "share_of_floor": floor_us / us if us else 0.0,
        })  # fmt: skip
    floor_ms = sum(row["count"] * row["floor_us"] for row in rows) / 1e3
    rows += [{"kernel": "other operators", "shape": f"before {name}", "ms": us / 1e3} for name, us in others]
    sum_ms = sum(row["ms"] for row in rows)
    graphs = StepGraphs.choose("auto", device.Device(device.current(), model.dtype), 1)
    step_ms = step.loop(model, graphs).device_ms()
    rows.append({
        "kernel": "step", "engine": "graph" if graphs else "eager", "ms": sum_ms, "floor_ms": floor_ms,
        "step_ms": step_ms, "gaps_ms": step_ms - sum_ms, "watched_ms": whole_us / 1e3, "event_us": event_us,
        "host_ms": host_ms, "ahead_ms": ahead_ms, "behind_ms": behind_ms,
        "host_bound": behind_ms < BUSY_MS and not alone,
        "peak_tflops": best.flops / 1e12, "copy_tbs": best.bytes / 1e12,
    })  # fmt: skip
    if graphs is not None:
        graphs.clear()
    return rows, watch


def shown(rows: list[Row]) -> str:
    """Returns the rows as a table; of the other operators those that take 1 % of the step."""
    step = rows[-1]
    lines = [("kernel", "shape", "calls", "us each", "ms a step", "GFLOP", "MB", "floor us", "of floor")]
    for row in rows[:-1]:
        if "count" in row:
            work = (f"{row['flops'] / 1e9:.2f}", f"{row['bytes'] / 1e6:.1f}")
            share = (f"{row['floor_us']:.1f}", f"{100 * row['share_of_floor']:.0f} %")
            lines.append((row["kernel"], row["shape"], str(row["count"]), f"{row['us']:.1f}", f"{row['ms']:.3f}", *work,
                          *share))  # fmt: skip
        elif row["ms"] > 0.01 * step["ms"]:
            lines.append((row["kernel"], row["shape"], "", "", f"{row['ms']:.3f}", "", "", "", ""))
    lines.append(("sum", "", "", "", f"{step['ms']:.3f}", "", "", f"{1e3 * step['floor_ms']:.0f}",
                  f"{100 * step['floor_ms'] / step['ms']:.0f} %"))  # fmt: skip
    lines.append((f"the step by engine {step['engine']}", "", "", "", f"{step['step_ms']:.3f}", "", "", "", ""))
    lines.append(("that - sum", "", "", "", f"{step['gaps_ms']:.3f}", "", "", "", ""))
    note = (
        f"floors: {step['peak_tflops']:.3g} TFLOP/s, {step['copy_tbs']:.3g} TB/s; {step['event_us']:.2f} us are taken "
        f"off each pair of events; the device was {step['behind_ms']:.1f} ms behind the host at the end"
    )
    return f"{table(lines)}\n{note}" + ("\nHOST BOUND: the figures hold waiting" if step["host_bound"] else "")

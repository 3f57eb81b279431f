"""What the host does in a recorded denoising step, and when a launch of a graph makes it wait.

Called by benchmarks.gpu.gemm, which prints the rows.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paddle

from benchmarks.gpu.shapes import TEXT_TOKENS
from sd3par import device
from sd3par.denoise import Denoiser
from sd3par.device import CapturedGraph, Device, overwrite
from sd3par.graph import StepGraph, StepGraphs
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.plan import rows_for
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.text import TextStates
from sd3par.weights.random_model import random_component

STEPS = 20
WAITS_MS = 3.0  # a launch that takes longer waits for the device
PARTS = ("slice modulations", "slice delta", "copy modulations", "copy delta", "launch")
Row = dict[str, Any]


def probe() -> Iterator[Row]:
    """Yields rows with `what` and `seen`, or `failed`."""
    model = MMDiT.load(random_component("random:sd3-medium", "transformer"), "bfloat16", Mesh.single())
    graphs = StepGraphs(Device(device.current(), "bfloat16"), must=True)
    for px in (1024, 512):
        yield from guarded(f"{px} px", lambda px=px: step(model, graphs, px))  # type: ignore[misc]
    graphs.clear()
    yield from guarded("queue", queue)


def guarded(what: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yields the rows, and one that says so where they end with an error."""
    try:
        yield from rows()
    except Exception as error:
        yield {"what": what, "failed": f"{type(error).__name__}: {error}"[-300:]}


def step(model: MMDiT, graphs: StepGraphs, px: int) -> Iterator[Row]:
    """Yields what the host takes in each call of a step, behind an empty queue and behind a long one."""
    config = model.config
    text = TextStates(
        paddle.randn([2, TEXT_TOKENS, config.joint_attention_dim]), paddle.randn([2, config.pooled_projection_dim])
    )
    plan = schedule(SchedulerConfig(), STEPS)
    denoiser = Denoiser(model, rows_for(0, 1, 1, True), text, plan, (px // 8, px // 8), graphs)
    tokens = denoiser.scatter(paddle.randn([1, config.in_channels, px // 8, px // 8]))
    with denoiser._graph(tokens) as graph:
        assert graph is not None
        graph.begin(denoiser.conditions, paddle.full([], 7.0))
        graph.step(tokens, denoiser.conditions.modulations[:1], denoiser.deltas[0])
        device.synchronize()
        yield {"what": f"{px} px: nodes of the graph", "seen": nodes(graph._graph)}
        alone = [parts(graph, denoiser, index, True) for index in range(STEPS)]
        seen = {name: round(1e3 * statistics.median(one[i] for one in alone), 1) for i, name in enumerate(PARTS)}
        yield {"what": f"{px} px: us of the host, empty queue", "seen": seen}
        begin, busy = time.perf_counter(), time.thread_time()
        queued = [parts(graph, denoiser, index, False) for index in range(STEPS)]
        wall, busy = time.perf_counter() - begin, time.thread_time() - busy
        device.synchronize()
        total = time.perf_counter() - begin
        yield {"what": f"{px} px: ms of each step, long queue", "seen": [round(sum(one), 2) for one in queued]}
        worst = {name: round(max(one[i] for one in queued), 2) for i, name in enumerate(PARTS)}
        yield {"what": f"{px} px: most ms of each call", "seen": worst}
        yield {"what": f"{px} px: ms of {STEPS} steps: host, of that on its core, device",
               "seen": [round(1e3 * x, 1) for x in (wall, busy, total)]}  # fmt: skip
        yield {"what": f"{px} px: ms of launches alone", "seen": launches([graph._graph])}
        yield {"what": f"{px} px: ms of launches alone, two graphs in turn",
               "seen": launches([graph._graph, second(denoiser, graph)])}  # fmt: skip


def parts(graph: StepGraph, denoiser: Denoiser, index: int, alone: bool) -> list[float]:
    """Returns the milliseconds of each of `PARTS` in one step, as StepGraph.step does it."""
    if alone:
        device.synchronize()
    marks = [time.perf_counter()]
    modulations = denoiser.conditions.modulations[index : index + 1]
    marks.append(time.perf_counter())
    delta = denoiser.deltas[index]
    marks.append(time.perf_counter())
    overwrite(modulations, graph._conditions.modulations)
    marks.append(time.perf_counter())
    overwrite(delta, graph._delta)
    marks.append(time.perf_counter())
    graph._graph()
    marks.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in zip(marks, marks[1:], strict=False)]


def launches(graphs: list[CapturedGraph[Any]]) -> list[float]:
    """Returns the milliseconds of each of some launches, nothing between them."""
    device.synchronize()
    taken = []
    for index in range(STEPS):
        begin = time.perf_counter()
        graphs[index % len(graphs)]()
        taken.append(round(1e3 * (time.perf_counter() - begin), 2))
    device.synchronize()
    return taken


def second(denoiser: Denoiser, graph: StepGraph) -> CapturedGraph[Any]:
    """Returns another recording of the same step."""
    assert denoiser.graphs is not None
    return StepGraph(denoiser.graphs.device, denoiser.work, graph.tokens, graph._conditions, denoiser.mesh)._graph


def nodes(graph: CapturedGraph[Any]) -> int:
    """Returns how many nodes a recorded graph has."""
    with tempfile.TemporaryDirectory() as folder:
        graph._graph.print_to_dot_files(folder, 1 << 10)
        text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in Path(folder).iterdir())
    return len(set(re.findall(r"graph_\d+_node_\d+", text)))


def queue() -> Iterator[Row]:
    """Yields after how many launches behind 0.4 s of work the host waits: of kernels, and of graphs of some sizes."""
    side, small = paddle.randn([8192, 8192]).astype("bfloat16"), paddle.zeros([64])
    card = Device(device.current(), "bfloat16")
    head = CapturedGraph(card, lambda: [paddle.matmul(side, side) for _ in range(10)][:0])
    for count in (0, 1, 30, 300, 1000):
        one: Callable[[], object] = lambda: small.fill_(0.0)  # noqa: E731
        if count:
            one = CapturedGraph(card, lambda count=count: [small.fill_(0.0) for _ in range(count)][:0])  # type: ignore[misc]
        yield {"what": f"queue: launches before one waits, {count or 'no graph,'} kernels each",
               "seen": until_waiting(head, one, 3000 if count < 30 else 200)}  # fmt: skip
    yield {"what": "queue: ms of launches of ten long kernels", "seen": launches([head])}


def until_waiting(head: CapturedGraph[Any], one: Callable[[], object], most: int) -> str:
    """Returns the number of the launch that waited, and how long, or that none did."""
    device.synchronize()
    begin = time.perf_counter()
    for _ in range(25):
        head()
    behind = 1e3 * (time.perf_counter() - begin)
    for index in range(most):
        begin = time.perf_counter()
        one()
        taken = 1e3 * (time.perf_counter() - begin)
        if taken > WAITS_MS:
            return f"{index} (waited {taken:.0f} ms; the work before took {behind:.1f} ms to ask for)"
    return f"none of {most} (the work before took {behind:.1f} ms to ask for)"

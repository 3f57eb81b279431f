"""All products of SD3-medium's blocks on Hopper: python -m tests.kernels.gpu_linear_block [--seconds 130]

Both streams' products of 24 blocks, each with weights of its own, recorded in one CUDA graph: by cuBLASLt one after the
other, in pairs, in pairs by clusters, and with results stored while the next tile is multiplied (late). First each way
is checked as in gpu_linear.py, in a process of its own with a time limit, and what is not right is left out. Then a
process for each size, on a card that is hot: all ways in turn, again and again. Prints JSON lines, and at the end
microseconds of a block, and of each of its products.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Device, Event, choose, synchronize
from sd3par.kernels.linear_hopper import SHAPES, Product, Rectangle, Shape, linear_hopper
from tests.kernels import gpu_linear
from tests.kernels.gpu_attention import host
from tests.kernels.gpu_linear import CLUSTERS, Row, start

WIDE, NARROW = CLUSTERS
LATE, LATE_NARROW = WIDE._replace(late=True), NARROW._replace(late=True)
WAYS: dict[str, Shape | None] = {
    "cublaslt": None, "pair": SHAPES[0], "pair late": SHAPES[0]._replace(late=True), "cluster": WIDE, "late": LATE,
    "late l1": LATE._replace(lead=1), "late l3": LATE._replace(lead=3), "late b16": LATE._replace(band=16),
    "128 late": LATE_NARROW, "128 l1": LATE_NARROW._replace(lead=1),
}  # fmt: skip
SIZES = ((4096, 333), (2048, 666), (8192, 666), (1024, 333))
BLOCKS, DIM = 24, 1536
LAYERS = {"qkv": (DIM, 3 * DIM, False), "out": (DIM, DIM, False), "up": (DIM, 4 * DIM, True),
          "down": (4 * DIM, DIM, False)}  # fmt: skip
CHECK_S, SIZE_S, HEAT_S = 50, 30, 1.5
ROUNDS, BLOCK_S, PRODUCT_S = 3, 0.06, 0.02
STATES = ("cublaslt", "cluster", "late")  # also shown: clock and power


class Layer(NamedTuple):
    """One product of a block in all blocks: its streams' operands, and memory for one block's results."""

    name: str
    gelu: bool
    streams: list[list[Product]]
    outs: list[Tensor]


def drawn(rows: tuple[int, int]) -> list[Layer]:
    """Returns random operands; results of about 1. A layer's x are the same in all blocks, its weights are not."""
    layers = []
    for name, (terms, columns, gelu) in LAYERS.items():
        xs = [paddle.randn([count, terms]).astype("bfloat16") for count in rows]
        streams = []
        for _ in range(BLOCKS):
            weights = [(paddle.randn([terms, columns]) / terms**0.5).astype("bfloat16") for _ in xs]
            biases = [paddle.randn([columns]).astype("bfloat16") for _ in xs]
            streams.append([Product(*one) for one in zip(xs, weights, biases, strict=True)])
        outs = [paddle.zeros([count, columns], dtype="bfloat16") for count in rows]
        layers.append(Layer(name, gelu, streams, outs))
    return layers


def once(layer: Layer, block: int, shape: Shape | None) -> list[Tensor]:
    """Computes a layer of a block, and returns its results."""
    streams = layer.streams[block]
    if shape is None:
        kind = "gelu" if layer.gelu else "none"
        return [
            paddle._C_ops.fused_gemm_epilogue(one.x, one.weight, one.bias, False, False, kind)[0] for one in streams
        ]
    there = [
        Rectangle(number, 0, out.shape[0], 0, out.shape[1], out.data_ptr(), out.shape[1])
        for number, out in enumerate(layer.outs)
    ]
    linear_hopper(streams, there, layer.gelu, shape)
    return layer.outs


def recorded(device: Device, layers: list[Layer], shape: Shape | None) -> CapturedGraph:
    """Returns a graph of layers in all blocks."""

    def call() -> list[Tensor]:
        for block, layer in itertools.product(range(BLOCKS), layers):
            once(layer, block, shape)
        return []

    return CapturedGraph(device, call, warmups=1)


def far(layers: list[Layer], shape: Shape | None) -> float:
    """Returns the largest difference from cuBLASLt's in some rows, in units of a result's last digit, or that of 1."""
    worst = 0.0
    for layer in layers:
        for ours, theirs in zip(once(layer, 1, shape), once(layer, 1, None), strict=True):
            for begin in (0, ours.shape[0] // 2, ours.shape[0] - 64):
                a, b = (host(x[begin : begin + 64]) for x in (ours, theirs))
                worst = max(worst, float((abs(a - b) / (abs(b) / 128 + 1 / 128)).max()))
    return worst


def microseconds(graph: CapturedGraph, count: int) -> float:
    """Returns the time of a block, of so many replays."""
    begin, end = Event(), Event()
    begin.record()
    for _ in range(count):
        graph()
    end.record()
    return 1e3 * float(begin.elapsed_ms(end)) / count / BLOCKS


def in_turn(graphs: dict[str, CapturedGraph], seconds: float) -> dict[str, float]:
    """Returns the median time of a block of each way."""
    counts = {name: max(1, int(1e6 * seconds / BLOCKS / microseconds(graph, 1))) for name, graph in graphs.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            graph()  # the card's clock follows the way before
            times[name].append(microseconds(graph, counts[name]))
    return {name: round(statistics.median(one), 2) for name, one in times.items()}


def state(graph: CapturedGraph) -> str:
    """Returns the card's clock and power while it is at work."""
    for _ in range(max(1, int(6e5 / BLOCKS / microseconds(graph, 1)))):
        graph()
    asked = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError) as failure:
        return type(failure).__name__
    finally:
        synchronize()


def tried(work: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what comes of it, and what went wrong."""
    try:
        return work(), ""
    except Exception as failure:
        return None, f"{type(failure).__name__}: {failure}"[:300]


def graphs_of(device: Device, layers: list[Layer], ways: list[str]) -> dict[str, CapturedGraph]:
    """Returns a graph for each way that can be recorded."""
    found = {}
    for name in ways:
        graph, said = tried(lambda name=name: recorded(device, layers, WAYS[name]))
        if graph is None:
            print(json.dumps({"way": name, "failed": said}), flush=True)
        else:
            found[name] = graph
    return found


def begun() -> Device:
    """Returns the device, with which a process begins."""
    device = choose("bfloat16", "nvgpu")
    device.activate()
    paddle.seed(0)
    gc.freeze()  # each recording collects garbage
    return device


def run_check(way: str) -> None:
    """One process: prints the rows of a check."""
    begun()
    shape = WAYS[way]
    if shape is not None:
        for row in gpu_linear.check(shape, ("float16",) * (way in ("late", "128 late"))):
            print(json.dumps(row), flush=True)


def run(size: int, ways: list[str], limit: float) -> None:
    """One process: a size."""
    end, device, rows = time.monotonic() + limit, begun(), SIZES[size]
    layers = drawn(rows)
    for name in list(ways):
        differs, said = tried(lambda name=name: far(layers, WAYS[name]))
        print(json.dumps({"rows": rows, "way": name, "far": differs, "failed": said}), flush=True)
        if said or not differs <= 4:
            ways.remove(name)
    graphs = graphs_of(device, layers, ways)
    begin = time.monotonic()
    while time.monotonic() < begin + HEAT_S:
        microseconds(graphs[ways[0]], 10)
    print(json.dumps({"rows": rows, "layer": "block", "us": in_turn(graphs, BLOCK_S)}), flush=True)
    if size == 0:
        print(json.dumps({"states": {name: state(graph) for name, graph in graphs.items() if name in STATES}}),
              flush=True)  # fmt: skip
    for graph in graphs.values():
        graph.reset()
    for layer in layers:
        if time.monotonic() < end:
            graphs = graphs_of(device, [layer], ways)
            print(json.dumps({"rows": rows, "layer": layer.name, "us": in_turn(graphs, PRODUCT_S)}), flush=True)
            for graph in graphs.values():
                graph.reset()


def check() -> list[str]:
    """Prints what is wrong; returns the ways that may be timed."""
    right = []
    with concurrent.futures.ThreadPoolExecutor(len(WAYS)) as pool:
        found = pool.map(lambda way: start(["--check", way], CHECK_S, "gpu_linear_block"), WAYS)
        for way, (rows, said) in zip(WAYS, found, strict=True):
            bad = [row for row in rows if not row["ok"]]
            worst = max((row["error"] / row["reference"] for row in rows), default=0)
            print(json.dumps({"checked": way, "cases": len(rows), "wrong": len(bad), "of the reference": worst}))
            for line in (*bad[:3], said):
                if line:
                    print("   ", line, flush=True)
            right += [] if bad or said else [way]
    return right


def table(rows: list[Row]) -> None:
    """Prints microseconds: a line for each size and layer, cuBLASLt's first; then each way as a part of that."""
    print(f"{'rows':12} {'layer':6}", *(f"{name:>9}" for name in WAYS))
    for row in rows:
        us = row["us"]
        name = f"{'+'.join(map(str, row['rows'])):12} {row['layer']:6}"
        print(name, *(f"{us[way]:9.1f}" if way in us else f"{'-':>9}" for way in WAYS))
        if "cublaslt" in us:
            print(f"{'':19}", *(f"{us[way] / us['cublaslt']:9.3f}" if way in us else f"{'-':>9}" for way in WAYS))


def main() -> int:
    """Runs all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=130)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check is not None or options.size is not None:
        with paddle.no_grad():
            run_check(options.check) if options.size is None else run(options.size, options.ways, options.seconds)
        return 0
    begin, rows = time.monotonic(), []
    ways = check()
    print(f"checked in {time.monotonic() - begin:.0f} s", flush=True)
    for size in range(len(SIZES)):
        left = min(SIZE_S, begin + options.seconds - time.monotonic())
        if left < 10:
            break
        arguments = ["--size", str(size), "--seconds", str(left - 6), "--ways", *ways]
        found, said = start(arguments, left, "gpu_linear_block")
        for row in found:
            print(json.dumps(row))
        print(f"{SIZES[size]}: {said or 'done'}", flush=True)
        rows += [row for row in found if "us" in row]
    table(rows)
    return int(len(ways) < len(WAYS) or not rows)


if __name__ == "__main__":
    sys.exit(main())

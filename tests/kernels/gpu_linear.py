"""The product of two streams on a Hopper GPU: python -m tests.kernels.gpu_linear [--seconds 95]

First each way to cut tiles is checked against fp64, each in a process of its own, some at once, with a time limit: one
that hangs or does not compile is left out. Then those that are right are timed beside cuBLASLt, tuned, which does one
stream after the other. Prints what failed, then a line for each product: microseconds, recorded in CUDA graphs.
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
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle

from sd3par.device import CapturedGraph, Device, Event, choose, synchronize
from sd3par.kernels.linear import linear_fused, linear_gelu_fused
from sd3par.kernels.linear_hopper import SHAPES, Product, Rectangle, Shape, fits, linear_hopper, linear_hopper_reference
from tests.kernels.gpu_attention import error, host

CLUSTERS = tuple(shape._replace(cluster=2) for shape in SHAPES)
CHECKED = (SHAPES[0], SHAPES[0]._replace(lead=0), SHAPES[0]._replace(lead=1), SHAPES[1], SHAPES[1]._replace(lead=0),
           Shape(3, 128, 5, 160, 2, 8), *CLUSTERS)  # fmt: skip
BANDS = (1, 4, 16)  # also timed, of the first and of the fourth
ROOM = 1.05  # times cuBLASLt's error
POISON = 512.0
CHECK_S, AT_ONCE = 45, 6
ROUNDS, RECORDED_US = 3, 1500
Row = dict[str, Any]


class Case(NamedTuple):
    """rows: of each stream, 0 for none; terms and columns: of their weights [terms, columns]."""

    name: str
    rows: tuple[int, int]
    terms: int
    columns: int
    gelu: bool
    biased: bool = True


def layers(rows: tuple[int, int], part: int) -> list[Case]:
    """Returns SD3-medium's linears of a block, of which each of `part` ranks has its part."""
    dim, name = 1536, "" if part == 1 else f"/{part}"
    return [Case(f"qkv{name}", rows, dim, 3 * dim // part, False), Case(f"out{name}", rows, dim // part, dim, False),
            Case(f"up{name}", rows, dim, 4 * dim // part, True),
            Case(f"down{name}", rows, 4 * dim // part, dim, False)]  # fmt: skip


def cases(group: int) -> list[Case]:
    """Returns what is timed in one process."""
    large, small = [(8192, 666), (4096, 333)], [(4096, 334), (2048, 167), (1024, 84), (2048, 666), (1024, 333)]
    if group:
        return [case for rows in small for case in layers(rows, 1)]
    return [case for part in (1, 2) for rows in large for case in layers(rows, part)]


def draw(case: Case, dtype: str = "bfloat16", wider: int = 0) -> list[Product]:
    """Returns random operands; results of about 1; weights that are a part of wider ones."""
    products = []
    for rows in filter(None, case.rows):
        weight = (paddle.randn([case.terms, case.columns + wider]) / case.terms**0.5).astype(dtype)
        bias = paddle.randn([case.columns]).astype(dtype) if case.biased else None
        products.append(Product(paddle.randn([rows, case.terms]).astype(dtype), weight[:, : case.columns], bias))
    return products


def whole(case: Case) -> list[Rectangle]:
    """Returns a rectangle for each stream, one behind the other from address 0 on."""
    first = (0, 2 * case.rows[0] * case.columns)
    return [Rectangle(i, 0, rows, 0, case.columns, first[i], case.columns) for i, rows in enumerate(case.rows) if rows]


def heads(case: Case) -> list[Rectangle]:
    """Returns where columns of q, k and v go to the rank that has their heads, of three; two batch rows.

    Both streams of a batch row lie behind each other, with room between them and in each line.
    """
    found, width, tokens = [], case.columns // 9, sum(case.rows) // 2 + 5
    stride = 3 * width + 64
    for stream, rows in enumerate(case.rows):
        for batch, third, rank in itertools.product(range(2), range(3), range(3)):
            line = (rank * 2 + batch) * tokens + stream * (case.rows[0] // 2)
            column, address = (third * 3 + rank) * width, 2 * (line * stride + third * width)
            found.append(Rectangle(stream, batch * (rows // 2), rows // 2, column, width, address, stride))
    return found


def shards(case: Case) -> list[Rectangle]:
    """Returns where rows go to the rank that has them, of three; two batch rows."""
    found, stride, room = [], case.columns + 8, max(case.rows) // 2 + 9
    for stream, rows in enumerate(case.rows):
        for batch, rank in itertools.product(range(2), range(3)):
            begin, end = (rows // 2 * (rank + i) // 3 for i in range(2))
            address = 2 * ((rank * 2 + stream) * 2 + batch) * room * stride
            found.append(Rectangle(stream, batch * (rows // 2) + begin, end - begin, 0, case.columns, address, stride))
    return found


def indices(one: Rectangle) -> np.ndarray:
    """Returns where in a memory of 16-bit numbers that begins at 0 a rectangle's are, [rows, columns]."""
    return one.address // 2 + np.arange(one.rows)[:, None] * one.stride + np.arange(one.columns)[None, :]


def wrong(case: Case, near: list[Rectangle], shape: Shape, dtype: str, repeats: int) -> Row:
    """Returns a row: errors of ours, the reference and cuBLASLt, what else was written, whether calls differ."""
    streams, size = draw(case, dtype, wider=16), max(int(indices(one).max()) for one in near) + 64
    memory = paddle.full([size], POISON).astype(dtype)
    there = [one._replace(address=one.address + memory.data_ptr()) for one in near]
    fitting, first, differ = fits(streams), None, 0
    for _ in range(repeats):
        linear_hopper(streams, there, case.gelu, shape)
        bits = memory.view("int16").numpy()
        first = bits if first is None else first
        differ += int((bits != first).sum())
    got, other = host(memory), np.ones(size, bool)
    for one in near:
        other[indices(one)] = False
    targets = [paddle.zeros([one.rows, one.columns], dtype=dtype) for one in near]
    linear_hopper_reference(streams, near, case.gelu, targets)
    want = cut(near, [product(stream, case.gelu) for stream in streams])
    ours, reference = (np.concatenate(x) for x in ([got[indices(one)].ravel() for one in near],
                                                   [host(x).ravel() for x in targets]))  # fmt: skip
    fused = linear_gelu_fused if case.gelu else linear_fused
    row = {"error": error(ours, want), "reference": error(reference, want), "stray": int((got[other] != POISON).sum()),
           "differ": differ, "far": float(np.abs(ours - want).max())}  # fmt: skip
    if case.biased:
        row["cublaslt"] = error(cut(near, [host(fused(*stream)) for stream in streams]), want)
    ok = fitting and row["error"] <= ROOM * row["reference"] + 1e-7 and row["stray"] == 0 and differ == 0
    return {"case": case.name, "dtype": dtype, **row, "ok": ok}


def cut(near: list[Rectangle], results: list[np.ndarray]) -> np.ndarray:
    """Returns what rectangles cut out of results, one behind the other."""
    return np.concatenate([
        results[one.stream][one.row : one.row + one.rows, one.column : one.column + one.columns].ravel() for one in near
    ])  # fmt: skip


def product(one: Product, gelu: bool) -> np.ndarray:
    """Returns the result in fp64."""
    x = host(one.x) @ host(one.weight) + (0 if one.bias is None else host(one.bias))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) if gelu else x


def check(shape: Shape, dtypes: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of one way to cut tiles, one of each further dtype."""
    for gelu in (False, True):
        tried = [
            (Case("small", (200, 33), 192, 320, gelu), whole, 1),
            (Case("one stream", (131, 0), 64, 192, gelu), whole, 1),
            (Case("small tiles", (77, 5), 128, 576, gelu), whole, 3),
            (Case("few steps", (700, 33), 256, 4608, gelu), whole, 3),
            (Case("heads", (600, 166), 384, 9 * 64, gelu), heads, 3),
            (Case("wide heads", (600, 84), 1536, 9 * 192, gelu), heads, 3),
            (Case("shards", (666, 194), 768, 448, gelu), shards, 3),
            (Case("many tiles", (3000, 333), 448, 2304, gelu), whole, 20),
        ]
        for case, where, repeats in tried:
            yield wrong(case, where(case), shape, "bfloat16", repeats)
    partial = Case("no bias", (666, 194), 768, 448, False, False)
    yield wrong(partial, shards(partial), shape, "bfloat16", 3)
    small = Case("other dtype", (200, 33), 192, 320, False)
    for dtype in dtypes:
        yield wrong(small, whole(small), shape, dtype, 1)


def recorded_us(device: Device, call: Callable[[], object], expected_us: float) -> float:
    """Returns microseconds of a call, of some recorded behind each other."""
    count = max(4, int(RECORDED_US / expected_us))
    graph = CapturedGraph(device, lambda: [call() for _ in range(count)][:0], warmups=1)
    graph()
    times = []
    for _ in range(ROUNDS):
        begin, end = Event(), Event()
        begin.record()
        graph()
        end.record()
        times.append(1e3 * begin.elapsed_ms(end) / count)
    graph.reset()
    return statistics.median(times)


def pair(streams: list[Product], gelu: bool) -> None:
    """The same by cuBLASLt."""
    for one in streams:
        paddle._C_ops.fused_gemm_epilogue(one.x, one.weight, one.bias, False, False, "gelu" if gelu else "none")


def ways(right: list[int]) -> dict[str, Shape | None]:
    """Returns what is timed, by name; None is what `linear_hopper` takes."""
    found: dict[str, Shape | None] = {"own": None} if {0, 3} <= set(right) else {}
    for number in right:
        shape = CHECKED[number]
        name = f"{64 * shape.groups}x{shape.columns} l{shape.lead}" + " c" * (shape.cluster > 1)
        found[name] = shape
        if number in (0, 3):
            found.update({f"{name} b{band}": shape._replace(band=band) for band in BANDS})
    return found


def timed(device: Device, case: Case, right: list[int]) -> Row:
    """Returns a row: microseconds of each way."""
    streams, memory = draw(case), paddle.zeros([sum(case.rows) * case.columns], dtype="bfloat16")
    there = [one._replace(address=one.address + memory.data_ptr()) for one in whole(case)]
    flop = 2 * sum(case.rows) * case.terms * case.columns
    expected = flop / 6e8 + 8
    row: Row = {"case": f"{case.name} {case.rows} {case.terms}x{case.columns}", "flop": flop, "us": {}}
    row["us"]["cublaslt"] = recorded_us(device, lambda: pair(streams, case.gelu), expected)
    for name, shape in ways(right).items():
        try:
            call = lambda shape=shape: linear_hopper(streams, there, case.gelu, shape)  # noqa: E731
            row["us"][name] = recorded_us(device, call, expected)
        except Exception as failure:
            row["failed"] = f"{name}: {type(failure).__name__}: {failure}"[:200]
    return row


def run(options: argparse.Namespace) -> None:
    """One process: prints its rows as they come."""
    device = choose("bfloat16", "nvgpu")
    device.activate()
    paddle.seed(0)
    gc.freeze()  # each recording collects garbage
    end = time.monotonic() + options.seconds
    with paddle.no_grad():
        if options.check is not None:
            for row in check(CHECKED[options.check], ("float16",) * (options.check in (0, 3, 6))):
                print(json.dumps({"way": options.check, **row}), flush=True)
            return
        for case in cases(options.time):
            if time.monotonic() < end:
                print(json.dumps(timed(device, case, options.right)), flush=True)
        synchronize()


def start(arguments: list[str], limit: float, module: str = "gpu_linear") -> tuple[list[Row], str]:
    """Returns a process's rows, and what went wrong; it is killed at the limit."""
    command = [sys.executable, "-W", "ignore", "-m", f"tests.kernels.{module}", *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=output, stderr=said)
        try:
            wrong = "" if process.wait(max(limit, 1)) == 0 else f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            wrong = f"killed after {limit:.0f} s"
        for file in (output, said):
            file.seek(0)
        rows = [json.loads(line) for line in output if line.startswith("{") and line.endswith("}\n")]
        return rows, f"{wrong}: {said.read()[-300:]}" if wrong else ""


def check_all() -> list[int]:
    """Prints what is wrong; returns which ways are right."""
    right = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda number: start(["--check", str(number)], CHECK_S), range(len(CHECKED)))
        for number, (rows, said) in enumerate(found):
            bad = [row for row in rows if not row["ok"]]
            fine = bool(rows) and not bad and not said
            worst = max((row["error"] / row["cublaslt"] for row in rows if "cublaslt" in row), default=0)
            print(
                "right" if fine else "WRONG", CHECKED[number], len(rows), "cases; error of cuBLASLt's:", f"{worst:.4f}"
            )
            for line in (*bad[:3], said):
                if line:
                    print("   ", line, flush=True)
            right += [number] if fine else []
    return right


def table(rows: list[Row]) -> None:
    """Prints a line for each product: cuBLASLt's time, the best of ours, and all of ours."""
    names = list(rows[0]["us"]) if rows else []
    print(
        f"{'product':34} cublaslt   best  gain TFLOP/s", " ".join(f"{name.replace(' ', '/'):>9}" for name in names[1:])
    )
    for row in rows:
        theirs, ours = row["us"]["cublaslt"], {name: us for name, us in row["us"].items() if name != "cublaslt"}
        best = min(ours, key=ours.__getitem__, default="")
        if best:
            print(f"{row['case']:34} {theirs:8.1f} {ours[best]:6.1f} {theirs / ours[best]:5.2f} "
                  f"{row['flop'] / ours[best] / 1e6:7.0f}", " ".join(f"{ours.get(name, 0):9.1f}" for name in names[1:]),
                  best, row.get("failed", ""))  # fmt: skip


def main() -> int:
    """Runs all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=95)
    parser.add_argument("--check", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--time", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--right", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check is not None or options.time is not None:
        run(options)
        return 0
    begin = time.monotonic()
    right = check_all()
    print(f"checked in {time.monotonic() - begin:.0f} s", flush=True)
    rows = []
    for group in range(2) if right else ():
        left = (begin + options.seconds - time.monotonic()) / (2 - group)
        arguments = ["--time", str(group), "--seconds", str(left - 8), "--right", *map(str, right)]
        found, said = start(arguments, left)
        rows += found
        print(f"timed {len(found)} of {len(cases(group))} {said}", flush=True)
    table(rows)
    return int(len(right) < len(CHECKED) or not rows)


if __name__ == "__main__":
    sys.exit(main())

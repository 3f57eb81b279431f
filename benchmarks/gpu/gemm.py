"""The linears of the MM-DiT: cuBLASLt's first choice and the tuned one, both streams at once, and the host in a step.

    python -m benchmarks.gpu.gemm [--parts first cold warm streams host]

Each part has a process of its own: "first" takes cuBLASLt's first choice, "cold" times its algorithms, "warm" finds
what "cold" kept. Prints one JSON object a line, then tables; the exit code is 1 if a product is wrong or a part fails.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par import device
from sd3par.device import CapturedGraph, Device, Event

PARTS = ("first", "cold", "warm", "streams", "host")
LIMIT_S = 60  # for one part
FLUSH_BYTES = 256 << 20  # more than any L2
HOT_ROWS = (8192, 666)  # of the products that are also timed back to back
ERROR = 4e-3  # relative, in the 2-norm: one rounding to bf16 is 1.7e-3
ALGORITHM = ("id", "tile", "split_k", "scheme", "swizzle", "custom", "stages", "inner", "cluster")  # cublasLt.h's order
Row = dict[str, Any]


class Product(NamedTuple):
    """x [rows, terms] @ weight + bias -> [rows, columns]; weight is [columns, terms] if transposed."""

    rows: int
    terms: int
    columns: int
    gelu: bool = False
    transposed: bool = False


def linears(rows: int, dim: int) -> list[Product]:
    """Returns one stream's of a block: QKV, attention's output, the MLP's two."""
    return [Product(rows, dim, 3 * dim), Product(rows, dim, dim), Product(rows, dim, 4 * dim, True),
            Product(rows, 4 * dim, dim)]  # fmt: skip


def products() -> list[Product]:
    """Returns those of SD3-medium at 1024 and 512 with 154, 333 and 589 text tokens, of SD3.5-large, and a few more."""
    main = [one for rows in (8192, 666) for one in linears(rows, 1536)]
    medium = [one for rows in (2048, 308, 1178) for one in linears(rows, 1536)]
    large = [one for rows in (8192, 666) for one in linears(rows, 2432)]
    others = [Product(56, 1536, 9216), Product(666, 4096, 1536), Product(8192, 1536, 64)]
    return [*main, *(one._replace(transposed=True) for one in main), *medium, *large, *others]


class Operands:
    """Random operands of a product; results of about 1."""

    def __init__(self, product: Product) -> None:
        rows, terms, columns, self.gelu, self.transposed = product
        shape = [columns, terms] if self.transposed else [terms, columns]
        self.x = paddle.randn([rows, terms]).astype("bfloat16")
        self.weight = (paddle.randn(shape) / terms**0.5).astype("bfloat16")
        self.bias = paddle.randn([columns]).astype("bfloat16")

    def multiply(self) -> Tensor:
        """Returns [rows, columns]."""
        activation = "gelu" if self.gelu else "none"
        result: Tensor = paddle._C_ops.fused_gemm_epilogue(
            self.x, self.weight, self.bias, False, self.transposed, activation
        )[0]
        return result

    def error(self, got: Tensor) -> float:
        """Returns the relative error against the same in fp32."""
        x, weight, bias = (one.astype("float32") for one in (self.x, self.weight, self.bias))
        want = paddle.matmul(x, weight, transpose_y=self.transposed) + bias
        want = F.gelu(want, approximate=True) if self.gelu else want
        return float(((got.astype("float32") - want).norm() / want.norm()).item())


def flushed_us(call: Callable[[], object], flush: Tensor, times: int = 15) -> float:
    """Returns the median microseconds of a call when nothing of what it reads is in the cache."""
    events = [(Event(), Event()) for _ in range(times)]
    for begin, end in events:
        flush.fill_(0.0)
        begin.record()
        call()
        end.record()
    return 1e3 * statistics.median(begin.elapsed_ms(end) for begin, end in events)


def replayed_us(function: Callable[[], object], times: int = 3) -> float:
    """Returns the microseconds of a recorded function, replayed some times in a row."""
    graph = CapturedGraph(card(), function)
    graph()
    begin, end = Event(), Event()
    begin.record()
    for _ in range(times):
        graph()
    end.record()
    result = 1e3 * begin.elapsed_ms(end) / times
    graph.reset()
    return result


def card() -> Device:
    """Returns the current device."""
    return Device(device.current(), "bfloat16")


def measure(product: Product, flush: Tensor, timed: bool) -> Row:
    """Returns one row; the first call's milliseconds are those of choosing an algorithm."""
    operands = Operands(product)
    device.synchronize()
    start = time.perf_counter()
    got = operands.multiply()
    device.synchronize()
    first_ms = 1e3 * (time.perf_counter() - start)
    digest = hashlib.sha256(got[::16].contiguous().view("int16").numpy().tobytes()).hexdigest()[:12]
    row = {**product._asdict(), "first_ms": first_ms, "digest": digest}
    if not timed:
        return row
    us = flushed_us(operands.multiply, flush)
    hot = replayed_us(lambda: [operands.multiply() for _ in range(20)][:0]) / 20 if product.rows in HOT_ROWS else None
    again = operands.multiply()
    flop = 2 * product.rows * product.terms * product.columns
    return {
        **row, "us": us, "hot_us": hot, "tflops": flop / us / 1e6, "error": operands.error(got),
        "equal": bool((got == again).all().item()),
    }  # fmt: skip


def measure_all(timed: bool) -> Iterator[Row]:
    """Yields a row for each product."""
    paddle.seed(0)
    flush = paddle.zeros([FLUSH_BYTES // 4])
    Operands(Product(16, 16, 16)).multiply()  # loads the library
    for product in products():
        try:
            yield measure(product, flush, timed)
        except Exception as error:  # the others still run
            yield {**product._asdict(), "failed": f"{type(error).__name__}: {error}"[-300:]}


def kept(file: Path) -> Iterator[Row]:
    """Yields what the file of tuned algorithms says of each product."""
    library = ctypes.CDLL(_cublaslt())
    for line in file.read_text(encoding="utf-8").splitlines():
        name, algorithm, note, _ = line.split("|")
        numbers = [int(word) for word in name.split(" kind ")[1].split()]
        words = (ctypes.c_uint64 * 8)(*(int(algorithm[i : i + 16], 16) for i in range(0, 128, 16)))
        yield {"kind": numbers[0], "m": numbers[1], "n": numbers[2], "k": numbers[3], "note": note,
               "algorithm": _attributes(library, words)}  # fmt: skip


def _attributes(library: ctypes.CDLL, algorithm: Any) -> dict[str, int]:
    """Returns an algorithm's attributes, as cuBLASLt numbers them."""
    found = {}
    for number, name in enumerate(ALGORITHM):
        value, written = ctypes.c_uint64(0), ctypes.c_size_t()
        size = ctypes.c_size_t(2 if name in ("inner", "cluster") else 4)
        arguments = (ctypes.byref(algorithm), number, ctypes.byref(value), size, ctypes.byref(written))
        if library.cublasLtMatmulAlgoConfigGetAttribute(*arguments) == 0:
            found[name] = value.value
    return found


def _cublaslt() -> str:
    """Returns the path of the library that this process has loaded, or its name."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return next((line.split(maxsplit=5)[5] for line in maps if "libcublasLt.so" in line), "libcublasLt.so.13")


def streams() -> Iterator[Row]:
    """Yields the milliseconds of all linears of 24 blocks: each stream alone, one after the other, and at once."""
    paddle.seed(0)
    image, text = ([[Operands(one) for one in linears(rows, 1536)] for _ in range(24)] for rows in (8192, 666))
    for name, blocks in (("image", [image]), ("text", [text]), ("in turn", [image, text])):
        us = replayed_us(lambda blocks=blocks: in_turn(*blocks))  # type: ignore[misc]
        yield {"streams": name, "how": "graph", "ms": us / 1e3}
    side = paddle.device.Stream()
    for name, function in (
        ("in turn", lambda: in_turn(image, text)), ("at once", lambda: at_once(image, text, side))
    ):  # fmt: skip
        yield {"streams": name, "how": "eager", "ms": eager_ms(function)}
    try:
        yield {"streams": "at once", "how": "graph", "ms": replayed_us(lambda: at_once(image, text, side)) / 1e3}
    except Exception as error:
        yield {"streams": "at once", "how": "graph", "failed": f"{type(error).__name__}: {error}"[-300:]}


def in_turn(*blocks: list[list[Operands]]) -> None:
    """Runs the linears of one or both streams, block by block, QKV of both first."""
    for together in zip(*blocks, strict=True):
        for linear in zip(*together, strict=True):
            for operands in linear:
                operands.multiply()


def at_once(image: list[list[Operands]], text: list[list[Operands]], side: Any) -> list[Tensor]:
    """Runs the text's on a stream of their own, which joins where attention needs both, and at the end of a block.

    Returns all results: none may be given other memory before the end.
    """
    results, main = [], paddle.device.current_stream()
    for image_block, text_block in zip(image, text, strict=True):
        for part in (slice(0, 1), slice(1, 4)):
            side.wait_stream(main)
            with paddle.device.stream_guard(side):
                results += [operands.multiply() for operands in text_block[part]]
            results += [operands.multiply() for operands in image_block[part]]
            main.wait_stream(side)
    return results


def eager_ms(function: Callable[[], object]) -> float:
    """Returns the median milliseconds of a call; the device has other work first, so the host is ahead."""
    head, times = Operands(Product(8192, 8192, 8192)), []
    for _ in range(5):
        begin, end = Event(), Event()
        for _ in range(10):
            head.multiply()
        begin.record()
        held = function()
        end.record()
        times.append(begin.elapsed_ms(end))
        del held
    return statistics.median(times[2:])


def run_part(part: str) -> int:
    """Prints the rows of one part; returns the exit code."""
    device.choose("bfloat16", "nvgpu").activate()
    if part == "host":
        from benchmarks.gpu.host import probe

        rows = probe()
    else:
        rows = streams() if part == "streams" else measure_all(part != "warm")
    right = True
    with paddle.no_grad():
        for row in rows:
            right &= "failed" not in row and row.get("error", 0) <= ERROR and row.get("equal", True)
            print(json.dumps({"bench": "gemm", "part": part, **row}), flush=True)
    if part == "cold":
        for row in kept(Path(os.environ["NVGPU_TUNING"])):
            print(json.dumps({"bench": "gemm", "part": "kept", **row}), flush=True)
    return int(not right)


def start(part: str, tuning: Path) -> tuple[list[Row], bool]:
    """Runs a part in a process of its own; returns its rows and whether it ended well."""
    environment = {**os.environ, "NVGPU_TUNING": "off" if part == "first" else str(tuning)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.gemm", "--run", part]
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    print(f"{part}: exit code {process.returncode} after {time.perf_counter() - begin:.1f} s", flush=True)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows, process.returncode == 0


def table(found: dict[str, list[Row]]) -> None:
    """Shows products side by side, then what the other parts say."""
    print(f"{'product':38} {'first us':>9} {'tuned us':>9} {'gain':>5} {'hot':>7} {'TFLOP/s':>8} {'ms to choose':>12} "
          "warm error")  # fmt: skip
    for number, product in enumerate(products()):
        first, cold, warm = (row(found.get(part, []), number) for part in ("first", "cold", "warm"))
        name = title(*product)
        if "us" not in cold or "us" not in first:
            print(name, first.get("failed", ""), cold.get("failed", ""))
            continue
        same = "same" if warm.get("digest") == cold["digest"] else "OTHER BITS"
        gain, hot = first["us"] / cold["us"], cold["hot_us"] or 0
        print(f"{name:38} {first['us']:9.1f} {cold['us']:9.1f} {gain:5.2f} {hot:7.1f} {cold['tflops']:8.0f} "
              f"{cold['first_ms']:12.1f} {same} {cold['error']:.1e}")  # fmt: skip
    for one in found.get("cold", []):
        if one["part"] == "kept":
            name = title(one["m"], one["k"], one["n"], one["kind"] >> 2 & 3 == 2, bool(one["kind"] & 1))
            print(f"{name:38} {one['note']}: " + " ".join(f"{key} {value}" for key, value in one["algorithm"].items()))
    for part in ("first", "cold", "warm"):
        seconds = sum(one.get("first_ms", 0) for one in found.get(part, [])) / 1e3
        print(f"{part}: {seconds:.2f} s in the first calls of all products")
    for one in found.get("streams", []):
        print(f"linears of 24 blocks, {one['streams']} ({one['how']}): {one.get('ms', one.get('failed'))}")
    for one in found.get("host", []):
        print(f"host: {one['what']}: {one.get('seen', one.get('failed'))}")


def title(rows: int, terms: int, columns: int, gelu: bool, transposed: bool) -> str:
    """Returns what a product is called in the tables."""
    return f"{rows} x {terms} x {columns}" + " gelu" * gelu + " [out, in]" * transposed


def row(rows: list[Row], number: int) -> Row:
    """Returns a product's row, {} where the part did not come that far."""
    measured = [one for one in rows if one["part"] != "kept"]
    return measured[number] if number < len(measured) else {}


def main() -> int:
    """Runs the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run_part(options.run)
    found, right = {}, True
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            found[part], ended = start(part, Path(folder) / "gemm.txt")
            right &= ended
    table(found)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())

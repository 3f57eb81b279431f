"""What programs launch, and what the same functions do eagerly, on the dry device: python -m tests.static.launched DIR

Prints one JSON object: case and size -> "" where all launches are alike, else how they differ. LD_LIBRARY_PATH names a
folder with the dry driver (dry_cuda.cc), and DRY_LAUNCHES the file in which it notes launches.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import triton
from paddle import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sd3par.kernels import runtime, static
from sd3par.kernels.static import library, table
from sd3par.kernels.static.compile import driver
from tests.static.operator_cases import CASES, MAPS, MODEL, SIZES, Case, save, untranslated, zeros

DTYPE = "bfloat16"
# Nothing divides these sizes: eager code is compiled for them as programs are, and Triton has it in its cache.
LARGE = {"R": 2, "T": 4095, "C": 333, "H": 255, "W": 257}
ADDRESS = 1 << 40  # from here on, numbers are addresses
WIDTHS = {"p": 8, "i32": 4, "i64": 8}


class Kernel(NamedTuple):
    """A line of the file of kernels."""

    name: str
    threads: int
    shared: int
    constants: str
    leaves: list[str]


class Launch(NamedTuple):
    """What was launched, on which grid, with which values: None, a number, ("at", what lies there), parts of a map."""

    name: str
    constants: str
    grid: tuple[int, ...]
    threads: int
    shared: int
    values: tuple[object, ...]


def size_of(leaf: str) -> list[int]:
    kind, *rest = leaf.split(":")
    if kind == "t":
        rank = rest[-1].count("x") + 1
        return [128, *[4] * rank, *[8] * rank]
    return [WIDTHS[kind]] if kind in WIDTHS else []


def without_code(file: Path) -> list[Kernel]:
    """Rewrites the file of kernels: what the dry driver wants as code. Returns its lines."""
    head, *rest = file.read_bytes().split(b"\n", 1)[0:2]
    count = int(head.split()[2])
    lines = [line.decode().split() for line in rest[0].split(b"\n", count)[:count]]
    kernels, texts, codes = [], [], b""
    for number, words in enumerate(lines):
        leaves = words[8].split(",")
        sizes = [size for leaf in leaves for size in size_of(leaf)]
        code = " ".join(map(str, [number, *sizes, 8, 8, 0])).encode() + b"\0"
        kernels.append(Kernel(words[0], 32 * int(words[3]), int(words[4]), words[7], leaves))
        texts.append(" ".join([*words[:5], str(len(codes)), str(len(code)), *words[7:]]))
        codes += code
    file.write_bytes("\n".join([head.decode(), *texts, ""]).encode() + codes)
    return kernels


def constants_of(source: Any) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(table._constants(source))) or "-"


class Memory:
    """What lies where: inputs and results of a call, by name."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int, int]] = []

    def name(self, tensors: list[Tensor], kind: str) -> None:
        for number, x in enumerate(tensors):
            self.places.append((f"{kind} {number}", x.data_ptr(), x.size * x.element_size()))

    def at(self, address: int) -> tuple[object, ...]:
        found = {
            (name, address - start) for name, start, size in self.places if start <= address < start + max(size, 1)
        }
        return ("at", frozenset(found or {("scratch", 0)}))


def eager_values(source: Any, metadata: Any, arguments: tuple[object, ...], memory: Memory) -> tuple[object, ...]:
    """The values of an eager launch, constants left out, in the order of the leaves; boxes as Triton has them."""
    found: list[object] = []
    boxes = iter([one["block_size"] for one in metadata.tensordesc_meta or ()])

    def walk(one: object) -> None:
        if isinstance(one, tuple):
            for inner in one:
                walk(inner)
        elif isinstance(one, Tensor):
            found.append(memory.at(one.data_ptr()))
        elif isinstance(one, int) and one >= ADDRESS:  # of a launch from memory
            found.append(memory.at(one))
        elif isinstance(one, TensorDescriptor) or hasattr(one, "block_shape"):
            size = one.base.element_size()
            strides = [stride * size for stride in one.strides[:-1]]
            box = tuple(next(boxes))
            found.append(("map", memory.at(one.base.data_ptr()), tuple(one.shape), tuple(strides), box))
        else:
            found.append(one)

    for parameter, one in zip(source.fn.params, arguments, strict=True):
        if not parameter.is_constexpr:
            walk(one)
    return tuple(found)


def program_values(leaves: list[str], values: list[bytes], memory: Memory) -> tuple[object, ...]:
    """The same of a program's launch."""
    given, found = iter(values), []
    for leaf in leaves:
        kind, *rest = leaf.split(":")
        if kind == "none":
            found.append(None)
        elif kind[0] == "=":
            found.append(int(kind[1:]))
        elif kind == "p":
            found.append(memory.at(int.from_bytes(next(given), "little")))
        elif kind == "t":
            found.append(map_of(next(given), rest, given, memory))
        else:
            number = int.from_bytes(next(given), "little", signed=True)
            found.append(memory.at(number) if number >= ADDRESS else number)
    assert [int.from_bytes(one, "little") for one in given] == [0, 0]  # both addresses of scratch memory
    return tuple(found)


def map_of(value: bytes, leaf: list[str], given: Any, memory: Memory) -> tuple[object, ...]:
    numbers, rank = struct.unpack("<16q", value), leaf[-1].count("x") + 1
    shape, strides, box = numbers[2 : 2 + rank], numbers[6 : 5 + rank], numbers[10 : 10 + rank]
    assert numbers[1] == int(leaf[3]) * 16 + int(leaf[1])  # dtype and swizzle
    again = [int.from_bytes(next(given), "little", signed=True) for _ in range(2 * rank)]
    assert again[:rank] == list(shape[::-1]) and again[rank:-1] == [one // int(leaf[2]) for one in strides[::-1]]
    assert again[-1] == 1
    return ("map", memory.at(numbers[0]), shape[::-1], strides[::-1], box[::-1])


def noting(launches: list[Any]) -> Any:
    """Returns a driver for eager launches, which notes them."""
    made: list[Any] = []
    stub = driver(90, made)

    def launcher(source: Any, metadata: Any) -> Any:
        made.append(type("Made", (), {"asm": {}})())
        return lambda *given: launches.append((source, metadata, given[:3], given[9:]))

    stub.launcher_cls = launcher
    return stub


def alike(one: object, other: object) -> bool:
    """Whether two values are; in place, one address has several names."""
    if isinstance(one, tuple) and isinstance(other, tuple) and one and one[0] == "at" and other[0] == "at":
        return bool(one[1] & other[1])
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def listed(made: Any) -> list[Tensor]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def programs(log: Path, kernels: list[Kernel], memory: Memory) -> list[Launch]:
    """What the dry driver noted."""
    found = []
    for line in log.read_text().splitlines():
        number, x, y, z, threads, shared, _, *values = line.split()
        kernel = kernels[int(number)]
        given = program_values(kernel.leaves, [bytes.fromhex(one) for one in values], memory)
        grid = (int(x), int(y), int(z))
        found.append(Launch(kernel.name, kernel.constants, grid, int(threads), int(shared), given))
    return found


def eagers(launches: list[Any], memory: Memory) -> list[Launch]:
    """What Triton's driver noted."""
    found = []
    for source, metadata, grid, arguments in launches:
        values = eager_values(source, metadata, arguments, memory)
        threads = 32 * metadata.num_warps
        found.append(Launch(source.fn.__name__, constants_of(source), tuple(grid), threads, metadata.shared, values))
    return found


def difference(found: list[Launch], wanted: list[Launch]) -> str:
    """Returns "" if the launches are alike, else what differs first."""
    if len(found) != len(wanted):
        return f"{len(found)} launches for {len(wanted)}: {found} {wanted}"
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one[:5] != other[:5] or len(one.values) != len(other.values):
            return f"{number}: {one} for {other}"
        wrong = [(i, a, b) for i, (a, b) in enumerate(zip(one.values, other.values, strict=True)) if not alike(a, b)]
        if wrong:
            return f"{number}, {one.name}: {wrong}"
    return ""


def compare(case: Case, sizes: dict[str, int], program: Any, kernels: list[Kernel], launches: list[Any]) -> str:
    given, log = zeros(case, sizes, DTYPE), Path(os.environ["DRY_LAUNCHES"])
    log.write_text("")
    with paddle.no_grad():
        made = listed(program(*given))
    launches.clear()
    results = case.function(*given)
    shapes = [x.shape for x in made], [x.shape for x in results]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes}"
    memories = []
    for each in (made, results):
        memory = Memory()
        memory.name(given, "input")
        memory.name(each, "result")
        memories.append(memory)
    return difference(programs(log, kernels, memories[0]), eagers(launches, memories[1]))


def main() -> None:
    folder = Path(sys.argv[1])
    paddle.set_device("cpu")
    untranslated()
    with static.tracing(DTYPE, [90]):
        for number, case in enumerate(CASES):
            save(case, folder / f"case{number}", DTYPE)
    static.write_operators(folder, DTYPE, [90], MODEL, maps=MAPS)
    kernels = without_code(folder / "sd3par_kernels.bin")
    library.open_kernels(folder / "sd3par_kernels.bin")
    paddle.set_device("nvgpu:0")
    triton.knobs.compilation.disable_line_info = True  # as programs' kernels
    launches: list[Any] = []
    runtime._driver = lambda: noting(launches)
    runtime._activate()
    found: dict[str, str] = {}
    counts: dict[str, int] = {}
    for number, case in enumerate(CASES):
        program = paddle.jit.load(str(folder / f"case{number}"))
        program.eval()
        for sizes in (LARGE, SIZES[-1]):
            found[f"{case.name} {sizes}"] = compare(case, sizes, program, kernels, launches)
            counts[case.name] = len(launches)
    print(
        json.dumps(
            {"wrong": {name: why for name, why in found.items() if why}, "checked": len(found), "launches": counts}
        )
    )


if __name__ == "__main__":
    main()

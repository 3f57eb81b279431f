"""Group norm with SiLU: forms of its kernels and of their launches, checked, then timed with cold caches.

On one H200, from the root: python benchmarks/gpu/group_norm_ways.py. Prints one JSON object a line, then a table. Each
part runs in a process of its own with a limit, so that one that hangs or fails ends alone. --compile prints registers
and instructions of every form for sm_90, without a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"silu": 15, "plain": 60, "late": 30, "decode": 60}  # seconds that each may take from its turn on
HELPERS, COMPILED_S = 10, 40  # processes that compile beforehand, and how long they may
BEGAN = time.monotonic()
ERRORS: dict[tuple[str, ...], IO[str]] = {}  # what each process says


def started(*words: str) -> subprocess.Popen[str]:
    """Returns this file in a process of its own, which waits for a line."""
    errors = ERRORS.setdefault(words, tempfile.TemporaryFile("w+"))  # noqa: SIM115 (read when the process is over)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        [sys.executable, __file__, *words], env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=errors, text=True, start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], limit: float) -> str:
    """Lets a process go on; returns what it printed, with what it died of. It is killed at the limit."""
    end = ""
    try:
        out, _ = process.communicate("go\n", timeout=max(limit, 1.0))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        end = f"killed after {limit} s"
    if process.returncode and not end:
        end = f"exit code {process.returncode}"
    if not end:
        return out
    words = tuple(process.args[2:])
    ERRORS[words].seek(0)
    return out + json.dumps({"failed": end, "words": words, "said": ERRORS[words].read()[-1500:]}) + "\n"


def lead() -> int:
    """Starts all parts, lets them go on one by one, prints what they found; returns the exit code."""
    helpers = [started("--share", f"{i}/{HELPERS}") for i in range(HELPERS)]
    parts = {name: started("--part", name) for name in PARTS}
    said = "".join(finished(helper, BEGAN + COMPILED_S - time.monotonic()) for helper in helpers)
    print(json.dumps({"s": round(time.monotonic() - BEGAN, 1), "compiled": said or "all"}), flush=True)
    rows = []
    for name, limit in PARTS.items():
        text = finished(parts[name], limit)
        print(text + json.dumps({"s": round(time.monotonic() - BEGAN, 1), "part": name, "over": True}), flush=True)
        rows += [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    print(table(rows))
    return int(any("failed" in row or row.get("wrong") for row in rows))


def table(rows: list[dict]) -> str:
    """Returns microseconds, a line a form and a column a map, and as a share of a copy's speed; then the rest."""
    times = {(row["way"], row["map"]): row for row in rows if "us" in row}
    maps = list(dict.fromkeys(row["map"] for row in rows if "us" in row))
    copies = {row["map"]: row["copy_us"] for row in rows if "copy_us" in row}
    ways = list(dict.fromkeys(row["way"] for row in rows if "us" in row))
    lines = [f"{'':34}" + "".join(f"{name:>20}" for name in maps)]
    lines += [f"{'a copy of as many bytes, us':34}" + "".join(f"{copies.get(name, 0):20.2f}" for name in maps)]
    for way in ways:
        found = [times.get((way, name)) for name in maps]
        cells = (f"{row['us']:11.2f} ({row['share']:6.1%})" if row else "-" for row in found)
        lines.append(f"{way:34}" + "".join(f"{cell:>20}" for cell in cells))
    lines += [json.dumps(row) for row in rows if "us" not in row and "copy_us" not in row]
    return "\n".join(lines)


if __name__ == "__main__" and len(sys.argv) == 1:
    sys.exit(lead())

sys.path[:1] = [str(ROOT)]
from collections.abc import Callable  # noqa: E402
from functools import partial as bound  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle import Tensor  # noqa: E402

from sd3par.kernels.group_norm_silu import PARTS as MOST_PARTS  # noqa: E402
from sd3par.kernels.group_norm_silu import Cut, _partial, group_norm_silu_triton, merged  # noqa: E402
from sd3par.kernels.runtime import empty, jit, launch, next_power_of_2, tl  # noqa: E402
from sd3par.kernels.silu import silu as silu_of_tree  # noqa: E402

MAPS = [(128, 512), (64, 512), (256, 512), (512, 512), (512, 256)]  # side, channels


# SiLU -----------------------------------------------------------------------------------------------------------------
# e = exp(x) of x at most 30 ln 2, from where on 1 + e is e: two of them multiplied stay finite. NaN gets there too.
POWER = "mul.f32 e{i}, ${x}, 0f3FB8AA3B; min.f32 e{i}, e{i}, 0f41F00000; ex2.approx.ftz.f32 e{i}, e{i};\n"
PAIR = """add.f32 a, e{i}, 0f3F800000; fma.rn.f32 e{i}, e{i}, e{j}, e{i}; mul.f32 e{j}, e{j}, a;
add.f32 a, a, e{j}; rcp.approx.ftz.f32 a, a;
mul.f32 e{i}, e{i}, a; mul.f32 e{j}, e{j}, a; mul.f32 ${i}, ${x}, e{i}; mul.f32 ${j}, ${y}, e{j};
"""  # e0 (1 + e1) and e1 (1 + e0), both by (1 + e0) (1 + e1)
ONE = """mul.f32 a, ${x}, 0fBFB8AA3B; ex2.approx.ftz.f32 a, a; add.f32 a, a, 0f3F800000; rcp.approx.ftz.f32 a, a;
mul.f32 ${i}, ${x}, a;
"""


def sharing(count: int, pairs: int) -> tuple[str, str]:
    """Returns the assembly of the SiLU of `count` numbers, `pairs` of them with one reciprocal; its constraints."""
    text = f"{{ .reg .f32 a, e<{count}>;\n"
    for i in range(0, 2 * pairs, 2):
        text += POWER.format(i=i, x=count + i) + POWER.format(i=i + 1, x=count + i + 1)
        text += PAIR.format(i=i, j=i + 1, x=count + i, y=count + i + 1)
    text += "".join(ONE.format(i=i, x=count + i) for i in range(2 * pairs, count))
    return text + "}", ",".join(["=&f"] * count + ["f"] * count)


PAIR_TEXT, PAIR_KINDS = map(tl.constexpr, sharing(2, 1))
MIXED_TEXT, MIXED_KINDS = map(tl.constexpr, sharing(4, 1))


@jit
def _silu(x, HOW: tl.constexpr):
    """HOW: exact; fast, which is approximate; pair, or mixed, half of it pairs, which share a reciprocal; tree."""
    if HOW == "exact":
        y = x * tl.sigmoid(x)
    elif HOW == "fast":
        power = x * -1.4426950408889634
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], tl.float32, True, 1)
        y = x * tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)
    elif HOW == "pair":
        y = tl.inline_asm_elementwise(PAIR_TEXT, PAIR_KINDS, [x], tl.float32, True, 2)
    elif HOW == "mixed":
        y = tl.inline_asm_elementwise(MIXED_TEXT, MIXED_KINDS, [x], tl.float32, True, 4)
    else:
        y = silu_of_tree(x)
    return y


@jit
def _only_silu(x, out, HOW: tl.constexpr, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + place, _silu(tl.load(x + place).to(tl.float32), HOW).to(out.dtype.element_ty))


# The three kernels ----------------------------------------------------------------------------------------------------
@jit
def _statistics(x, partial, pixels, parts, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """Launched ordinarily, so that x is there; the merge may start at once."""
    tl.extra.cuda.gdc_launch_dependents()
    _partial(x, partial, pixels, parts, GROUPS, CHANNELS, ROWS)


@jit
def _merging(
    partial, statistics, pixels, parts, GROUPS: tl.constexpr, SOME: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    if LATE:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0) * SOME + tl.arange(0, SOME)
    mean, variance = merged(partial, image, group, pixels, parts, GROUPS, CHANNELS, ROWS, PARTS)
    out = statistics + image * 2 * GROUPS + group
    tl.store(out, mean)
    tl.store(out + GROUPS, tl.rsqrt(variance + EPSILON))


@jit
def _norm(
    x, statistics, weight, bias, out, pixels, SILU: tl.constexpr, HOW: tl.constexpr, FOLDED: tl.constexpr,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, LATE: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """FLAT: addresses are one number a program and others that are known.

    What it reads before it waits was there before the statistics began, which were launched ordinarily.
    """
    image = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, CHANNELS)
    pixel = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
    if FLAT:
        first = (image * pixels + (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS) * CHANNELS
        x, out = x + first, out + first
        place = tl.arange(0, ROWS)[:, None] * CHANNELS + column[None, :]
    else:
        place = (image * pixels + pixel.to(tl.int64))[:, None] * CHANNELS + column[None, :]
    inside = (pixel < pixels)[:, None]
    value = tl.load(x + place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    scale, shift = tl.load(weight + column).to(tl.float32), tl.load(bias + column).to(tl.float32)
    if LATE:
        tl.extra.cuda.gdc_wait()
    group = statistics + image * 2 * GROUPS + column // (CHANNELS // GROUPS)
    mean, factor = tl.load(group), tl.load(group + GROUPS) * scale
    if FOLDED:
        value = value * factor[None, :] + (shift - mean * factor)[None, :]
    else:
        value = (value - mean[None, :]) * factor[None, :] + shift[None, :]
    if SILU:
        value = _silu(value, HOW)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


class Way(NamedTuple):
    """SiLU's form; whether the norm is one instruction a number; groups a program merges; the norm's tile and warps."""

    name: str
    how: str
    folded: bool = True
    some: int = 1
    tile: int = 2048
    warps: int = 2
    late: bool = False  # the merge and the norm are started while what they wait for runs
    flat: bool = True


PLAIN = [
    Way("before", "exact", False, 8, flat=False),
    Way("before, merge of 1", "exact", False, flat=False),
    Way("fast, merge of 8, long addresses", "fast", True, 8, flat=False),
    Way("fast, merge of 8", "fast", True, 8),
    Way("fast, merge of 2", "fast", True, 2),
    Way("fast, long addresses", "fast", flat=False),
    Way("fast", "fast"),
    Way("fast, not folded", "fast", False),
    Way("fast 4096/4", "fast", tile=4096, warps=4),
    Way("fast 4096/2", "fast", tile=4096),
    Way("fast 1024/2", "fast", tile=1024),
    Way("pair", "pair"),
    Way("pair, not folded", "pair", False),
    Way("pair, merge of 2", "pair", True, 2),
    Way("pair 4096/2", "pair", tile=4096),
    Way("mixed", "mixed"),
    Way("mixed, not folded", "mixed", False),
]
LATE = [
    Way("late before", "exact", False, 8, late=True, flat=False),
    Way("late fast", "fast", late=True),
    Way("late pair", "pair", late=True),
    Way("late mixed", "mixed", late=True),
]


def normed(way: Way, x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> Tensor:
    """x: [B, H, W, C] -> the norm as `way` has it."""
    images, height, width, channels = x.shape
    pixels, cut, norm = height * width, Cut.of(x, groups), Cut.of(x, groups, way.tile, way.warps)
    late = {"launch_pdl": True} if way.late else {}
    parts = min(-(-pixels // cut.rows), max(MOST_PARTS // images, 1))
    partial = empty([images, parts, 2, groups], x, paddle.float32)
    statistics, out = empty([images, 2, groups], x, paddle.float32), empty(x.shape, x)
    launch(_statistics if way.late else _partial, (parts, images), x, partial, pixels, parts, **cut.reading())
    some = min(way.some, groups)
    launch(
        _merging, (groups // some, images), partial, statistics, pixels, parts, EPSILON=epsilon, LATE=way.late,
        **{**cut.reading(), "SOME": some, "PARTS": next_power_of_2(parts), "num_warps": 4}, **late,
    )  # fmt: skip
    launch(
        _norm, (-(-pixels // norm.rows), images), x, statistics, weight, bias, out, pixels, SILU=silu, HOW=way.how,
        FOLDED=way.folded, LATE=way.late, FLAT=way.flat, **norm.reading(), **late,
    )  # fmt: skip
    return out


# Checks ---------------------------------------------------------------------------------------------------------------
def show(**row: object) -> None:
    """Prints a row."""
    print(json.dumps(row), flush=True)


def host(x: Tensor) -> np.ndarray:
    """Returns x in fp64."""
    return x.astype("float32").numpy().astype(np.float64)


def beyond(got: np.ndarray, want: np.ndarray, dtype: str, near: float) -> float:
    """Returns the most that errors are, of half a unit of dtype and 1e-5 of the value; `near`: of 1 around 0."""
    digits, least = {"bfloat16": (8, -133), "float16": (11, -24), "float32": (24, -149)}[dtype]
    with np.errstate(divide="ignore"):
        unit = np.exp2(np.maximum(np.floor(np.log2(np.abs(want))) + 1 - digits, least))
    return float((np.abs(got - want) / (unit / 2 + 1e-5 * np.abs(want) + near)).max())


def silus() -> None:
    """Each form of all half-precision numbers from -100 to 100, of many fp32 ones, and of those that are none."""
    words = np.arange(1 << 16, dtype=np.uint32)
    bf16, fp16 = (words << 16).view(np.float32), words.astype(np.uint16).view(np.float16).astype(np.float32)
    numbers = {"bfloat16": bf16, "float16": fp16, "float32": np.linspace(-100, 100, 1 << 20, dtype=np.float32)}
    odd = np.array([np.nan, 1, np.inf, 2, -np.inf, 3, 3e38, 4, -3e38, 5, -0.0, 6], np.float32)
    for how in ("exact", "fast", "pair", "mixed", "tree"):
        row: dict[str, object] = {"silu": how}
        for dtype, every in numbers.items():
            x = every[np.abs(every) <= 100]  # not NaN either
            x = np.random.default_rng(1).permutation(np.concatenate([x, x[: -x.size % 1024]]))
            exact = x.astype(np.float64)
            want = exact / (1 + np.exp(-exact))
            given = paddle.to_tensor(x).astype(dtype)
            out = paddle.empty_like(given)
            launch(_only_silu, (x.size // 1024,), given, out, HOW=how, SIZE=1024, num_warps=2)
            got, small = host(out), exact < -87.3
            row[dtype] = round(beyond(got[~small], want[~small], dtype, 0.0), 4)
            row[f"{dtype} below -87.3"] = float(np.abs(got - want)[small].max(initial=0.0))
        given = paddle.to_tensor(np.resize(odd, 1024))
        out = paddle.empty_like(given)
        launch(_only_silu, (1,), given, out, HOW=how, SIZE=1024, num_warps=2)
        row["of " + " ".join(map(str, odd))] = " ".join(f"{one:g}" for one in out.numpy()[: odd.size])
        row["wrong"] = not all(row[dtype] <= 1.0 for dtype in ("bfloat16", "float16")) or row["float32"] > 1.0
        show(**row)


def exactly(x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, silu: bool) -> np.ndarray:
    """Returns the norm in fp64, on the CPU."""
    parts = host(x).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    centred = parts - parts.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + epsilon)).reshape(x.shape)
    y = y * host(weight) + host(bias)
    return y / (1 + np.exp(-y)) if silu else y


def checked(call: Callable[..., Tensor]) -> float:
    """Returns the largest error of norms with means of four deviations, of `beyond`'s unit; of an uneven map too."""
    worst = 0.0
    for shape, dtype in (((1, 64, 64, 512), "bfloat16"), ((2, 33, 35, 256), "float16"), ((1, 7, 3, 128), "bfloat16")):
        x = paddle.randn(shape) * 0.5 + 2.0 * paddle.sin(paddle.arange(shape[-1], dtype="float32"))
        weight, bias = paddle.randn(shape[-1:]).astype(dtype), paddle.randn(shape[-1:]).astype(dtype)
        for silu in (True, False):
            arguments = (x.astype(dtype), 32, weight, bias, 1e-6, silu)
            worst = max(worst, beyond(host(call(*arguments)), exactly(*arguments), dtype, 1e-5))
    return worst


def raced(call: Callable[..., Tensor]) -> float:
    """Returns how much results differ on a map that was written just before, again and again, from those of before."""
    sources = [paddle.randn([1, 128, 128, 512]).astype("bfloat16") * (1.0 + i) + i for i in range(3)]
    vector, worst = paddle.randn([512]).astype("bfloat16"), 0.0
    wants = [normed(PLAIN[0], x, 32, vector, vector, 1e-6, True) for x in sources]
    x, outs = paddle.empty_like(sources[0]), []
    for source in sources * 5:
        paddle.assign(source, x)
        outs.append(call(x, 32, vector, vector, 1e-6, True))
    for out, want in zip(outs, wants * 5, strict=True):
        worst = max(worst, float(((out - want).astype("float32").abs() / (want.astype("float32").abs() + 0.5)).max()))
    return worst  # one unit of bf16, 2**-7 at most, where sums round the other way


def right(name: str, call: Callable[..., Tensor]) -> bool:
    """Returns whether a form's results are right; shows its errors."""
    try:
        error, difference = checked(call), raced(call)
    except Exception as failure:
        show(way=name, failed=f"{type(failure).__name__}: {failure}"[:500])
        return False
    wrong = not (error <= 1.0 and difference <= 2**-6)
    show(way=name, error=round(error, 4), difference=round(difference, 5), wrong=wrong)
    return not wrong


# Times ----------------------------------------------------------------------------------------------------------------
def on_all(call: Callable[..., Tensor], every: list[tuple[Any, ...]]) -> list[Tensor]:
    """Returns the results of all, or all would be written to the same memory."""
    return [call(*one) for one in every]


def times(card: Any, ways: list[Way | None]) -> None:
    """Times forms that are right; None is the tree's."""
    from benchmarks.gpu.bandwidth import COLD_BYTES, copy_us, normal, replay_us

    calls = {way.name if way else "tree": bound(normed, way) if way else group_norm_silu_triton for way in ways}
    calls = {name: call for name, call in calls.items() if right(name, call)}
    for side, channels in MAPS:
        name, size = f"{side} x {side} x {channels}", 6 * side * side * channels
        sets = max(3, int(COLD_BYTES / size))
        every = [(normal(1, side, side, channels), 32, normal(channels), normal(channels), 1e-6, True)
                 for _ in range(sets)]  # fmt: skip
        copied = copy_us(card, size)
        show(map=name, copy_us=round(copied, 2))
        for way, call in calls.items():
            rounds = 3 if side == 128 else 1
            try:
                us = min(replay_us(card, bound(on_all, call, every), sets) for _ in range(rounds))
                show(way=way, map=name, us=round(us, 2), share=round(copied / us, 4))
            except Exception as failure:
                show(way=way, on=name, failed=f"{type(failure).__name__}: {failure}"[:500])


def decodes(card: Any) -> None:
    """The whole decoder, recorded, with one form and another, twice."""
    from benchmarks.gpu.decode import drawn, loaded, timed
    from sd3par import kernels
    from sd3par.mesh import Mesh

    mesh = Mesh.single()
    vae, latents = loaded(card.dtype, mesh), drawn((1024, 1024))
    pairs = next(way for way in PLAIN if way.name == "pair")
    ways = {"before": bound(normed, PLAIN[0]), "tree": group_norm_silu_triton, "pair": bound(normed, pairs)}
    for turn in range(2):
        for name, call in ways.items():
            kernels.group_norm_silu_triton = call
            show(decode="1024 x 1024", way=name, turn=turn, ms=timed(card, mesh, vae.decode, latents))


def part(name: str) -> None:
    """Runs one part when a line comes."""
    from sd3par.device import choose

    card = choose("bfloat16")
    sys.stdin.readline()
    card.activate()
    paddle.seed(0)
    with paddle.no_grad():
        if name == "silu":
            silus()
        elif name == "decode":
            decodes(card)
        else:
            times(card, [*PLAIN, None] if name == "plain" else [PLAIN[0], *LATE])


# Compilation without a GPU --------------------------------------------------------------------------------------------
def compile_for_hopper(ways: list[Way]) -> None:
    """Compiles what the forms launch, into Triton's cache."""
    import triton

    from sd3par.kernels import runtime
    from tests.kernels.compiled import stub

    paddle.set_device("cpu")
    runtime._driver = lambda: None
    runtime._activate()
    triton.runtime.driver.set_active(stub(90, []))
    for side, channels in MAPS:
        x, vector = paddle.zeros([1, side, side, channels], dtype="bfloat16"), paddle.zeros([channels], "bfloat16")
        for way in ways:
            normed(way, x, 32, vector, vector, 1e-6, True)


def compiled() -> None:
    """Prints registers, spills and instructions of the norm's forms."""
    from triton.backends.nvidia.compiler import get_ptxas

    from tests.kernels.compiled import assembled

    compile_for_hopper([*PLAIN, *LATE])
    objdump = Path(get_ptxas(90).path).with_name("cuobjdump")
    for made in _norm.device_caches[90][0].values():
        names, said = made.src.fn.arg_names, assembled(made.asm["ptx"])
        values = {names[key[0]]: value for key, value in made.src.constants.items() if len(key) == 1}
        with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
            code.write(made.asm["cubin"])
            code.flush()
            command = [str(objdump), "-sass", code.name]
            sass = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)(?:\.([A-Z0-9]+))?", sass)
        known = {name: values[name] for name in ("HOW", "FOLDED", "FLAT", "CHANNELS", "ROWS", "LATE")}
        show(
            **known, warps=made.metadata.num_warps, registers=re.findall(r"Used (\d+) registers", said)[0],
            spills=re.findall(r"(\d+) bytes spill", said), shared=made.metadata.shared, instructions=len(found),
            powers=found.count(("MUFU", "EX2")), reciprocals=found.count(("MUFU", "RCP")),
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "--part":
        part(sys.argv[2])
    elif sys.argv[1] == "--share":
        number, count = map(int, sys.argv[2].split("/"))
        compile_for_hopper([*PLAIN, *LATE][number::count])
    else:
        compiled()

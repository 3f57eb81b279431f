"""Attention on Hopper with tiles split along their keys, and scattered: python -m tests.kernels.gpu_attention_split

Runs its parts in processes of their own, so that one that hangs or crashes leaves the others: results against fp64
in both dtypes, where errors may be those of rounding, the same bits each time, and times of ways to split. `--part
NAME` runs one. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Device, Event, choose
from sd3par.kernels.attention import Scattered, attention_triton, query_scale
from sd3par.kernels.attention_hopper import _arrived, attention_hopper
from sd3par.kernels.attention_hopper_split import Plan, cost, planned, plans
from sd3par.kernels.runtime import processors
from tests.kernels.attention_rounding import Queries, Steps, attended, queries_of
from tests.kernels.gpu_attention import host

PARTS = {"bfloat16": 80, "float16": 80, "repeat": 60, "times": 40}  # and their limits in seconds
Limit = tuple[float, float]
Ratios = dict[str, list[list[float]]]
# Of ratios of errors, all queries' and the worst 64 queries': CLOSE to what rounding alone makes of the same steps, in
# attention_rounding.py; ROOM to the same kernel unsplit.
CLOSE, ROOM = ((1 / 1.1, 1.1), (1 / 1.1, 1.1)), ((0.0, 1.05), (0.0, 1.3))
ANY = ((0.0, float("inf")), (0.0, float("inf")))
LARGE, SMALL = (4096, 333), (1024, 333)
TIMED = [(2, LARGE, 24), (1, LARGE, 24), (2, LARGE, 12), (1, LARGE, 12), (1, LARGE, 6), (1, LARGE, 3), (2, LARGE, 6),
         (2, SMALL, 24), (1, SMALL, 24), (2, SMALL, 12), (1, SMALL, 12), (1, SMALL, 6), (1, SMALL, 3), (2, SMALL, 6),
         (1, (16384, 333), 12)]  # fmt: skip
CALLS, ROUNDS, REPEATS = 20, 7, 50


class Case(NamedTuple):
    """rows, tokens of each segment, heads; keys are `rise` times as long from token `since` on, counted over both."""

    rows: int
    tokens: tuple[int, ...]
    heads: int
    since: int = 0
    rise: float = 1.0
    far: int = 0  # blocks of keys from one that is far below all others to the next, as in `_far`
    behind: int = 0  # poisoned tokens behind each segment's last


CASES = [
    Case(2, LARGE, 24), Case(1, LARGE, 24), Case(1, LARGE, 12), Case(2, LARGE, 6), Case(1, LARGE, 6, behind=5),
    Case(1, LARGE, 3), Case(1, LARGE, 10), Case(1, LARGE, 19), Case(2, LARGE, 3), Case(1, (4096, 154), 12),
    Case(1, SMALL, 3), Case(1, SMALL, 6, behind=1), Case(2, SMALL, 3), Case(1, SMALL, 10), Case(2, SMALL, 19),
    Case(1, (4429,), 6), Case(1, (1000, 77), 5, behind=3), Case(1, (777,), 3, behind=2), Case(2, (130, 257), 2),
    Case(1, (0, 500), 2), Case(1, (300, 1), 1), Case(1, (100, 100), 1), Case(1, (130,), 66),
]  # fmt: skip
# Weights relative to the first block's scores get infinite, in all tiles or in some; parts lie far from each other.
RISING = [
    Case(1, LARGE, 12, 4096, 60.0), Case(1, LARGE, 12, 4096, 10.0), Case(1, LARGE, 12, 2500, 60.0),
    Case(1, LARGE, 12, 1792, 30.0), Case(1, LARGE, 6, 4096, 60.0), Case(1, LARGE, 6, 3000, 12.0),
    Case(1, SMALL, 3, 1024, 60.0), Case(1, SMALL, 3, 900, 10.0), Case(1, LARGE, 24, 4096, 12.0),
    Case(1, LARGE, 12, far=7), Case(1, LARGE, 6, far=7), Case(1, SMALL, 3, far=3),
]  # fmt: skip
SEVERAL_WAYS = (Case(1, SMALL, 6, behind=1), Case(1, LARGE, 12), Case(1, LARGE, 12, 4096, 10.0))


class Errors(NamedTuple):
    """Root mean squares, relative to the results': of all queries, and of the worst 64."""

    all: float
    worst: float


def made(case: Case, dtype: str) -> list[Tensor]:
    """Returns its segments [R, Ti, 3, heads, 64], views into poison."""
    found, before = [], 0
    poison = 1e4 if dtype == "bfloat16" else np.nan
    for i, count in enumerate(case.tokens):
        shape = (case.rows, count + case.behind, 3, case.heads, 64)
        values = np.random.default_rng(17 * i + count).standard_normal(shape, np.float32) * 1.5
        values[:, :, 0] *= query_scale(64)
        values[:, max(0, case.since - before) :, 1] *= case.rise
        if case.far:
            _far(values[:, :count], before, 128 * case.far)
        values[:, count:] = poison
        found.append(paddle.to_tensor(values).astype(dtype)[:, :count])
        before += count
    return found


def _far(values: np.ndarray, before: int, period: int) -> None:
    """values: [R, T, 3, heads, 64], behind `before` tokens: every row's weights are the same few powers of two.

    One key's is 1. Of each `period` the first 128 have 2^-129, where parts begin; relative to those, the sums of the
    others, of 2^-18 to 2^-14, are almost infinite, and what brings them back is next to nothing.
    """
    token = before + np.arange(values.shape[1])
    exponent = np.where(token % period < 128, -129.0, -16.0 + 2 * np.sin(token))
    exponent[token == 7] = 0.0
    values[:, :, :2] = 0.0
    values[:, :, 0, :, 0] = 1.0
    values[:, :, 1, :, 0] = exponent[None, :, None]


class Probe(NamedTuple):
    """What is checked of a case's last row: some queries of some heads, each [3, S, 64] fp64; want: [n, 64] fp64."""

    case: Case
    queries: Queries
    heads: dict[int, np.ndarray]
    want: dict[int, np.ndarray]

    def errors(self, outs: list[Tensor]) -> Errors:
        """outs: [R, Ti, heads * 64]."""
        last = np.concatenate([host(x[-1]) for x in outs])[self.queries.tokens]
        return self._errors({head: last[:, 64 * head : 64 * head + 64] for head in self.heads})

    def simulated(self, steps: Steps) -> Errors:
        """The errors of a kernel that computes in these steps, by its rounding alone."""
        first = (self.case.rows - 1) * self.case.heads
        blocks, tokens = _sizes(self.case)[1], self.case.tokens
        return self._errors({head: attended(qkv, tokens, self.queries, (first + head) * blocks, steps)
                             for head, qkv in self.heads.items()})  # fmt: skip

    def _errors(self, found: dict[int, np.ndarray]) -> Errors:
        apart = np.stack([found[head] - one for head, one in self.want.items()])
        if not np.isfinite(apart).all():
            return Errors(float("inf"), float("inf"))
        size = np.sqrt(np.mean(np.stack([*self.want.values()]) ** 2))
        groups = [np.sqrt(np.mean(apart[:, group] ** 2, axis=(1, 2))).max() for group in self.queries.groups]
        return Errors(float(np.sqrt(np.mean(apart**2)) / size), float(max(groups) / size))


def probed(case: Case, segments: list[Tensor]) -> Probe:
    """segments: [R, Ti, 3, heads, 64]."""
    queries = queries_of(case.tokens, 5 if sum(case.tokens) > 1000 else 1)
    numbers = sorted({0, *range(max(0, case.heads - 3), case.heads)})
    heads = {i: np.concatenate([host(x[-1, :, :, i]) for x in segments]).transpose(1, 0, 2) for i in numbers}
    want = {}
    for head, (q, k, v) in heads.items():
        scores = q[queries.tokens] @ k.T
        weights = np.exp2(scores - scores.max(1, keepdims=True))
        want[head] = weights @ v / weights.sum(1, keepdims=True)
    return Probe(case, queries, heads, want)


def wrong(case: Case, dtype: str, seen: Ratios) -> Iterator[str]:
    """Says what is wrong with a case: unsplit, as planned and, of some cases, split in every way."""
    segments, (tiles, blocks) = made(case, dtype), _sizes(case)
    probe, calm = probed(case, segments), case.rise == 1.0 and not case.far
    other, first = probe.errors(attention_triton(segments)), Plan(tiles, 0, blocks)
    if calm:
        yield from beyond("attention_triton to its rounding", other, probe.simulated(Steps(64, dtype)), CLOSE, seen)
    every = _plans(case) if case in SEVERAL_WAYS else [planned(tiles, blocks, processors())]
    unsplit = None
    for plan in dict.fromkeys([first, *every]):
        outs = attention_hopper(segments, plan=plan)
        found, simulated = probe.errors(outs), probe.simulated(Steps(128, dtype, dtype == "bfloat16", plan))
        unsplit = unsplit or found
        if calm:
            yield from beyond("attention_hopper to its rounding", found, simulated, CLOSE, seen, plan)
            if plan == first:
                yield from beyond("attention_hopper to attention_triton", found, other, ANY, seen, plan)
            else:
                yield from beyond("split to unsplit", found, unsplit, ROOM, seen, plan)
        else:  # tiles done again have the other kernel's errors, which are those of scores too, the others more
            yield from beyond("rising, attention_hopper to attention_triton", found, other, ANY, seen, plan)
            most = [max(room[1] * a + 1e-7, CLOSE[0][1] * b) for room, a, b in zip(ROOM, other, simulated, strict=True)]
            if not all(a <= b < 0.1 for a, b in zip(found, most, strict=True)):
                yield f"{tuple(plan)}: {found}, simulated {simulated}, attention_triton {other}"
        if case.rows * case.heads <= 12:
            shards = scattered(segments, plan)
            if not all(np.array_equal(host(a), host(b)) for a, b in zip(outs, shards, strict=True)):
                yield f"{tuple(plan)}: scattered it is not the same"


def beyond(
    what: str, found: Errors, other: Errors, limits: tuple[Limit, Limit], seen: Ratios, plan: Plan | None = None
) -> Iterator[str]:
    """Says so if the ratio of errors to others is outside of limits; keeps ratios."""
    ratios = [a / b for a, b in zip(found, other, strict=True)]
    seen[what].append(ratios)
    if not all(least <= x <= most for x, (least, most) in zip(ratios, limits, strict=True)):
        yield f"{plan and tuple(plan)}: {what} {found}, {other}"


def right(dtype: str) -> bool:
    """Checks all cases; prints what is wrong, and how large errors are against others."""
    failed: list[str] = []
    seen: Ratios = defaultdict(list)
    for case in [*CASES, *RISING] if dtype == "bfloat16" else [*CASES[2:], *RISING[:5]]:
        failed += [f"{case} {said}" for said in wrong(case, dtype, seen)]
    counters = [int(host(x).max()) for x in _arrived.values()]
    print(f"{dtype}: {len(failed)} failed; counters {counters}", *failed[:12], sep="\n  ")
    for what, ratios in seen.items():
        (least, least_worst), (most, most_worst) = np.min(ratios, 0), np.max(ratios, 0)
        print(f"  {what}: {least:.3f} to {most:.3f}, worst 64 {least_worst:.3f} to {most_worst:.3f}; {len(ratios)}")
    return not failed and counters == [0]


def scattered(segments: list[Tensor], plan: Plan | None = None) -> list[Tensor]:
    """segments: [R, Ti, 3, heads, 64] -> their results [R, Ti, heads * 64] by way of three shards each, in poison."""
    rows, _, _, heads, dim = segments[0].shape
    width, outs, memory = heads * dim, [], []
    for x in segments:
        size = max(1, -(-x.shape[1] // 3))
        memory.append([paddle.full([rows, size + 2, width + 128], 7.0).astype(x.dtype) for _ in range(3)])
        token_stride = width + 128
        first = [shard.data_ptr() + 2 * (token_stride + 64) for shard in memory[-1]]
        outs.append(Scattered(paddle.to_tensor(first, dtype="int64"), size, (size + 2) * token_stride, token_stride))
    attention_hopper(segments, outs, plan)
    found = []
    for x, shards in zip(segments, memory, strict=True):
        values = [host(shard) for shard in shards]
        for shard in values:
            assert (shard[:, [0, -1]] == 7).all() and (shard[:, :, :64] == 7).all() and (shard[:, :, -64:] == 7).all()
        inner = np.concatenate([shard[:, 1:-1, 64:-64] for shard in values], axis=1)
        assert (inner[:, x.shape[1] :] == 7).all()
        found.append(paddle.to_tensor(inner[:, : x.shape[1]].astype(np.float32)))
    return found


def repeat(device: Device) -> bool:
    """Prints how many of the repeats of a recording, and beside it, gave other bits than the first call."""
    well = True
    for dtype in ("bfloat16", "float16"):
        for case in (Case(1, LARGE, 12), Case(1, LARGE, 6), Case(1, SMALL, 3), RISING[1], RISING[4]):
            segments = made(case, dtype)
            first = [host(x) for x in attention_hopper(segments)]
            graph = CapturedGraph(device, lambda segments=segments: attention_hopper(segments))
            other = 0
            for i in range(REPEATS):
                outs = graph() if i % 2 else attention_hopper(segments)
                other += not all(np.array_equal(a, host(b)) for a, b in zip(first, outs, strict=True))
            graph.reset()
            print(f"{dtype} {case}: {other} of {REPEATS} repeats differ")
            well &= other == 0
    return well


def _sizes(case: Case) -> tuple[int, int]:
    """Returns how many tiles, and how many blocks of keys for each."""
    return case.rows * case.heads * sum(-(-x // 128) for x in case.tokens), sum(-(-x // 128) for x in case.tokens)


def _plans(case: Case) -> list[Plan]:
    return plans(*_sizes(case), processors())


def microseconds(device: Device, call: object) -> float:
    """Returns the median over rounds of a recording of many calls."""
    graph = CapturedGraph(device, lambda: [call() for _ in range(CALLS)] and None)
    graph()
    events = [Event() for _ in range(ROUNDS + 1)]
    events[0].record()
    for event in events[1:]:
        graph()
        event.record()
    found = [1e3 * a.elapsed_ms(b) / CALLS for a, b in pairwise(events)]
    graph.reset()
    return statistics.median(found)


def times(device: Device) -> bool:
    """Prints a line a shape: unsplit, as planned, the fastest of all ways, and what the model of costs says."""
    lines = []
    for rows, tokens, heads in TIMED:
        case = Case(rows, tokens, heads)
        segments = [paddle.randn([rows, x, 3, heads, 64]).astype("bfloat16") for x in tokens]
        sizes = (*_sizes(case), processors())
        ways = sorted(_plans(case), key=lambda plan: cost(plan, *sizes))
        kept = dict.fromkeys([Plan(sizes[0], 0, sizes[1]), *ways[:5]])
        us = {plan: microseconds(device, lambda p=plan, s=segments: attention_hopper(s, plan=p)) for plan in kept}
        planned_us = microseconds(device, lambda s=segments: attention_hopper(s))
        unsplit, fastest = us[next(iter(kept))], min(us, key=us.__getitem__)
        flops = 4 * rows * heads * sum(tokens) ** 2 * 64
        lines.append(f"{rows} {heads:2d} {sum(tokens):5d} tiles {sizes[0]:4d} | unsplit {unsplit:6.1f} planned "
                     f"{planned_us:6.1f} ({planned_us / unsplit:.3f}, {flops / planned_us / 1e6:.0f} TFLOP/s) fastest "
                     f"{us[fastest]:6.1f} {tuple(fastest)}")  # fmt: skip
        for plan, one in us.items():
            print(f"{rows} {heads} {sum(tokens)} {tuple(plan)}: {one:.1f} us, predicted {cost(plan, *sizes):.1f}")
    segments = [paddle.randn([1, x, 3, 12, 64]).astype("bfloat16") for x in LARGE]
    room = [paddle.zeros([2, x, 1536], dtype="bfloat16") for x in LARGE]
    outs = [
        Scattered(paddle.to_tensor([x[0].data_ptr(), x[1].data_ptr()], dtype="int64"), -(-x.shape[1] // 2),
                  x.shape[1] * 1536, 1536) for x in room
    ]  # fmt: skip
    lines.append(f"1 12 4429 to two local shards: {microseconds(device, lambda: attention_hopper(segments, outs)):.1f}")
    print("rows heads tokens", *lines, sep="\n")
    return True


def run_all() -> Iterator[tuple[str, bool, str]]:
    """Runs every part in a process of its own, times alone, the others together; yields name, success and output."""
    for names in (["bfloat16", "float16", "repeat"], ["times"]):
        begin = time.monotonic()
        command = [sys.executable, "-m", "tests.kernels.gpu_attention_split", "--part"]
        started = {
            name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for name in names
        }
        for name, process in started.items():
            try:
                said = process.communicate(timeout=max(1.0, PARTS[name] - (time.monotonic() - begin)))[0]
            except subprocess.TimeoutExpired:
                process.kill()
                said = process.communicate()[0] + f"\n{name} hung: killed after {PARTS[name]} s"
            yield name, process.returncode == 0, said


@paddle.no_grad()
def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    if part is None:
        results = list(run_all())
        for name, passed, said in results:
            print(f"== {name}: {'passed' if passed else 'FAILED'}", said[-6000:].strip(), sep="\n")
        return int(not all(passed for _, passed, _ in results))
    device = choose()
    device.activate()
    checks = {"repeat": lambda: repeat(device), "times": lambda: times(device)}
    return int(not (checks[part]() if part in checks else right(part)))


if __name__ == "__main__":
    sys.exit(main())

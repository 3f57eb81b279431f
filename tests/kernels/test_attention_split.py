"""How attention on Hopper deals out its tiles: the functions that its kernel calls, run in Python for every program."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from sd3par.kernels import query_scale
from sd3par.kernels.attention_hopper_split import Plan, cost, planned, plans, programs_of
from tests.kernels.attention_rounding import Steps, attended, queries_of, rounded, starts_of
from tests.kernels.test_kernels import needs_triton

PROGRAMS = 132  # of an H200
SIZES = [(420, 35), (210, 35), (840, 35), (1680, 35), (105, 35), (66, 11), (33, 11), (132, 11), (1572, 131), (1, 35),
         (133, 35), (263, 7), (1, 1), (131, 2), (5, 3), (400, 1), (131, 35), (67, 4)]  # fmt: skip


# Tiles and blocks of keys: plans and their microseconds on an H200, whose processors are PROGRAMS.
MEASURED = {
    (1680, 35): {(1680, 0, 35): 448.6, (1584, 26, 35): 440.8}, (840, 35): {(840, 0, 35): 239.9, (792, 13, 35): 227.3},
    (420, 35): {(420, 0, 35): 139.7, (396, 7, 35): 120.8}, (210, 35): {(210, 0, 35): 73.8, (132, 21, 35): 68.3},
    (105, 35): {(105, 0, 35): 43.1, (0, 28, 35): 41.9}, (528, 11): {(528, 0, 11): 55.8},
    (264, 11): {(264, 0, 11): 31.5}, (132, 11): {(132, 0, 11): 19.1}, (66, 11): {(66, 0, 11): 18.8, (0, 6, 12): 17.0},
    (33, 11): {(33, 0, 11): 18.7, (0, 3, 12): 15.4, (0, 4, 12): 14.9, (0, 6, 12): 16.5},
    (1572, 131): {(1572, 0, 131): 1554.0, (1452, 120, 131): 1555.4},
}  # fmt: skip


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch):
    """Returns the module, its functions callable from Python, and a way to be a program."""
    module = importlib.import_module("sd3par.kernels.attention_hopper_split")
    now = SimpleNamespace(program=0)
    language = SimpleNamespace(
        program_id=lambda axis: now.program, num_programs=lambda axis: now.programs, minimum=min, maximum=max,
        where=lambda condition, yes, no: yes if condition else no, cdiv=lambda a, b: -(-a // b),
    )  # fmt: skip
    monkeypatch.setattr(module, "gl", language)
    return SimpleNamespace(turns=module._turns.fn, turn=module._turn.fn, programs=module._programs.fn, now=now)


def dealt(split: SimpleNamespace, plan: Plan, tiles: int, blocks: int, programs: int) -> dict[int, list]:
    """Returns for each tile who does what of it: (program, start, end)."""
    found: dict[int, list] = {tile: [] for tile in range(tiles)}
    split.now.programs = programs
    for program in range(programs):
        split.now.program = program
        for count in range(split.turns(plan)):
            tile, start, end = split.turn(count, tiles, blocks, plan)
            if start < end:
                found[tile].append((program, start, end))
    return found


@needs_triton
@pytest.mark.parametrize(("tiles", "blocks"), SIZES)
def test_every_block_of_keys_is_taken_once(split: SimpleNamespace, tiles: int, blocks: int) -> None:
    for plan in plans(tiles, blocks, PROGRAMS):
        programs = programs_of(plan, tiles, PROGRAMS)
        numbers, busy = set(), set()
        for tile, parts in dealt(split, plan, tiles, blocks, programs).items():
            assert [block for _, start, end in parts for block in range(start, end)] == [*range(blocks)]
            assert tuple(start for _, start, _ in parts) == starts_of(plan, tile, blocks)
            busy |= {program for program, _, _ in parts}
            if tile < plan.whole:
                assert len(parts) == 1
            elif len(parts) > 1:  # else its program finds it whole
                first, count = split.programs(tile - plan.whole, blocks, plan)
                assert [program for program, _, _ in parts] == [*range(first, first + count)]
            numbers |= {tile - plan.whole + program for program, _, _ in parts if tile >= plan.whole}
        assert len(numbers) == sum(
            len(parts) for tile, parts in dealt(split, plan, tiles, blocks, programs).items() if tile >= plan.whole
        )
        assert max(numbers, default=0) < tiles - plan.whole + programs
        assert busy == {*range(programs)}


@pytest.mark.parametrize("sizes", MEASURED)
def test_the_fastest_of_measured_plans_is_chosen(sizes: tuple[int, int]) -> None:
    measured = {Plan(*plan): us for plan, us in MEASURED[sizes].items()}
    assert planned(*sizes, PROGRAMS) == min(measured, key=measured.__getitem__)
    for plan, us in measured.items():
        assert plan in plans(*sizes, PROGRAMS)
        assert cost(plan, *sizes, PROGRAMS) == pytest.approx(us, rel=0.1)


@pytest.mark.parametrize(("tokens", "heads", "rise"), [((300, 77), 3, 1.0), ((0, 290), 1, 1.0), ((260, 200), 2, 40.0)])
def test_steps_without_rounding_are_attention(tokens: tuple[int, int], heads: int, rise: float) -> None:
    """Split or not, relative to whichever scores, done again or not."""
    q, k, v = np.random.default_rng(1).standard_normal((3, sum(tokens), 64)) * 1.5
    k[tokens[0] :] *= rise
    queries, blocks = queries_of(tokens, 1), sum(-(-count // 128) for count in tokens)
    q *= query_scale(64)
    scores = q @ k.T
    weights = np.exp2(scores - scores.max(1, keepdims=True))
    want = weights @ v / weights.sum(1, keepdims=True)
    tiles = blocks * heads
    assert [*queries.tokens] == [*range(sum(tokens))]
    for plan in (None, Plan(tiles, 0, blocks), Plan(0, 2, blocks), Plan(tiles - 1, 1, blocks)):
        for keys, anchored in ((128, True), (128, False), (64, False)):
            steps = Steps(keys, "float64", anchored, plan if keys == 128 else None)
            got = attended(np.stack([q, k, v]), tokens, queries, tiles - blocks, steps)
            assert np.abs(got - want).max() < 1e-5, steps


def test_rounding_to_bfloat16_is_that_of_paddle() -> None:
    x = np.ldexp(np.random.default_rng(2).standard_normal(4096, np.float32), np.arange(-64, 64).repeat(32))
    halves = (np.arange(1024, dtype=np.uint32) << 15 | 0x3F800000).view(np.float32)
    for some in (x, halves, np.float32([0.0, 1.0, np.inf])):
        assert (rounded(some, "bfloat16") == paddle.to_tensor(some).astype("bfloat16").astype("float32").numpy()).all()

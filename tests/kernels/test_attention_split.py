"""How attention on Hopper deals out its tiles: the functions that its kernel calls, run in Python for every program."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from sd3par.kernels.attention_hopper_split import Plan, cost, planned, plans
from tests.kernels.test_kernels import needs_triton

PROGRAMS = 132  # of an H200
SIZES = [(420, 35), (210, 35), (840, 35), (1680, 35), (105, 35), (66, 11), (33, 11), (132, 11), (1572, 131), (1, 35),
         (133, 35), (263, 7), (1, 1), (131, 2), (5, 3), (400, 1), (131, 35), (67, 4)]  # fmt: skip


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch):
    """Returns the module, its functions callable from Python, and a way to be a program."""
    module = importlib.import_module("sd3par.kernels.attention_hopper_split")
    now = SimpleNamespace(program=0)
    language = SimpleNamespace(
        program_id=lambda axis: now.program, num_programs=lambda axis: now.programs, to_tensor=int, minimum=min,
        maximum=max, where=lambda condition, yes, no: yes if condition else no, cdiv=lambda a, b: -(-a // b),
    )  # fmt: skip
    monkeypatch.setattr(module, "gl", language)
    return SimpleNamespace(turns=module._turns.fn, turn=module._turn.fn, programs=module._programs.fn, now=now)


def dealt(split: SimpleNamespace, plan: Plan, tiles: int, blocks: int, programs: int) -> dict[int, list]:
    """Returns for each tile who does what of it: (program, start, end)."""
    found: dict[int, list] = {tile: [] for tile in range(tiles)}
    split.now.programs, divided = programs, plan.whole < tiles
    for program in range(programs):
        split.now.program = program
        for count in range(0 if divided else 2, split.turns(plan)):
            tile, start, end = split.turn(count, tiles, blocks, plan, divided)
            if start < end:
                found[tile].append((program, start, end))
    return found


@needs_triton
@pytest.mark.parametrize(("tiles", "blocks"), SIZES)
def test_every_block_of_keys_is_taken_once(split: SimpleNamespace, tiles: int, blocks: int) -> None:
    for plan in plans(tiles, blocks, PROGRAMS):
        programs = PROGRAMS if plan.whole < tiles else min(tiles, PROGRAMS)
        numbers = set()
        for tile, parts in dealt(split, plan, tiles, blocks, programs).items():
            assert [block for _, start, end in parts for block in range(start, end)] == [*range(blocks)]
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


def test_tiles_are_split_where_that_helps() -> None:
    assert planned(4 * PROGRAMS, 35, PROGRAMS) == Plan(4 * PROGRAMS, 0, 35)
    assert planned(1680, 35, PROGRAMS) == Plan(1584, 26, 35)  # 13 turns, the last nearly full: 443 us, unsplit 481
    assert planned(420, 35, PROGRAMS) == Plan(396, 7, 35)  # 24 tiles, of five programs each
    assert planned(210, 35, PROGRAMS) == Plan(132, 21, 35)
    for tiles, blocks in SIZES:
        plan = planned(tiles, blocks, PROGRAMS)
        assert cost(plan, tiles, blocks, PROGRAMS) <= cost(Plan(tiles, 0, blocks), tiles, blocks, PROGRAMS)

"""The model of a step's time: its fit, its bytes, the rule of `auto` beside it, and the page that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling, step_time
from benchmarks.scaling import chosen, fastest, legal, work_of
from benchmarks.step_time import Network, loop_s, sent
from sd3par.config import ParallelConfig

LARGEST_ERROR = {"four": 0.03, "attention": 0.02, "loop": 0.025}  # of what the model was fitted to


def test_fit() -> None:
    for what, _, _, error in scaling.calibration():
        assert abs(float(error.split()[0])) / 100 <= LARGEST_ERROR[what.replace(",", " ").split()[0]], what


def test_bytes() -> None:
    work = work_of("sd3-medium", 1024)
    numbers = 24 * 2 * (4096 + 333) * 1536  # of both streams and rows, in all blocks
    halved = 24 * 2 * (2048 + 167) * 1536
    assert sent(work, ParallelConfig()) == (0, 0, 0, 0)
    assert sent(work, ParallelConfig(sp=2)) == (2 * (3 + 1) * halved / 2, 0, 0, 48)
    assert sent(work, ParallelConfig(mp=2)) == (2 * (numbers / 2 + numbers / 4), 2 * 2 * numbers / 2, 0, 96)
    assert sent(work, ParallelConfig(dp=2)) == (0, 0, 2 * 4096 * 64, 0)
    assert sent(work_of("sd3-medium", 1024, 2), ParallelConfig(dp=2)).gathered == 0
    dual = work_of("sd3.5-medium", 1024)
    assert sent(dual, ParallelConfig(sp=2)).hidden == pytest.approx(2 * 4 * (halved + 13 * 2 * 2048 * 1536) / 2)


@pytest.mark.parametrize("model", scaling.MODELS)
@pytest.mark.parametrize("px", scaling.SIZES)
def test_rule_takes_what_should_be_fastest_or_nearly(model: str, px: int) -> None:
    work = work_of(model, px)
    for cards in (2, 4, 8):
        assert loop_s(work, chosen(work, cards)) <= 1.03 * loop_s(work, fastest(work, cards))


def test_more_cards_of_a_host_are_faster() -> None:
    work = work_of("sd3-medium", 1024)
    times = [loop_s(work, chosen(work, cards)) for cards in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    assert {mesh.world for mesh in legal(work, 8)} == {8}


def test_another_host_is_farther_away() -> None:
    work, far = work_of("sd3-medium", 1024), Network(cards=4)
    for mesh in (ParallelConfig(sp=8), ParallelConfig(mp=8), ParallelConfig(dp=2, sp=4)):
        assert loop_s(work, mesh, far) >= loop_s(work, mesh)
    assert loop_s(work, ParallelConfig(dp=2, sp=4), far) < 1.02 * loop_s(work, ParallelConfig(dp=2, sp=4))
    assert loop_s(work, ParallelConfig(sp=8), far) > 1.2 * loop_s(work, ParallelConfig(sp=8))


def row(**values: object) -> dict[str, object]:
    return {
        "run_id": "a", "who": "sd3par", "engine": "graph", "model": "sd3-medium", "height": 1024, "width": 1024,
        "images": 1, "guidance": 7.0, "text_tokens": 333, "steps": 28, "dp": 1, "mp": 1, "sp": 1, "world": 1,
        "loop_s": 0.9, "image_s": 1.0, "peak_gib": 5.0, "commit": "abc", "when": "2026-01-01", **values,
    }  # fmt: skip


def test_ratios_are_to_one_card_with_as_many_rows() -> None:
    rows = [row(), row(guidance=1.0, loop_s=0.5), row(dp=2, world=2, loop_s=0.45)]
    assert [line[5] for line in scaling.comparison(rows)] == ["1.00", "1.00", "2.00"]


def test_page_shows_the_newest_rows(tmp_path: Path) -> None:
    two = {"dp": 2, "world": 2, "transport": "collective"}
    rows = [
        row(), row(**two, loop_s=0.6), row(**two, loop_s=0.45, when="2026-01-02"), row(dp=2, world=2, loop_s=0.1),
        row(sp=2, world=2, transport="collective", loop_s=0.2), row(sp=2, world=2, transport="peer", failed="no"),
        row(steps=20, loop_s=0.2), row(who="diffusers", loop_s=0.3), row(engine="eager", loop_s=0.4),
    ]  # fmt: skip
    del rows[5]["loop_s"]
    (tmp_path / "parallel.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    every = list(scaling.loops(tmp_path))
    found = scaling.newest_of(every)
    assert [(each["dp"], each["loop_s"]) for each in found] == [(1, 0.9), (2, 0.45)]
    lines = list(scaling.comparison(every))
    assert lines[1][:6] == ("sd3-medium, 1 of 1024 x 1024", "dp2", "2", "0.450", "1.000", "2.00")
    page = scaling.page(step_time.ONE_HOST, tmp_path)
    assert "| dp2 | 2 | 0.450 |" in page and "{" not in page

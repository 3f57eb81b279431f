"""How often a rank of `sd3par bench` calls, and what it says of autoencoder and text encoders."""

from __future__ import annotations

import dataclasses
import time
from contextlib import nullcontext

import pytest

from sd3par import SD3Pipeline
from sd3par.captured import EAGER_CALLS
from sd3par.launch import cli
from sd3par.launch.bench import parts
from sd3par.launch.bench.case import Case
from sd3par.launch.bench.kinds import KINDS
from sd3par.launch.bench.parts import Measurer, calls

CASE = Case("batch", "pictures", "eager", 32, 32, 1, 1, 7.0, 4, warm_ups=2, repeats=3)


@pytest.fixture(scope="module")
def pipe() -> SD3Pipeline:
    return SD3Pipeline.from_pretrained("tiny", device="cpu")


@pytest.mark.parametrize("case_s, seeds", [(None, [0, 1, 2, 3, 4]), (0.0, [0, 1, 2]), (60.0, [0, 1, 2, 3, 4])])
def test_a_case_that_takes_long_is_called_less(pipe: SD3Pipeline, case_s: float | None, seeds: list[int]) -> None:
    called = []

    def call(seed: int) -> int:
        time.sleep(0.002)
        called.append(seed)
        return seed

    assert calls(pipe, dataclasses.replace(CASE, case_s=case_s), 2, call) == [seed for seed in seeds if seed > 1]
    assert called == seeds


def test_a_shape_that_is_warm_needs_one_call_to_warm_up(pipe: SD3Pipeline) -> None:
    measurer = Measurer(pipe)
    first = measurer.measure(CASE)
    second = measurer.measure(dataclasses.replace(CASE, guidance=8.0))
    third = measurer.measure(dataclasses.replace(CASE, steps=2, engine="plain"))
    assert [row["warm_ups"] for row in (first, second, third)] == [2, 1, 2]
    assert [row["engine"] for row in (first, second, third)] == ["eager", "eager", "plain"]
    assert third["step_ms"] == pytest.approx(500 * third["loop_s"])
    assert first["loop_s"] < first["image_s"] and first["case_s"] > 0 and len(first["loops_s"]) == 3


def test_what_is_recorded_has_enough_calls_before_one_counts(
    pipe: SD3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third call of a shape records; a stand-in for recordings, which the CPU has not."""
    made: list[int] = []
    monkeypatch.setattr(parts, "running_by", lambda pipe, engine, again: nullcontext(engine))
    monkeypatch.setattr(pipe, "captured", object())
    monkeypatch.setitem(parts.PARTS, "pictures", lambda pipe, case, warm_ups: made.append(warm_ups) or {})
    measurer = Measurer(pipe)
    for changed in ({"warm_ups": 1}, {"guidance": 9.0}, {"steps": 3}, {"steps": 3, "warm_ups": 6, "tokens": 7}):
        measurer.measure(dataclasses.replace(CASE, **changed))
    assert made == [EAGER_CALLS + 2, 1, EAGER_CALLS + 2, 6]


@pytest.mark.parametrize("what, name", [("vae", "decode"), ("text", "encode")])
def test_parts_alone(pipe: SD3Pipeline, what: str, name: str) -> None:
    row = Measurer(pipe).measure(dataclasses.replace(CASE, what=what, images=2))
    assert 0 < row[f"{name}_min_s"] <= row[f"{name}_s"] <= row[f"{name}_p90_s"] and row["repeats"] == 3
    assert ("images_per_s" in row) == (what == "vae") and "loop_s" not in row


@pytest.mark.parametrize("name", KINDS)
def test_help_speaks_of_what_is_measured(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert ("loop s:" in out) == ("--num_inference_steps" in out) == (name not in ("vae", "text"))
    assert ("decode s:" in out, "encode s:" in out) == (name == "vae", name == "text")
    assert ("text encoders are left out" in out) == (name != "text")

"""The benchmarks' own arithmetic and verdicts, on the CPU with tiny models; what they measure there says nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import paddle
import pytest

from benchmarks.gpu import ours_attention
from benchmarks.gpu.__main__ import beside, judge, last_of_each
from benchmarks.gpu.shapes import cases
from sd3par import copied_sums, kernels
from sd3par.conditions import Conditions
from sd3par.config import GenerationRequest
from sd3par.device import Device
from sd3par.errors import Sd3parError
from sd3par.graph import StepGraphs
from sd3par.launch import report
from sd3par.launch.bench import kernels as kernels_of
from sd3par.launch.bench import quiet, startup
from sd3par.launch.bench.clock import Ceilings, Timer
from sd3par.launch.bench.steps import Loop
from sd3par.launch.bench.swap import names, references, swapped
from sd3par.launch.bench.watch import Watch
from sd3par.mmdit import MMDiT

CASE = {"height": 1024, "width": 1024, "text_tokens": 333}
OTHER = {"height": 528, "width": 528, "text_tokens": 154}
PEERS = [{**OTHER, "noise_error": 0.5}, {**CASE, "noise_error": 0.01, "image_error": 0.02}]
CONTROLS = {"uniform_attention": 0.2, "one_head_zeroed": 0.1, "another_text": 0.5, "loud_padding": 0.01}


@pytest.fixture(scope="module")
def model() -> MMDiT:
    return MMDiT.from_pretrained("random:tiny", device="cpu")


@pytest.mark.parametrize(
    ("changed", "right"),
    [
        ({}, True), ({"noise_error": 0.0119}, True), ({"noise_error": 0.0121}, False), ({"image_error": 0.03}, False),
        ({"one_head_zeroed": 0.02}, False), ({"loud_padding": 0.02}, False), ({"noise_error": float("nan")}, False),
    ],
)  # fmt: skip
def test_parity_is_judged_by_the_peers_error_and_the_wrong_models(changed: dict[str, float], right: bool) -> None:
    row = {**CASE, **CONTROLS, "noise_error": 0.01, "image_error": 0.02, **changed}
    assert judge(row, PEERS) is right
    assert row["right"] is right


def test_parity_of_another_size_is_judged_by_the_peers_error_there() -> None:
    assert judge({**OTHER, "noise_error": 0.59}, PEERS)
    assert not judge({**OTHER, "noise_error": 0.61}, PEERS)


def test_fastest_peer_stands_beside_our_kernel() -> None:
    peers = [
        {"shape": "a", "peer": "cudnn", "us": 600.0, "hot_us": 580.0}, {"shape": "a", "peer": "flash", "failed": "no"},
        {"shape": "b", "peer": "flash", "us": 1.0, "hot_us": 1.0},
        {"shape": "a", "peer": "flash", "us": 900.0, "hot_us": 570.0},
    ]  # fmt: skip
    row: dict[str, object] = {"shape": "a", "us": 480.0}
    beside(row, peers)
    assert row == {"shape": "a", "us": 480.0, "peer": "cudnn", "peer_us": 600.0, "peer_hot_us": 570.0, "ratio": 0.8}


def test_the_last_row_of_a_size_counts() -> None:
    size = {"height": 64, "width": 64, "images": 1}
    first, last, four = {**size, "loop_s": 1}, {**size, "loop_s": 1, "image_s": 2}, {**size, "images": 4}
    assert last_of_each([first, last, four]) == [last, four]


def test_every_kernel_has_a_reference_and_comes_back() -> None:
    right = {name: getattr(kernels, name) for name in names()}
    assert {"attention", "linear", "linear_gelu", "adaln", "conv3x3", "group_norm_silu"} <= set(references())
    with pytest.raises(ZeroDivisionError), swapped(references()):
        assert kernels.adaln is kernels.adaln_reference
        raise ZeroDivisionError
    assert {name: getattr(kernels, name) for name in names()} == right


def test_watch_counts_work_of_a_step(model: MMDiT) -> None:
    watch, loop = Watch(), Loop(model, (64, 96), 10, 1, 3, None)

    def ticks():
        for index in range(loop.steps):
            watch.begin_step()
            yield index
            watch.end_step()

    with watch.watching():
        loop.run(ticks())
        kernels.guidance_euler(paddle.ones([1]), None, paddle.ones([1]), 1.0, paddle.ones([]))  # between no two steps
    found, others, whole_us = watch.times(0.0, 1)
    config, tokens = model.config, (64 // 16) * (96 // 16)
    joint = 4 * 2 * config.num_attention_heads * (tokens + 10) ** 2 * config.attention_head_dim
    attention = {work.flops: count for work, count, _ in found if work.kernel == "attention"}
    assert attention[joint] == config.num_layers
    up = [work for work, _, _ in found if work.shape == f"2x{tokens}x{config.dim} x {config.dim}x{4 * config.dim}"]
    assert [(work.kernel, work.flops) for work in up] == [("linear_gelu", 2 * 2 * tokens * 4 * config.dim**2)]
    assert up[0].bytes == 4 * (2 * tokens * 5 * config.dim + 4 * config.dim**2 + 4 * config.dim)
    (bare,) = [work for work, _, _ in found if work.shape == f"2x{tokens}x{config.dim} + 2x10x{config.dim}"
               and work.bytes < 4 * 2 * (tokens + 10) * 3 * config.dim]  # fmt: skip
    # The first norms, two of the image and one of the text: no branch and no new sum, but scales and shifts.
    assert bare.bytes == 4 * 2 * config.dim * (3 * tokens + 2 * 10 + 2 * 3)
    assert {"adaln", "guidance_euler", "linear"} < {work.kernel for work, _, _ in found}
    assert 0 < sum(us for *_, us in found) + sum(us for _, us in others) < 1.5 * whole_us


def test_watch_refuses_steps_that_differ() -> None:
    watch, x = Watch(), paddle.ones([1, 2, 4])
    with watch.watching():
        for calls in (1, 2):
            watch.begin_step()
            for _ in range(calls):
                kernels.gated_sum(x, x[:, 0], x, x[:, 0])
            watch.end_step()
    with pytest.raises(RuntimeError, match="2 calls, the first one 1"):
        watch.times(0.0, 0)


def test_breakdown_adds_up(model: MMDiT) -> None:
    rows, watch = kernels_of.measure(model, kernels_of.Step((64, 64), 1, 333, 2), Timer(), Ceilings(1e9, 1e9))
    step, table = rows[-1], kernels_of.shown(rows)
    assert sum(us for *_, us in watch.spans()) > 0
    assert step["ms"] == pytest.approx(sum(row["ms"] for row in rows[:-1]))
    assert step["floor_ms"] == pytest.approx(
        sum(row["count"] * row["floor_us"] for row in rows if "count" in row) / 1e3
    )
    assert step["gaps_ms"] == pytest.approx(step["step_ms"] - step["ms"])
    assert all(row["kernel"] in table for row in rows if "count" in row)


def test_floor_is_the_larger_of_products_and_bytes() -> None:
    best = Ceilings(flops=1e12, bytes=1e9)
    assert best.floor_us(2_000_000, 1_000) == pytest.approx(2)
    assert best.floor_us(1_000_000, 3_000) == pytest.approx(3)


@pytest.mark.parametrize("graphs", [None, StepGraphs(Device("cpu", "float32"), must=True)])
def test_steps_are_timed(model: MMDiT, graphs: StepGraphs | None) -> None:
    loop = Loop(model, (64, 64), 7, 2, 4, graphs)
    assert loop.host_ms() > 0
    assert loop.device_ms() > 0


def test_attention_row() -> None:
    row = ours_attention.measure(Timer(), "float32", 2, (5, 3), 2, 8)
    assert row["flops"] == 4 * 2 * 2 * 8**2 * 8
    assert row["tflops"] == pytest.approx(row["flops"] / row["us"] / 1e6)


def test_startup_reads_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup.cuda_driver, "name", lambda index: f"GPU {index}")
    run = report.Run(28, {"encode": 0.25, "denoise": 1.5, "decode": 0.125})
    request = GenerationRequest(("a",), height=1024, width=1024)
    text = report.rendered([Path("a.png")], request, 3.0, [run], "one process", "cpu")
    assert startup.seconds_of(text) == {"load": 3.0, "encode": 0.25, "denoise": 1.5, "decode": 0.125}
    assert startup.gpu_of(text) == {}
    text = report.rendered([Path("a.png")], request, 3.0, [run], "one process", "nvgpu:1 bfloat16")
    assert startup.gpu_of(text) == {"gpu": "1 x GPU 1"}
    with pytest.raises(ValueError, match="no decode in the report"):
        startup.seconds_of(text.replace("decode", "other"))


@pytest.mark.slow
def test_startup_runs_the_command() -> None:
    rows: list[dict] = []
    found = startup.measure(["--random_weights", "tiny"], startup.Request(64, 1, 2), 1, rows.append)
    assert found == rows and len(rows) == 6
    assert [row["start"] for row in rows[::2]] == ["cold", "warm", "warm, one step"]
    assert [row["engine"] for row in rows] == 3 * ["eager", "static"]
    assert [row["steps"] for row in rows] == [2, 2, 2, 2, 1, 1]
    for row in rows:
        assert 0 < row["imports_s"] < row["file_s"] <= row["process_s"] and row["cpu_s"] > 0
    assert len(startup.shown(rows)) == 7


@pytest.mark.parametrize("flags", [[], ["--no_static"]])
def test_startup_of_no_model_is_refused(flags: list[str]) -> None:
    with pytest.raises(Sd3parError, match="^model: got /nosuch; allowed: tiny, or a folder or file that exists"):
        startup.startup(["--model", "/nosuch", *flags])


def test_what_others_disturb_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.05, 0.2, 0.0, 0.1])  # waits, goes, is disturbed, goes, is not
    monkeypatch.setattr(quiet, "_others", lambda work: (next(shares), work()))
    monkeypatch.setattr(quiet, "_LOOK_S", 0.0)
    made: list[dict] = []
    found = quiet.Quiet(100.0).measure(lambda: made.append({"file_s": len(made)}) or made[-1])
    assert (len(made), found) == (2, {"file_s": 1, "others": 0.1})
    monkeypatch.setattr(quiet, "_others", lambda work: (0.9, work()))
    assert quiet.Quiet(0.0).measure(lambda: {"file_s": 3}) == {"file_s": 3, "others": 0.9}


def test_others_are_not_this_process() -> None:
    assert quiet._others(lambda: sum(range(20_000_000)))[0] < os.cpu_count() - 0.5
    assert quiet._busy_s() > 1


def test_startup_takes_medians() -> None:
    rows = [{"engine": "eager", "others": 0.0, **{f"{name}_s": float(value) for name in startup.SECONDS}}
            for value in (4, 1, 2)]  # fmt: skip
    found = startup.median(rows)
    assert (found["file_s"], found["cpu_s"], found["repeats"], found["spread"]) == (2, 2, 3, 1)


def test_parity_cases_hold_what_is_asked_for() -> None:
    every = cases("sd3-medium")
    assert every[0] == (1024, 1024, 333)
    assert {(528, 528, 154), (528, 528, 589), (1040, 784, 154), (1040, 784, 589)} < set(every)


def test_copies_beside_stores(
    model: MMDiT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """The image's norms are copied and the text's are not, as where nobody measures."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # a script's import changes it
    copied = importlib.import_module("benchmarks.gpu.copied")
    leasts, recorded = [], copied.recorded

    def noted(model: MMDiT, least: int, latents: paddle.Tensor, conditions: Conditions) -> object:
        leasts.append(least)
        return recorded(model, least, latents, conditions)

    monkeypatch.setattr(copied_sums, "LEAST_TOKENS", copied_sums.LEAST_TOKENS)  # which it changes
    for name, value in {"recorded": noted, "TEXT_TOKENS": 77, "ROUNDS": 1}.items():
        monkeypatch.setattr(copied, name, value)
    with paddle.no_grad():
        copied.compare(model, 256, 2, {"bench": "copied", "commit": "abc"})
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert leasts == [1 << 60, 2 * 256]
    assert [(row["way"], row["commit"], row["difference"]) for row in rows] == [
        ("stores", "abc", 0),
        ("copies", "abc", 0),
    ]

"""What is printed at the end: times are per step that ran, not per step that was asked for."""

from __future__ import annotations

from pathlib import Path

from sd3par.config import GenerationRequest
from sd3par.launch import report
from sd3par.launch.report import Run

REQUEST = GenerationRequest(("a",), height=64, width=96, num_inference_steps=10, num_images_per_prompt=2, strength=0.5)


def run(denoise: float) -> Run:
    return Run(5, {"encode": 0.25, "denoise": denoise, "decode": 0.5})


def lines(text: str) -> dict[str, str]:
    """Returns what stands behind the first word of each line, with single spaces."""
    return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()}


def test_rendered() -> None:
    outputs = [Path(f"a-{index}.png") for index in range(4)]
    shown = lines(report.rendered(outputs, REQUEST, 3.0, [run(1.0), run(2.0)], "dp 1", "cpu"))
    assert shown["pictures"] == "a-0.png ... a-3.png (4)"
    assert shown["what"] == "96 x 64, seed 0, 5 of 10 steps"
    assert (shown["encode"], shown["decode"], shown["total"]) == ("0.500 s", "1.000 s", "7.500 s")
    assert shown["denoise"] == "3.000 s 300.0 ms per step"


def test_benchmarked() -> None:
    shown = lines(report.benchmarked(REQUEST, 3.0, [run(1.0), run(2.0), run(1.5)], "dp 1", "cpu"))
    assert shown["what"] == "96 x 64, 5 of 10 steps, 3 repeats"
    assert (shown["loop"], shown["image"]) == ("1.500 s 1.000 s", "2.000 s 1.500 s")
    assert shown["step"] == "300.00 ms 200.00 ms"

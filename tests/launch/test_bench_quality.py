"""`sd3par bench quality`: metrics against numbers worked out otherwise, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.launch import cli
from sd3par.launch.bench import metrics, quality
from sd3par.launch.bench.case import Case, Group
from sd3par.launch.bench.runner import Result

pytestmark = pytest.mark.usefixtures("folder")


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def test_psnr() -> None:
    a = np.full((4, 4, 3), 100, np.uint8)
    b = a.copy()
    b[0, 0, 0] = 112
    assert metrics.psnr(a, a) == float("inf")
    assert metrics.psnr(a, b) == pytest.approx(10 * np.log10(255**2 / (144 / 48)))
    assert metrics.levels(b, a) == 12 and metrics.levels(a, b) == 12


def test_ssim_of_equal_flat_and_unlike_pictures() -> None:
    assert metrics.ssim(noise(1), noise(1)) == pytest.approx(1.0)
    assert abs(metrics.ssim(noise(1), noise(2))) < 0.1
    x, y = np.full((16, 16, 3), 100, np.uint8), np.full((16, 16, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2  # of flat pictures the means are all there is
    assert metrics.ssim(x, y) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))


def test_ssim_is_the_mean_over_windows() -> None:
    """Of pictures of eleven pixels there is one window: weighted moments, written out."""
    a, b = noise(3, 11), noise(4, 11)
    at = np.arange(-5, 6)
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / 4.5)
    weight /= weight.sum()
    x, y = a @ metrics.LUMA, b @ metrics.LUMA
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
    cov = (weight * (x - mx) * (y - my)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    want = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert metrics.ssim(a, b) == pytest.approx(want)


def results(folder: Path, changed: int) -> list[Result]:
    """One device and two, whose second picture differs by `changed` levels."""
    made = []
    for index, mesh in enumerate((ParallelConfig(), ParallelConfig(2))):
        pictures = np.stack([noise(5, 128) // 2, noise(6, 128) // 2])
        pictures[1] += np.uint8(changed * index)
        file = folder / f"{index}.npz"
        np.savez(file, pictures=pictures, latents=np.ones((2, 4, 8, 8)) + 0.1 * index)
        case = Case("quality", "pictures kept", "eager", 128, 128, 1, 2, 7.0, 256, 0, 2, keep=str(file))
        group = Group("tiny", "float32", mesh)
        made.append(
            Result(group, case, {**group.row(), **case.row(), "pictures": 2, "run_id": "a", "dtype": "float32"})
        )
    return made


def test_pictures_are_compared_with_those_of_one_device(folder: Path) -> None:
    one, two = quality.compared(results(folder, 3))
    assert (one["levels"], one["ssim"], one["latents_error"]) == (0, pytest.approx(1.0), 0.0) and "psnr_db" not in one
    assert two["levels"] == 3 and two["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 9))
    assert two["latents_error"] == pytest.approx(0.1) and two["error"] == "against one, eager"
    assert two["right"] == 0  # noise shows nothing that was asked for
    assert quality.shown([one, two]).splitlines()[3].split()[:3] == ["dp2", "eager", "float32"]


@pytest.mark.parametrize("words, code", [
    ([], 0), (["--least_psnr", "38"], 0), (["--least_psnr", "39"], 1), (["--least_ssim", "0.9"], 0),
    (["--least_ssim", "1.1"], 1), (["--least_right", "0.5"], 1),
])  # fmt: skip
def test_the_gate(words: list[str], code: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(folder, 3)
    monkeypatch.setattr(quality, "run", lambda *_: found)
    assert cli.main(["bench", "quality", "--mesh", "dp2", "--results", "res", *words]) == code
    assert len((folder / "res" / "quality.jsonl").read_text().splitlines()) == 2


def test_number_of_prompts() -> None:
    with pytest.raises(ConfigError, match="^prompts: got 0; allowed: 1 to 200"):
        quality.quality(["--prompts", "0"])


@pytest.mark.slow
def test_two_processes_draw_what_one_does(folder: Path) -> None:
    words = ["--mesh", "dp2", "--prompts", "1", "--num_inference_steps", "8", "--quiet", "--json", "rows.jsonl"]
    assert cli.main(["bench", "quality", *words, "--least_psnr", "60", "--least_right", "1"]) == 0
    one, two = map(json.loads, (folder / "rows.jsonl").open())
    assert (one["world"], one["right"]) == (1, 1) and (two["world"], two["right"]) == (2, 1)
    assert two["levels"] <= 1 and 0 < two["latents_error"] < 1e-4

"""Schedules and steps against diffusers (tests/make/golden_scheduler.py), and what they refuse."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par.errors import ConfigError
from sd3par.kernels import guidance_euler
from sd3par.scheduler import SchedulerConfig, add_noise, first_step, schedule
from tests import tolerances
from tests.arrays import array

GOLDEN = Path(__file__).parent / "golden" / "scheduler.npz"
CASES = list(product((1.0, 3.0), (1, 4, 28, 50), (0.01, 0.3, 0.6, 1.0)))


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN)


@pytest.mark.parametrize(("shift", "steps", "strength"), CASES)
def test_schedule_is_diffusers(golden: Any, shift: float, steps: int, strength: float) -> None:
    ours = schedule(SchedulerConfig(shift=shift), steps, strength)
    for what in ("timesteps", "sigmas"):
        values = getattr(ours, what)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, golden[f"{shift}/{steps}/{strength}/{what}"])


def test_given_sigmas_are_shifted(golden: Any) -> None:
    ours = schedule(SchedulerConfig(shift=3.0), 28, 0.6, golden["given_sigmas"].tolist())
    np.testing.assert_array_equal(ours.timesteps, golden["given/timesteps"])
    np.testing.assert_array_equal(ours.sigmas, golden["given/sigmas"])


def test_lowest_sigma_is_shifted_twice() -> None:
    ours = schedule(SchedulerConfig(shift=3.0), 4)
    assert ours.timesteps == pytest.approx([1000.0, 857.69, 602.15, 8.93], abs=0.01)
    assert ours.sigmas[-2:] == pytest.approx([0.00893, 0.0], abs=1e-5)


def test_strength_skips_first_steps() -> None:
    assert first_step(28, 0.6) == 11
    assert schedule(SchedulerConfig(), 28, 0.6).steps == 17
    assert first_step(5, 0.8) == 1
    assert first_step(4, 0.01) == 3


def test_step_and_noise(golden: Any) -> None:
    ours = schedule(SchedulerConfig(shift=3.0), 4, 0.6, golden["given_sigmas"].tolist())
    x, noise, prediction = (
        paddle.to_tensor(array(f"scheduler.{name}", (2, 4, 3, 5))) for name in ("x", "noise", "prediction")
    )
    sigma, delta = float(ours.sigmas[0]), paddle.to_tensor(ours.sigmas[1] - ours.sigmas[0])
    noised, stepped = add_noise(x, noise, sigma), guidance_euler(x, None, prediction, 1.0, delta)
    assert np.abs(noised.numpy() - golden["noised"]).max() < tolerances.MODULE
    assert np.abs(stepped.numpy() - golden["stepped"]).max() < tolerances.MODULE


def test_guidance_and_step() -> None:
    x, uncond, cond = (paddle.full([1, 2, 3], value) for value in (1.0, 2.0, 3.0))
    stepped = guidance_euler(x, uncond, cond, 7.0, paddle.to_tensor(-0.25))
    assert (stepped.numpy() == 1.0 - 0.25 * (2.0 + 7.0 * 1.0)).all()


def test_step_is_computed_in_float32() -> None:
    prediction = paddle.full([1, 1, 1], 3.0).astype("bfloat16")
    stepped = guidance_euler(paddle.full([1, 1, 1], -1.0), None, prediction, 1.0, paddle.to_tensor(0.334))
    assert stepped.item() == pytest.approx(0.002, rel=0.01)  # the product alone is 1.0 in bfloat16
    assert add_noise(prediction, prediction, 0.5).dtype == paddle.bfloat16


def test_config_of_sd3() -> None:
    values = {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0",
        "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
        "num_train_timesteps": 1000, "shift": 3.0,
        "invert_sigmas": False, "shift_terminal": None, "use_beta_sigmas": False, "use_dynamic_shifting": False,
        "use_exponential_sigmas": False, "use_karras_sigmas": False, "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }  # fmt: skip
    assert SchedulerConfig.parse(values, "scheduler_config.json") == SchedulerConfig(1000, 3.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "DPMSolverMultistepScheduler"),
        ("num_train_timesteps", 0),
        ("shift", 0.0),
        ("shift", math.nan),
        ("shift", "3"),
        ("use_dynamic_shifting", True),
        ("invert_sigmas", True),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("stochastic_sampling", True),
        ("shift_terminal", 0.1),
        ("beta_start", 0.1),
    ],
)
def test_config_refuses(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        SchedulerConfig.parse({key: value}, "scheduler_config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, [], "shift"])
def test_config_must_be_an_object(values: Any) -> None:
    with pytest.raises(ConfigError, match="JSON object"):
        SchedulerConfig.parse(values, "scheduler_config.json")


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "4", None])
def test_steps_refused(steps: Any) -> None:
    with pytest.raises(ConfigError, match="num_inference_steps"):
        schedule(SchedulerConfig(), steps)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, math.nan, 1e-20])
def test_strength_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="strength"):
        schedule(SchedulerConfig(), 28, strength)


@pytest.mark.parametrize(
    "sigmas", [[], [1.1], [1.0, 0.0], [0.5, 0.5], [0.2, 0.4], [1.0, math.nan, 0.1], ["a"], [[1.0]]]
)
def test_sigmas_refused(sigmas: list[Any]) -> None:
    with pytest.raises(ConfigError, match="sigmas"):
        schedule(SchedulerConfig(), 4, 1.0, sigmas)

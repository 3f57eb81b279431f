"""Writes tests/golden/scheduler.npz (diffusers' schedules and steps) and noise.npz (torch's random numbers).

Run: python -m tests.make.golden_scheduler
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline

from tests.arrays import array

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS, SHIFTS, STRENGTHS = (1, 4, 28, 50), (1.0, 3.0), (0.01, 0.3, 0.6, 1.0)
GIVEN_SIGMAS = [1.0, 0.75, 0.5, 0.2]
SEEDS = (0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, -1, -12345678901234, -(1 << 63))
COUNTS = (1, 2, 15, 16, 17, 31, 100, 16 * 64 * 64)
MANY = 1000  # of longer runs only some numbers are kept


def schedule(scheduler: FlowMatchEulerDiscreteScheduler, strength: float) -> list[np.ndarray]:
    """Returns timesteps [N] and sigmas [N + 1] that diffusers' image-to-image pipeline uses."""
    steps = len(scheduler.timesteps)
    pipeline = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = StableDiffusion3Img2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")
    return [timesteps.numpy(), scheduler.sigmas[scheduler.begin_index :].numpy()]


def schedules() -> dict[str, np.ndarray]:
    """Returns timesteps and sigmas of every case, under "shift/steps/strength/what"."""
    arrays = {}
    for shift, steps, strength in product(SHIFTS, STEPS, STRENGTHS):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        for what, values in zip(("timesteps", "sigmas"), schedule(scheduler, strength), strict=True):
            arrays[f"{shift}/{steps}/{strength}/{what}"] = values
    return arrays


def steps() -> dict[str, np.ndarray]:
    """Returns what step and scale_noise make of the tests' arrays, with sigmas that the caller gives."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=GIVEN_SIGMAS)
    timesteps, sigmas = schedule(scheduler, 0.6)
    x, noise, prediction = (
        torch.from_numpy(array(f"scheduler.{n}", (2, 4, 3, 5))) for n in ("x", "noise", "prediction")
    )
    noised = scheduler.scale_noise(x, torch.from_numpy(timesteps[:1]), noise)
    stepped = scheduler.step(prediction, torch.tensor(timesteps[0]), x, return_dict=False)[0]
    return {
        "given_sigmas": np.array(GIVEN_SIGMAS),
        "given/timesteps": timesteps,
        "given/sigmas": sigmas,
        "noised": noised.numpy(),
        "stepped": stepped.numpy(),
    }


def noise() -> dict[str, np.ndarray]:
    """Returns torch's numbers under "seed/count", and under "index/count" which of them were kept."""
    arrays = {}
    for count in COUNTS:
        kept = np.arange(count) if count < MANY else np.unique(np.r_[0:count:997, 0:48, count - 48 : count])
        arrays[f"index/{count}"] = kept
        for seed in SEEDS:
            generator = torch.Generator("cpu").manual_seed(seed)
            arrays[f"{seed}/{count}"] = torch.randn([1, count, 1, 1], generator=generator).numpy().ravel()[kept]
    generator = torch.Generator("cpu").manual_seed(1)
    arrays["two_draws"] = np.concatenate([torch.randn([1, 16, 3, 5], generator=generator).numpy() for _ in range(2)], 1)
    return arrays


def main() -> None:
    """Writes both files."""
    np.savez_compressed(GOLDEN / "scheduler.npz", **schedules(), **steps())
    np.savez_compressed(GOLDEN / "noise.npz", **noise())


if __name__ == "__main__":
    main()

"""Noise against torch's CPU generator (tests/make/golden_scheduler.py), and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd3par import noise as drawn
from sd3par.errors import ConfigError
from tests import tolerances

GOLDEN = Path(__file__).parent / "golden" / "noise.npz"
SEEDS = (0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, -1, -12345678901234, -(1 << 63))
COUNTS = (1, 2, 15, 16, 17, 31, 100, 16 * 64 * 64)


def noise(shape: Any, seeds: Any) -> np.ndarray:
    return drawn.noise(shape, seeds).numpy()


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(GOLDEN)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_torchs(golden: Any, seed: int, count: int) -> None:
    ours = noise([1, count, 1, 1], seed)
    assert (ours.shape, ours.dtype) == ((1, count, 1, 1), np.float32)
    theirs = golden[f"{seed}/{count}"]
    assert np.abs(ours.ravel()[golden[f"index/{count}"]] - theirs).max() < tolerances.NOISE


def test_images_have_their_own_seeds(golden: Any) -> None:
    ours = noise((3, 4, 5, 5), [1, 0, -1])
    assert ours.shape == (3, 4, 5, 5)
    for image, seed in enumerate((1, 0, -1)):
        assert np.abs(ours[image].ravel() - golden[f"{seed}/100"]).max() < tolerances.NOISE


def test_one_seed_counts_up() -> None:
    np.testing.assert_array_equal(noise((3, 2, 4, 4), 7), noise((3, 2, 4, 4), [7, 8, 9]))
    np.testing.assert_array_equal(noise((2, 2, 4, 4), 7)[1:], noise((1, 2, 4, 4), 8))


def test_one_draw_of_twice_the_channels_is_two_draws(golden: Any) -> None:
    """Image-to-image takes its two draws at once."""
    assert np.abs(noise((1, 32, 3, 5), 1) - golden["two_draws"]).max() < tolerances.NOISE


def test_layout_is_channels_height_width() -> None:
    flat = noise((1, 2 * 3 * 4, 1, 1), 3).ravel()
    np.testing.assert_array_equal(noise((1, 2, 3, 4), 3)[0], flat.reshape(2, 3, 4))


def test_global_generator_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    noise((1, 4, 4, 4), 1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_numpy_integers_are_seeds() -> None:
    np.testing.assert_array_equal(noise((1, 1, 4, 4), np.int64(-1)), noise((1, 1, 4, 4), -1))


@pytest.mark.parametrize(
    "seeds", [1 << 64, -(1 << 63) - 1, (1 << 64) - 1, 1.0, True, "1", None, [1], [1, 2, 3], [], [0, 1 << 64], [0, None]]
)
def test_seeds_refused(seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seed") as caught:
        noise((2, 1, 4, 4), seeds)
    assert "\n" not in str(caught.value)

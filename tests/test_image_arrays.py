"""Pictures that are given as arrays, and what is no picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from PIL import Image

from sd3par.errors import ConfigError
from sd3par.images import load_image
from sd3par.images.pixels import MAX_PIXELS
from tests import tolerances
from tests.arrays import array

LEVELS = (array("pixels.picture", (37, 53, 3)) * 60 + 128).clip(0, 255).astype(np.uint8)
GOLDEN = Path(__file__).parent / "golden" / "vae_pixels.npz"


def test_levels_are_what_the_picture_of_them_is() -> None:
    golden = np.load(GOLDEN)["loaded"]  # [1, 3, 16, 24]
    for source in (LEVELS, LEVELS[None], np.asfortranarray(LEVELS)):
        ours = load_image(source, 16, 24)
        assert ours.dtype == np.float32 and np.abs(ours - golden).max() < tolerances.MODULE


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_the_right_size_are_exact(dtype: type) -> None:
    unit = (LEVELS / 255).astype(dtype)
    ours = load_image(unit, 37, 53)
    assert (ours.shape, ours.dtype) == ((1, 3, 37, 53), np.float32)
    np.testing.assert_array_equal(ours[0].transpose(1, 2, 0), unit.astype(np.float32) * 2 - 1)


def test_floats_are_resized_as_levels_are() -> None:
    mild = LEVELS // 4 + 96  # between the two axes Pillow rounds levels, and clips them
    for size in ((16, 24), (80, 60)):
        ours, levels = load_image(mild[None] / 255, *size), load_image(mild, *size)
        assert np.abs(ours - levels).max() < 3 / 255
    assert np.abs(load_image(np.float32(LEVELS > 128), 80, 60)).max() == 1  # Lanczos goes beyond


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((4, 4), np.uint8), "an array uint8 [4, 4]"),
        (np.zeros((4, 4, 4), np.uint8), "an array uint8 [4, 4, 4]"),
        (np.zeros((3, 4, 4), np.float32), "an array float32 [3, 4, 4]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "an array uint8 [2, 4, 4, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "an array uint8 [0, 4, 3]"),
        (np.zeros((4, 4, 3), np.int64), "an array int64 [4, 4, 3]"),
        (np.zeros((4, 4, 3), bool), "an array bool [4, 4, 3]"),
        (np.full((4, 4, 3), "a"), "an array <U1 [4, 4, 3]"),
        (np.zeros(()), "an array float64 []"),
        (np.full((4, 4, 3), -0.125), "[4, 4, 3] with values beyond 0 to 1"),
        (np.full((4, 4, 3), 1.125), "[4, 4, 3] with values beyond 0 to 1"),
        (np.full((4, 4, 3), np.nan), "[4, 4, 3] with values beyond 0 to 1"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS + 1, 1, 3)), f"[{MAX_PIXELS + 1}, 1, 3]"),
        ([Image.new("RGB", (4, 4))], "list"),
        (LEVELS.tolist(), "list"),
        (paddle.zeros([4, 4, 3]), "Tensor"),
        (b"in.png", "bytes"),
        (5, "int"),
    ],
)
def test_other_things_are_refused_by_type_and_shape(source: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_image(source, 16, 16)
    text = str(error.value)
    assert text.startswith("image: got ") and words in text and len(text) < 160 and text.isprintable()

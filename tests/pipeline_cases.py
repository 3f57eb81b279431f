"""Requests of a few steps to the bundled model, trained and with random weights: shared by golden script and tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sd3par.weights import ModelFiles, open_model
from tests.arrays import weight
from tests.checkpoints import ArrayCheckpoint
from tests.text.cases import t5_weight

_BASE: dict[str, Any] = dict(height=64, width=80, num_inference_steps=4, max_sequence_length=77)
PROMPTS = ["a red circle on a blue background", "A small YELLOW star, black background"]
CASES: dict[str, dict[str, Any]] = {
    "one": _BASE | dict(prompt=PROMPTS[0], max_sequence_length=256),
    "two-prompts": _BASE | dict(prompt=PROMPTS, negative_prompt=["blurry", "green"], guidance_scale=4.0, seed=7),
    "two-images": _BASE | dict(prompt=PROMPTS[1], prompt_2=PROMPTS[0], prompt_3="x", num_images_per_prompt=2, seed=3),
    "no-guidance": _BASE | dict(prompt=PROMPTS[0], guidance_scale=1.0, height=48, width=48),
    "no-t5": _BASE | dict(prompt=PROMPTS[0], text_encoder_3=False),
    "image-to-image": _BASE | dict(prompt=PROMPTS[1], strength=0.6, num_inference_steps=7, seed=11),
}


def picture() -> np.ndarray:
    """Returns the start of image-to-image: [64, 80, 3] uint8, a soft gradient with an edge."""
    y, x = np.mgrid[0:64, 0:80]
    channels = [3 * x, 4 * y, np.where(x > y, 200, 40)]
    return np.stack(channels, axis=-1).astype(np.uint8)


TRAINED = ("one", "two-prompts", "image-to-image")  # cases whose pictures by the trained weights are compared too
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def random_weight(part: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the random value of one tensor of one part of the bundled model."""
    return t5_weight(name, shape) if part == "text_encoder_3" else weight(name, shape)


def random_files(text_encoder_3: bool = True) -> ModelFiles:
    """Returns the bundled model's configs and tokenizers with random weights."""
    files = open_model("tiny", text_encoder_3=text_encoder_3)
    parts = {}
    for part in PARTS:
        component = getattr(files, part)
        if component is not None:
            shapes = component.checkpoint.shapes()
            arrays = {name: random_weight(part, name, tuple(shape)) for name, shape in shapes.items()}
            parts[part] = replace(component, checkpoint=ArrayCheckpoint(arrays, part))
    return replace(files, **parts)

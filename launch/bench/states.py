"""Text states and noise of a request without prompts, the same for us and for peers. numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class States(NamedTuple):
    """Of one image, fp32: prompt and negative prompt [tokens, J], their pooled states [P]."""

    prompt: np.ndarray
    pooled: np.ndarray
    negative: np.ndarray
    negative_pooled: np.ndarray


def states(seed: int, tokens: int, joint: int, pooled: int) -> States:
    """Returns states of random numbers; image i of a request has them rolled by i along all axes.

    To draw those of every image takes the host longer than the device needs for the pictures.
    """
    draw = np.random.default_rng(seed)
    shapes = ((tokens, joint), (pooled,), (tokens, joint), (pooled,))
    return States(*(draw.standard_normal(shape, dtype=np.float32) for shape in shapes))

"""Our text encoders with the weights of the goldens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.weights import Component
from tests.arrays import weight
from tests.checkpoints import ArrayCheckpoint
from tests.text.cases import CLIPS, GOLDEN, T5S, t5_weight

GOLDENS = np.load(GOLDEN)


def checkpoint(name: str) -> ArrayCheckpoint:
    """The deterministic weights of a golden, under the names and in the shapes that transformers has."""
    value = t5_weight if "t5" in name else weight
    lines = (line.split() for line in GOLDENS[f"{name}/names"])
    return ArrayCheckpoint({key: value(key, tuple(int(n) for n in shape.split(","))) for key, shape in lines}, name)


def component(name: str, config: Mapping[str, Any]) -> Component:
    return Component(config, f"{name}/config.json", checkpoint(name))


def clip(name: str, **changed: Any) -> CLIPTextEncoder:
    """The CLIP variant `name`, some of its config changed."""
    return CLIPTextEncoder.load(component(f"clip/{name}", {**CLIPS[name], **changed}), "float32")


def t5(name: str, **changed: Any) -> T5Encoder:
    """The T5 variant `name`, some of its config changed."""
    return T5Encoder.load(component(f"t5/{name}", {**T5S[name], **changed}), "float32")

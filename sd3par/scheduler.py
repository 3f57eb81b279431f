"""Flow-match Euler: diffusers' `FlowMatchEulerDiscreteScheduler` as SD3 uses it, without hidden state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from paddle import Tensor

from sd3par.config import parse_config, require
from sd3par.errors import ConfigError

CLASS_NAME = "FlowMatchEulerDiscreteScheduler"
# They have a meaning with use_dynamic_shifting only, which is refused.
IGNORED = frozenset({"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"})


@dataclass(frozen=True)
class SchedulerConfig:
    """Noise schedule of a model; names and defaults are those of diffusers' scheduler_config.json."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False

    def __post_init__(self) -> None:
        trained = self.num_train_timesteps
        require(1 <= trained <= 1 << 20, "num_train_timesteps", trained, "a whole number of at least 1")
        require(0 < self.shift < math.inf, "shift", self.shift, "a number above 0")
        for name in (
            "use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
            "stochastic_sampling",
        ):  # fmt: skip
            require(not getattr(self, name), name, getattr(self, name), "false: this is not supported")
        require(not self.shift_terminal, "shift_terminal", self.shift_terminal, "null: this is not supported")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> SchedulerConfig:
        """Returns the config in the parsed scheduler_config.json `values` of file `where`.

        Raises:
            ConfigError: an unknown key, a wrong type, or a schedule that is not supported.
        """
        if isinstance(values, Mapping):
            name = values.get("_class_name", CLASS_NAME)
            require(name == CLASS_NAME, f"{where}: _class_name", name, CLASS_NAME)
        return parse_config(cls, values, where, IGNORED)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of one request: step i goes from `sigmas[i]` to `sigmas[i + 1]`, the model is given `timesteps[i]`.

    timesteps: [N] float32. sigmas: [N + 1] float32, the last one 0.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.timesteps)


def schedule(
    config: SchedulerConfig, steps: int, strength: float = 1.0, sigmas: Sequence[float] | None = None
) -> Schedule:
    """Returns the schedule of `steps` steps, or its end for image-to-image.

    Args:
        strength: above 0, up to 1; image-to-image skips the first steps and takes about `steps * strength`.
        sigmas: one per step, falling, before the shift is applied; they replace `steps`, as in diffusers.

    Raises:
        ConfigError: steps, strength or sigmas out of range.
    """
    chosen = _default_sigmas(config, steps) if sigmas is None else _given_sigmas(sigmas)
    shifted = _shift(chosen, config.shift).astype(np.float32)
    begin = first_step(len(shifted), strength)
    timesteps = shifted * np.float32(config.num_train_timesteps)
    return Schedule(timesteps[begin:], np.append(shifted, np.float32(0))[begin:])


def first_step(steps: int, strength: float) -> int:
    """Returns the index of the first step that image-to-image takes: 11 for 28 steps at 0.6, so 17 steps are left.

    Raises:
        ConfigError: strength is out of range, or so small that no step is left.
    """
    require(0 < strength <= 1, "strength", strength, "a number above 0, up to 1")
    begin = int(steps - min(steps * strength, steps))  # not steps * (1 - strength), which gives 0 for 5 steps at 0.8
    require(begin < steps, "strength", strength, f"at least one of {steps} steps")
    return begin


def _shift(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """Moves steps towards high noise; sigmas [N] -> [N] of the same dtype."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def _default_sigmas(config: SchedulerConfig, steps: int) -> np.ndarray:
    """Returns [N] float64, evenly spaced between the ends of the trained range."""
    trained = config.num_train_timesteps
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    require(whole and 1 <= steps <= trained, "num_inference_steps", steps, f"a whole number from 1 to {trained}")
    # diffusers shifts the ends here and every sigma once more afterwards, so the last one is shifted twice. Pictures
    # depend on it; keep it. The ends are fp32 there, the spacing is fp64.
    ends = _shift(np.array([trained, 1], np.float32) / np.float32(trained), config.shift).astype(np.float64)
    return np.linspace(ends[0] * trained, ends[1] * trained, steps) / trained


def _given_sigmas(sigmas: Sequence[float]) -> np.ndarray:
    """Returns the caller's sigmas as [N] float32."""
    allowed = "falling numbers above 0, up to 1, at least one"
    try:
        values = np.array(sigmas, np.float32)
    except (TypeError, ValueError):
        raise ConfigError("sigmas", sigmas, allowed) from None
    filled = values.ndim == 1 and len(values) > 0
    falling = filled and values[0] <= 1 and values[-1] > 0 and bool((np.diff(values) < 0).all())
    require(falling, "sigmas", sigmas, allowed)
    return values


def add_noise(latents: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """Returns the latents of an image with noise up to `sigma`, in the dtype of `latents`; computed in fp32.

    Args:
        latents: [B, C, h, w] of the image.
        noise: [B, C, h, w] standard normal.
    """
    mixed = sigma * noise.astype("float32") + (1.0 - sigma) * latents.astype("float32")
    return mixed.astype(latents.dtype)

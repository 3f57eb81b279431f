"""A loop of denoising steps without a prompt: what the host does in a step, and what the device does."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import Tensor

from sd3par import device
from sd3par.denoise import Denoiser
from sd3par.graph import StepGraphs
from sd3par.launch.bench.clock import Marks, between_us
from sd3par.mmdit import MMDiT
from sd3par.plan import rows_for
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.text import TextStates

PIXELS, GUIDANCE = 8, 7.0  # a position of the latents is 8 x 8 of them


class Loop:
    """Steps of one request on random text and noise, the same on every rank.

    Args:
        size: height and width in pixels.
        graphs: None for eager.
    """

    def __init__(
        self, model: MMDiT, size: tuple[int, int], tokens: int, images: int, steps: int, graphs: StepGraphs | None
    ) -> None:
        config, mesh, draw = model.config, model.mesh, np.random.default_rng(0)
        rows = rows_for(mesh.dp.rank, mesh.dp.size, images, True)
        count = len(rows.images) * (2 if rows.guidance == "both" else 1)
        height, width = (side // PIXELS for side in size)

        def normal(*shape: int) -> Tensor:
            return paddle.to_tensor(draw.standard_normal(shape, dtype=np.float32))

        text = TextStates(
            normal(count, tokens, config.joint_attention_dim), normal(count, config.pooled_projection_dim)
        )
        plan = schedule(SchedulerConfig(shift=3.0), steps)
        self.steps, self._noise = steps, normal(images, config.in_channels, height, width)
        self._denoiser = Denoiser(model, rows, text, plan, (height, width), graphs)

    @paddle.no_grad()
    def run(self, ticks: Iterator[int]) -> None:
        """Runs all steps; `ticks` counts them."""
        self._denoiser.run(self._noise, GUIDANCE, ticks)

    def host_ms(self) -> float:
        """Returns the host's median milliseconds a step: those until it has asked for all of it.

        The device is idle when a step begins; behind a long queue the host would wait in a launch for the device.
        """
        took: list[float] = []

        def ticks() -> Iterator[int]:
            for index in range(self.steps):
                device.synchronize()
                begin = time.perf_counter()
                yield index
                took.append(time.perf_counter() - begin)

        self.run(ticks())
        device.synchronize()
        return 1e3 * statistics.median(took[1:])

    def device_ms(self) -> float:
        """Returns the device's median milliseconds from the begin of a step to that of the next."""
        marks = Marks()
        begins = marks.make(self.steps + 1)

        def ticks() -> Iterator[int]:
            for index in range(self.steps):
                marks.record(begins[index])
                yield index
            marks.record(begins[-1])

        self.run(ticks())
        return 1e-3 * statistics.median(between_us(*pair) for pair in zip(begins[1:-1], begins[2:], strict=True))

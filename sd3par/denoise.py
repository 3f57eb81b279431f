"""The loop: what is constant is computed once, then one prediction and one Euler step per timestep.

Latents stay patches of this sp rank's tokens and this dp rank's images from the first step to the last, so that a step
sends nothing but what attention, the sums over mp and the guidance pair need.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor

from sd3par.captured import Call, directly
from sd3par.conditions import Conditions, Step, gather_tokens, patchify, shard, unpatchify
from sd3par.config import ModelConfig
from sd3par.graph import StepGraph, StepGraphs
from sd3par.mesh import Mesh
from sd3par.plan import Rows
from sd3par.ranges import span
from sd3par.scheduler import Schedule
from sd3par.text import TextStates

# (index, timestep, all latents [B, C, h, w]) -> latents to go on with or None, and whether to stop; alike on all ranks.
OnStep = Callable[[int, float, Tensor], "tuple[Tensor | None, bool]"]
MODULATION_BYTES = 1 << 30  # held at a time; SD3-medium with guidance takes 3.5 MB a step and image in fp32


class Transformer(Protocol):
    """What the loop asks of a noise prediction: an MM-DiT, or the programs of an exported one."""

    config: ModelConfig
    mesh: Mesh
    dtype: str

    @property
    def transport(self) -> str:
        """How ranks hand each other what they compute: "peer" or "collective"."""
        ...

    @property
    def modulation_count(self) -> int:
        """k, the number of vectors [D] that modulate a row in one step."""
        ...

    def prepare(
        self, context: Tensor, pooled: Tensor, timesteps: Tensor, grid: tuple[int, int], call: Call = directly
    ) -> Conditions:
        """What no step changes; as `MMDiT.prepare`."""
        ...

    def modulations(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """timesteps: [N, R] fp32, pooled: [R, P] -> [N, R, k, D]."""
        ...

    def steps(self, rows: Rows, conditions: Conditions) -> Step:
        """The step of a request."""
        ...


class Denoiser:
    """One request's loop on this rank.

    Args:
        model: what predicts the noise.
        rows: this dp rank's rows.
        text: states of these rows (guidance.join_halves).
        plan: timesteps and sigmas.
        size: latent height and width.
        graphs: steps recorded as CUDA graphs, or None to run every step's operators one by one.
        call: by which all ranks alike call what comes before the steps.
    """

    def __init__(
        self,
        model: Transformer,
        rows: Rows,
        text: TextStates,
        plan: Schedule,
        size: tuple[int, int],
        graphs: StepGraphs | None = None,
        call: Call = directly,
    ) -> None:
        self.model, self.mesh, self.rows, self.plan, self.graphs = model, model.mesh, rows, plan, graphs
        self.patch = model.config.patch_size
        self.grid = (size[0] // self.patch, size[1] // self.patch)
        self.pooled = text.pooled.astype(model.dtype)
        self.timesteps = paddle.to_tensor(np.repeat(plan.timesteps[:, None], self.pooled.shape[0], axis=1))  # [N, R]
        self.deltas = paddle.to_tensor(np.diff(plan.sigmas))  # [N] fp32
        self.window = self._window()
        first = self.timesteps[: self.window]
        context = text.context.astype(model.dtype)
        self.conditions: Conditions = model.prepare(context, self.pooled, first, self.grid, call)
        self.work: Step = model.steps(rows, self.conditions)

    def _window(self) -> int:
        """Returns how many steps' modulations are held at a time: all of them, in nearly every request."""
        width = self.model.modulation_count * self.model.config.dim
        return max(1, MODULATION_BYTES // (4 * width * self.pooled.shape[0]))

    def run(
        self, latents: Tensor, guidance_scale: float, ticks: Iterable[int], on_step: OnStep | None = None
    ) -> Tensor:
        """Denoises `latents: [B, C, h, w]` fp32 (all images, the same on every rank) and returns all images' latents.

        Args:
            ticks: iterates over 0 .. N - 1, as a progress bar does.
            on_step: called on every rank after each step; may change the latents, and stop the loop on all ranks.
        """
        tokens = self.scatter(latents)
        scale = paddle.full([], guidance_scale, dtype="float32")
        with self._graph(tokens) as graph:
            if graph is not None:
                graph.begin(self.conditions, scale)
            for index in ticks:
                with span("step"):
                    tokens = self._step(tokens, scale, index, graph)
                if on_step is not None:
                    tokens, stop = self._report(tokens, index, on_step)
                    if stop:
                        break
            return self.gather(tokens)

    def _graph(self, tokens: Tensor) -> AbstractContextManager[StepGraph | None]:
        """Lends the recorded step for this request's shape; None where there is none."""
        if self.graphs is None:
            return nullcontext()
        return self.graphs.lend(self._shape(tokens), self.work, tokens, self.conditions, self.mesh)

    def _shape(self, tokens: Tensor) -> Hashable:
        """Returns all that one recording differs from another in: what is no tensor's content."""
        context, positions, modulations, layout = self.conditions
        shapes = (tokens.shape, context.shape, positions.shape, modulations.shape[1:])
        return (id(self.model), self.rows.guidance, layout, *(tuple(shape) for shape in shapes))

    def _step(self, tokens: Tensor, guidance_scale: Tensor, index: int, graph: StepGraph | None) -> Tensor:
        """tokens: [B', ti, W] fp32 of this rank -> the same after step `index`."""
        turn, place = divmod(index, self.window)
        if turn and place == 0:
            steps = self.timesteps[index : index + self.window]
            self.conditions = self.conditions._replace(modulations=self.model.modulations(steps, self.pooled))
        modulations, delta = self.conditions.modulations[place : place + 1], self.deltas[index]
        if graph is not None:
            return graph.step(tokens, modulations, delta)
        conditions = self.conditions._replace(modulations=modulations)
        return self.work(tokens, conditions, guidance_scale, delta)

    def scatter(self, latents: Tensor) -> Tensor:
        """latents: [B, C, h, w] -> this rank's images and tokens [B', ti, W]."""
        images = latents[self.rows.images.start : self.rows.images.stop]
        return shard(patchify(images, self.patch), self.conditions.layout.image)

    def gather(self, tokens: Tensor) -> Tensor:
        """tokens: [B', ti, W] of this rank -> all latents [B, C, h, w] on every rank, in memory of their own."""
        whole = gather_tokens(self.mesh, tokens.clone(), self.conditions.layout.image)
        every = self.mesh.all_gather(self.mesh.dp, whole)  # [dp, B', Ti, W]
        if self.rows.split:  # both ranks of a pair hold the same images
            every = every[::2]
        return unpatchify(every.flatten(0, 1), self.grid, self.patch)

    def _report(self, tokens: Tensor, index: int, on_step: OnStep) -> tuple[Tensor, bool]:
        """Returns the tokens to go on with and whether a rank asked to stop."""
        changed, stop = on_step(index, float(self.plan.timesteps[index]), self.gather(tokens))
        return tokens if changed is None else self.scatter(changed.astype("float32")), stop

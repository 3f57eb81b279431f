"""An exported MM-DiT: what `denoise` asks of one, by programs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import Tensor

from sd3par.captured import Call, directly
from sd3par.conditions import Conditions, Layout, Step, shard
from sd3par.config import ModelConfig
from sd3par.mesh import Mesh
from sd3par.plan import Rows, Tokens, tokens_for
from sd3par.static.numbers import join_numbers, places, rows_of, split_numbers
from sd3par.static.program import Program

if TYPE_CHECKING:
    from sd3par.static.peers import PeerMemory


class StaticTransformer:
    """The programs of one rank.

    Args:
        prepare, step: as `parts.Prepare` and `parts.Step` say.
        peers: what a step's operators store to, None where they send.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, dtype: str, prepare: Program, step: Program, peers: PeerMemory | None
    ) -> None:
        self.config, self.mesh, self.dtype = config, mesh, dtype
        self._prepare, self._step, self._peers = prepare, step, peers

    @property
    def transport(self) -> str:
        """Returns "peer" where a rank stores to another's memory, else "collective"."""
        return "collective" if self._peers is None else "peer"

    @property
    def modulation_count(self) -> int:
        """Returns k, the number of vectors [D] that modulate a row in one step."""
        dual = len(self.config.dual_attention_layers)
        return 12 * self.config.num_layers - 4 + 3 * dual + 2  # the last block has 2 for its text; 2 are the output's

    def prepare(
        self, context: Tensor, pooled: Tensor, timesteps: Tensor, grid: tuple[int, int], call: Call = directly
    ) -> Conditions:
        """Computes what no step changes; as `MMDiT.prepare`."""
        sp = self.mesh.sp
        layout = Layout(tokens_for(sp.rank, sp.size, grid[0] * grid[1]), tokens_for(sp.rank, sp.size, context.shape[1]))
        table = places(grid, self.config.pos_embed_max_size, layout.image)
        inputs = (shard(context, layout.context), timesteps, pooled, paddle.to_tensor(table))
        states, positions, modulations = call(self._constants, *inputs)
        return Conditions(states, positions, modulations, layout)

    def _constants(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._prepare(*inputs))

    def modulations(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """timesteps: [N, R] fp32, pooled: [R, P] -> [N, R, k, D]."""
        context = paddle.zeros([pooled.shape[0], 1, self.config.joint_attention_dim], dtype=self.dtype)
        return self._prepare(context, timesteps, pooled, paddle.zeros([1], dtype="int64"))[2]

    def steps(self, rows: Rows, conditions: Conditions) -> Step:
        """Returns the denoising step of a request: one run of a program."""
        count, layout = conditions.context.shape[0], conditions.layout
        if self._peers is not None:
            self._peers.prepare(count, (layout.image.total, layout.context.total))
        numbers = rows_of(rows, count, self.mesh.dp.rank, self.mesh.dp.size)
        if self.mesh.sp.size > 1:
            streams: tuple[Tokens, ...] = (layout.image, layout.context)
            numbers += [join_numbers(tokens, count) for tokens in streams]
            numbers += [split_numbers(tokens, self.mesh.sp.size, count) for tokens in streams]
        return partial(self._advance, tuple(paddle.to_tensor(each.astype(np.int64)) for each in numbers))

    def _advance(
        self, numbers: tuple[Tensor, ...], tokens: Tensor, conditions: Conditions, guidance_scale: Tensor, delta: Tensor
    ) -> Tensor:
        context, positions, modulations, _ = conditions
        return self._step(tokens, context, positions, modulations, guidance_scale, delta, *numbers)[0]

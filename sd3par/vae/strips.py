"""The rows of the decoder's maps over the processes of the mesh, and what they tell each other."""

from __future__ import annotations

from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from sd3par import kernels
from sd3par.layers import GroupNorm
from sd3par.mesh import Mesh


@dataclass(frozen=True)
class Strips:
    """A run of rows of every map for each process, in order; maps are [B, H, W, C].

    A 3x3 convolution wants a halo: the neighbours' next row above and below, zeros where the picture ends. Each method
    but `own` is one collective; so small ones take their time whatever they carry.

    rows: of latents, of each process; s times as many of a map that is s times as high.
    """

    mesh: Mesh
    rows: tuple[int, ...]

    @classmethod
    def cut(cls, mesh: Mesh, height: int) -> Strips | None:
        """Returns the strips of `height` rows of latents; None where there is not a row for each process."""
        size = mesh.world.size
        if size == 1 or height < size:
            return None
        return cls(mesh, tuple(height // size + (rank < height % size) for rank in range(size)))

    def own(self, x: Tensor, halo: bool = False) -> Tensor:
        """x: [B, H, W, C], as high as the latents, on every process -> this one's strip, with its halo or without."""
        first, count = sum(self.rows[: self.mesh.world.rank]), self.rows[self.mesh.world.rank]
        if halo:
            return F.pad(x, [0, 0, 1, 1], data_format="NHWC")[:, first : first + count + 2].contiguous()
        return x[:, first : first + count]

    def whole(self, x: Tensor) -> Tensor:
        """x: [B, h, W, C], this process's strip -> [B, H, W, C], all of them."""
        scale = x.shape[1] // self.rows[self.mesh.world.rank]
        missing = scale * max(self.rows) - x.shape[1]  # a collective takes as much of each process
        padded = F.pad(x, [0, 0, 0, missing], data_format="NHWC") if missing else x
        every = self.mesh.all_gather(self.mesh.world, padded)  # [processes, B, most rows, W, C]
        return paddle.concat([strip[:, : scale * rows] for strip, rows in zip(every, self.rows, strict=True)], axis=1)

    def with_halo(self, x: Tensor) -> Tensor:
        """x: [B, h, W, C], this process's strip -> [B, h + 2, W, C]."""
        edges = paddle.stack([x[:, :1], x[:, -1:]])  # [2, B, 1, W, C]
        every = self.mesh.all_gather(self.mesh.world, edges)  # [processes, 2, B, 1, W, C]
        rank, nothing = self.mesh.world.rank, paddle.zeros_like(edges[0])
        above = every[rank - 1, 1] if rank > 0 else nothing
        below = every[rank + 1, 0] if rank + 1 < len(self.rows) else nothing
        return paddle.concat([above, x, below], axis=1)

    def activated(self, layer: GroupNorm, x: Tensor) -> Tensor:
        """x: [B, h, W, C], this process's strip -> the SiLU of the whole map's norm, [B, h + 2, W, C]."""
        messages = self.mesh.all_gather(self.mesh.world, kernels.pack_strip(x, layer.groups))
        strip = kernels.Strip(self.mesh.world.rank, self.rows)
        return kernels.group_norm_silu_strip(
            x, messages, strip, layer.groups, layer.weight, layer.bias, layer.epsilon
        )  # fmt: skip

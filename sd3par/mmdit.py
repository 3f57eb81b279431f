"""The MM-DiT of Stable Diffusion 3 (arXiv 2403.03206), split over mp by heads and over sp by tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from sd3par import kernels
from sd3par.attention import Attention, JointAttention
from sd3par.auto import resolved
from sd3par.captured import Call, directly
from sd3par.conditions import Conditions, Layout, Step, gather_tokens, patchify, shard, unpatchify
from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.device import choose
from sd3par.embeddings import PatchEmbedder, TimeTextEmbedder
from sd3par.guidance import halves
from sd3par.layers import Linear
from sd3par.mesh import Mesh, world_size
from sd3par.padding import merge, pad
from sd3par.plan import Rows, WeightPlan, mmdit_source, tokens_for
from sd3par.ranges import span
from sd3par.routes import Routes, routes_for
from sd3par.sums import Branch, GatedBranches
from sd3par.watchdog import connect
from sd3par.weights import open_transformer
from sd3par.weights.fill import Component, fill


class Residual(NamedTuple):
    """A stream of tokens x: [R, T, D] and a branch not yet added to it: the addition waits for the next norm."""

    x: Tensor
    branch: Tensor | None = None  # [R, T, D], or its parts, [mp, R, T, D]
    gate: Tensor | None = None  # [R, D], or None for a branch that is gated already

    def modulated(self, *modulations: kernels.Modulation) -> kernels.Stream:
        """(scale, shift), [R, D] each, once or twice -> what the next norm is of."""
        return kernels.Stream(*self, modulations)


def plan_of(config: ModelConfig, mesh: Mesh) -> WeightPlan:
    """Returns which weights this rank holds."""
    heads, head_dim = config.num_attention_heads, config.attention_head_dim
    return WeightPlan(heads, head_dim, mesh.mp.size, mesh.mp.rank, mesh.sp.size)


class FeedForward(nn.Layer):
    """Two linears with a tanh-GELU between them, up by columns and down by rows."""

    def __init__(self, dim: int, plan: WeightPlan, dtype: str) -> None:
        super().__init__()
        self.up = Linear(dim, plan.share(4 * dim), dtype)
        self.down = Linear(plan.share(4 * dim), dim, dtype)

    def first(self, x: Tensor) -> kernels.Product:
        """x: [R, T, D] -> the first product, before its GELU."""
        return kernels.Product(x, self.up.weight, self.up.bias)


class Modulation(nn.Layer):
    """The linear of an adaLN, by columns; its input is silu(temb). Computed for all steps before the loop."""

    def __init__(self, dim: int, count: int, plan: WeightPlan, dtype: str) -> None:
        super().__init__()
        self.count = count
        self.widths = [len(run) for run in plan.columns(count * dim)]  # of each mp rank, the widest first
        self.linear = Linear(dim, plan.share(count * dim), dtype)

    def forward(self, condition: Tensor) -> Tensor:
        """condition: [N, R, D] -> this mp rank's columns, [N, R, widest]: zeros behind them where others have more."""
        return pad(self.linear(condition), 2, self.widths[0])


class JointBlock(nn.Layer):
    """One block: joint attention of both streams (and one of the image alone in a dual block), then two MLPs.

    The last block has no text output. Two sums over mp, each of both streams in one buffer, or one, of the MLPs.
    """

    def __init__(self, config: ModelConfig, index: int, plan: WeightPlan, routes: Routes, dtype: str) -> None:
        super().__init__()
        dim, norm = config.dim, config.qk_norm is not None
        self.exchange, self.sums = routes
        self.last = index == config.num_layers - 1
        dual = index in config.dual_attention_layers
        self.norm1 = Modulation(dim, 9 if dual else 6, plan, dtype)
        self.norm1_context = Modulation(dim, 2 if self.last else 6, plan, dtype)
        self.attn = JointAttention(plan, dtype, norm, self.last)
        self.attn2 = Attention(plan, dtype, norm) if dual else None
        self.ff = FeedForward(dim, plan, dtype)
        self.ff_context = None if self.last else FeedForward(dim, plan, dtype)

    def forward(
        self, image: Residual, context: Residual, mod: Tensor, mod_context: Tensor, layout: Layout
    ) -> tuple[Residual, Residual]:
        """image: [R, ti, D], context: [R, tc, D], mod: [R, 6 or 9, D], mod_context: [R, 6 or 2, D] -> both streams.

        Under mp a rank may hold some of these tokens only, as `Sums.held` says.
        """
        if self.last:  # AdaLayerNormContinuous: scale first
            scale_c, shift_c = mod_context.unbind(1)
        else:
            shift_c, scale_c, gate_c, shift_c2, scale_c2, gate_c2 = mod_context.unbind(1)
        shift, scale, gate, shift2, scale2, gate2, *dual = mod.unbind(1)
        lengths = [layout.image.size, layout.context.size]

        text = context.modulated((scale_c, shift_c))
        if self.attn2 is None:
            (residual, x), (residual_c, c) = self.sums.norm([image.modulated((scale, shift)), text], lengths)
            x, *rest = self._attend(x, c, layout)
            image = Residual(residual, x, gate)
        else:
            shift_d, scale_d, gate_d = dual
            both = image.modulated((scale, shift), (scale_d, shift_d))
            (residual, x, x2), (residual_c, c) = self.sums.norm([both, text], lengths)
            x, *rest = self._attend_dual(self.attn2, x, x2, c, gate, gate_d, layout)
            image = Residual(residual, x)

        if self.ff_context is None:
            ((residual, x),) = self.sums.norm([image.modulated((scale2, shift2))], lengths[:1])
            (x,) = self._feed_forward([(self.ff, x)])
            return Residual(residual, x, gate2), Residual(residual_c)
        text = Residual(residual_c, rest[0], gate_c).modulated((scale_c2, shift_c2))
        (residual, x), (residual_c, c) = self.sums.norm([image.modulated((scale2, shift2)), text], lengths)
        x, c = self._feed_forward([(self.ff, x), (self.ff_context, c)])
        return Residual(residual, x, gate2), Residual(residual_c, c, gate_c2)

    def _attend(self, x: Tensor, c: Tensor, layout: Layout) -> list[Tensor]:
        """x: [R, ti, D], c: [R, tc, D] -> what attention adds to the image and, but in the last block, to the text."""
        tokens, attn = list(layout), self.attn
        x, c = self.exchange.project([attn.project_image(x), attn.project_context(c)], tokens)
        x, c = self.exchange.attend([[attn.heads_of_image(x), attn.heads_of_context(c)]], tokens)
        return self.sums.out([Branch(x, attn.to_out), *self._text(c)])

    def _attend_dual(
        self, attn2: Attention, x: Tensor, x2: Tensor, c: Tensor, gate: Tensor, gate2: Tensor, layout: Layout
    ) -> list[Tensor]:
        """Both attentions of a dual block in one exchange; what they add to the image comes gated and added up."""
        tokens, attn = [layout.image, layout.context, layout.image], self.attn
        projections = [attn.project_image(x), attn.project_context(c), attn2.project_image(x2)]
        x, c, x2 = self.exchange.project(projections, tokens)
        joint = [attn.heads_of_image(x), attn.heads_of_context(c)]
        x, c, x2 = self.exchange.attend([joint, [attn2.heads_of_image(x2)]], tokens)
        both = GatedBranches(Branch(x, attn.to_out), gate, Branch(x2, attn2.to_out), gate2)
        return self.sums.out([both, *self._text(c)])

    def _feed_forward(self, streams: list[tuple[FeedForward, Tensor]]) -> list[Tensor]:
        """x: [R, t, D] of each stream -> their MLPs' sums over mp."""
        hidden = self.sums.multiply([mlp.first(x) for mlp, x in streams], gelu=True)
        return self.sums.add([Branch(x, mlp.down) for x, (mlp, _) in zip(hidden, streams, strict=True)])

    def _text(self, c: Tensor) -> list[Branch]:
        """c: [R, tc, inner] -> the product that is the text's output; none in the last block."""
        return [] if self.attn.to_add_out is None else [Branch(c, self.attn.to_add_out)]


class MMDiT(nn.Layer):
    """Noise prediction of SD3 for latents and text states.

    Args:
        config: the model's shape.
        mesh: the processes that share the work.
        dtype: of weights and activations.

    Raises:
        ConfigError: mp * sp are more than the heads.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, dtype: str = "float32") -> None:
        super().__init__()
        config.check_mesh(ParallelConfig(mesh.dp.size, mesh.mp.size, mesh.sp.size))
        self.config, self.mesh, self.dtype, plan = config, mesh, dtype, plan_of(config, mesh)
        self.routes = routes_for(mesh, plan, dtype)
        plan = replace(plan, whole_out=self.routes.whole_out)
        self.pos_embed = PatchEmbedder(config, dtype)
        self.time_text_embed = TimeTextEmbedder(config.dim, config.pooled_projection_dim, dtype)
        self.context_embedder = Linear(config.joint_attention_dim, config.dim, dtype)
        self.transformer_blocks = nn.LayerList(
            [JointBlock(config, i, plan, self.routes, dtype) for i in range(config.num_layers)]
        )
        self.norm_out = Modulation(config.dim, 2, plan, dtype)
        self.proj_out = Linear(config.dim, config.patch_size**2 * config.channels_out, dtype)

    @classmethod
    def load(cls, component: Component, dtype: str, mesh: Mesh) -> MMDiT:
        """Returns the model of a checkpoint's `transformer` component, each rank reading its slices.

        Raises:
            ConfigError, CheckpointError: config or tensors do not fit.
        """
        config = parse_config(ModelConfig, component.config, component.where)
        model = cls(config, mesh, dtype)
        model.eval()
        fill(model, component.checkpoint, mmdit_source)
        return model

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str = "auto",
        parallel: ParallelConfig | str = ParallelConfig(),
        device: str = "auto",
    ) -> MMDiT:
        """Returns the model in `path`: a diffusers `transformer/` folder or any checkpoint that SD3Pipeline takes.

        parallel: as there, so "auto" is the mesh for one picture with guidance on all processes.

        Raises:
            ConfigError, CheckpointError: what is asked for is not possible, or the files do not fit.
            RankFailure: the other processes did not come up.
        """
        target, component = choose(dtype, device), open_transformer(path)
        config = parse_config(ModelConfig, component.config, component.where)
        parallel = resolved(parallel, config, target, world_size())
        target.activate()
        mesh, watchdog = connect(parallel)
        with watchdog.told_of_errors():
            model = cls.load(component, target.dtype, mesh)
            mesh.meet("loaded")
        model.watchdog = watchdog
        return model

    def modulated_layers(self) -> list[Modulation]:
        """Returns every adaLN's linear: two a block (image, text), then the output's."""
        pairs = [(block.norm1, block.norm1_context) for block in self.transformer_blocks]
        return [layer for pair in pairs for layer in pair] + [self.norm_out]

    def prepare(
        self, context: Tensor, pooled: Tensor, timesteps: Tensor, grid: tuple[int, int], call: Call = directly
    ) -> Conditions:
        """Computes what no step changes.

        context: [R, Tc, J] and pooled: [R, P], text states of this dp rank's rows; timesteps: [N, R] fp32, of every
        step; grid: patches down and across; call: records what takes many small operators.
        """
        sp = self.mesh.sp
        layout = Layout(tokens_for(sp.rank, sp.size, grid[0] * grid[1]), tokens_for(sp.rank, sp.size, context.shape[1]))
        constants = call(self.constants, shard(context, layout.context), timesteps, pooled)
        positions = shard(self.pos_embed.positions(grid).unsqueeze(0), layout.image)[0]
        return Conditions(constants[0], positions, constants[1], layout)

    def constants(self, context: Tensor, timesteps: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """context: [R, tc, J], timesteps: [N, R] fp32, pooled: [R, P] -> [R, tc, D] and modulations [N, R, k, D]."""
        return self.context_embedder(context), self.modulations(timesteps, pooled)

    def modulations(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """timesteps: [N, R] fp32, pooled: [R, P] -> [N, R, k, D], of all adaLNs.

        Under mp each rank computes columns; they are gathered once for all layers and steps.
        """
        return self.modulated(self.time_text_embed(timesteps, pooled))

    def modulated(self, temb: Tensor) -> Tensor:
        """temb: [N, R, D] -> [N, R, k, D]."""
        condition = F.silu(temb)
        layers = self.modulated_layers()
        parts = [layer(condition) for layer in layers]
        if self.mesh.mp.size > 1:
            joined = self.mesh.all_gather(self.mesh.mp, paddle.concat(parts, axis=-1))  # [mp, N, R, sum]
            joined = joined.split([part.shape[-1] for part in parts], axis=-1)
            parts = [merge(part, layer.widths) for part, layer in zip(joined, layers, strict=True)]
        parts = [part.reshape([0, 0, layer.count, -1]) for part, layer in zip(parts, layers, strict=True)]
        return paddle.concat(parts, axis=2)

    def step(self, latents: Tensor, conditions: Conditions, index: int) -> Tensor:
        """Predicts the noise of step `index` on this rank's tokens.

        latents: [B, ti, p * p * C], patches of this sp rank; the B images are repeated where the conditions hold 2B
        rows (unconditional, then conditional). Returns [R, ti, p * p * C], R the rows of the conditions.
        """
        sums, layout = self.routes.sums, conditions.layout
        embedded = self.pos_embed(latents, conditions.positions, conditions.context.shape[0])
        image, context = map(Residual, sums.held([embedded, conditions.context]))
        # Slices are views; Paddle's split copies (3.3.1).
        ends = accumulate(layer.count for layer in self.modulated_layers())
        mods = [conditions.modulations[index, :, start:end] for start, end in pairwise([0, *ends])]
        for i, block in enumerate(self.transformer_blocks):
            with span("block"):
                image, context = block(image, context, mods[2 * i], mods[2 * i + 1], layout)
        scale, shift = mods[-1].unbind(1)  # AdaLayerNormContinuous: scale first
        ((_, x),) = sums.norm([image.modulated((scale, shift))], [layout.image.size], last=True)
        return self.proj_out(x)

    @property
    def transport(self) -> str:
        """Returns how ranks hand each other what they compute: "peer" or "collective"."""
        return self.routes.transport

    @property
    def modulation_count(self) -> int:
        """Returns k, the number of vectors [D] that modulate a row in one step."""
        return sum(layer.count for layer in self.modulated_layers())

    def steps(self, rows: Rows, conditions: Conditions) -> Step:
        """Returns the denoising step of a request: of these rows of this rank, under what `prepare` gave."""
        return partial(self.advance, rows)

    def advance(
        self, rows: Rows, tokens: Tensor, conditions: Conditions, guidance_scale: Tensor, delta: Tensor
    ) -> Tensor:
        """Prediction, guidance and Euler step: what a graph records.

        tokens: [B', ti, W] fp32 of this rank; conditions: with the modulations [1, R, k, D] of this step;
        guidance_scale and delta: [] fp32. Returns the tokens after the step.
        """
        uncond, cond = halves(self.step(tokens, conditions, 0), rows, self.mesh)
        return kernels.guidance_euler(tokens, uncond, cond, guidance_scale, delta)

    def forward(self, latents: Tensor, context: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        """Predicts the noise of a whole batch; every rank passes and gets all rows.

        latents: [R, C, H/8, W/8], context: [R, Tc, J], pooled: [R, P], timestep: [R] -> [R, C, H/8, W/8].

        Raises:
            ConfigError: shapes that do not fit the model or each other, or rows that dp does not divide.
        """
        given = {"latents": latents, "context": context, "pooled": pooled, "timestep": timestep}
        self.config.check_batch({name: tensor.shape for name, tensor in given.items()}, self.mesh.dp.size)
        dp, p = self.mesh.dp, self.config.patch_size
        share = latents.shape[0] // dp.size
        mine = slice(dp.rank * share, (dp.rank + 1) * share)
        grid = (latents.shape[2] // p, latents.shape[3] // p)
        times = timestep[mine].astype("float32").unsqueeze(0)
        conditions = self.prepare(context[mine].astype(self.dtype), pooled[mine].astype(self.dtype), times, grid)
        tokens = shard(patchify(latents[mine].astype("float32"), p), conditions.layout.image)
        x = self.step(tokens, conditions, 0)
        x = gather_tokens(self.mesh, x, conditions.layout.image)
        x = self.mesh.all_gather(dp, x).flatten(0, 1)  # [R, Ti, p * p * C]
        return unpatchify(x, grid, p)

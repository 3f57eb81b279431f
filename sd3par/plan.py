"""Who holds what: parameters over mp, rows over dp, tokens over sp. Pure functions, no communication."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError

MOST_RANKS = 1025  # more than an axis has


def runs(total: int, parts: int, unit: int = 1) -> list[range]:
    """Returns `total` cut into `parts` runs of whole units, the longest first; they differ by one unit at most."""
    count = total // unit
    lengths = [(count + parts - 1 - i) // parts * unit for i in range(parts)]
    return [range(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]


@dataclass(frozen=True)
class Share:
    """What a rank holds of an axis of `total` numbers: these pieces of it, joined in this order."""

    total: int
    pieces: tuple[range, ...]

    @property
    def size(self) -> int:
        """How many numbers that is."""
        return sum(map(len, self.pieces))

    @property
    def first(self) -> bool:
        """Whether this is the rank that holds the beginning: of the ranks that add up, one adds the bias."""
        return self.pieces[0].start == 0


def whole(total: int) -> Share:
    """Returns the share of who holds all of an axis of `total` numbers."""
    return Share(total, (range(total),))


@dataclass(frozen=True)
class WeightPlan:
    """Which part of an MM-DiT's weights mp rank `mp_rank` of `mp` holds, and which of its heads go to which sp rank.

    Heads stay whole: 38 over mp 4 are 10, 10, 9 and 9.

    whole_out: every mp rank gets what all heads make of its own tokens, and holds all of the product after attention.
    """

    heads: int
    head_dim: int
    mp: int = 1
    mp_rank: int = 0
    sp: int = 1
    whole_out: bool = False

    @property
    def groups(self) -> list[range]:
        """The heads of each sp rank, of those that this mp rank holds."""
        mine = runs(self.heads, self.mp)[self.mp_rank]
        return [mine[one.start : one.stop] for one in runs(len(mine), self.sp)]

    @property
    def qkv(self) -> Share:
        """Outputs of q, k and v end to end: sp rank by sp rank, the q, k and v of its heads."""
        pieces = (self._features(one, qkv * self.dim) for one in self.groups for qkv in range(3))
        return Share(3 * self.dim, tuple(pieces))

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        return self.heads * self.head_dim

    @property
    def mixed(self) -> Share:
        """What this mp rank's heads make of a token."""
        return Share(self.dim, (self._features(runs(self.heads, self.mp)[self.mp_rank]),))

    @property
    def out(self) -> Share:
        """Inputs of the product after attention."""
        return whole(self.dim) if self.whole_out else self.mixed

    def columns(self, total: int) -> list[range]:
        """Returns each mp rank's run of `total` columns that belong to no head: alike, or else by `head_dim`."""
        return runs(total, self.mp, 1 if total % self.mp == 0 else self.head_dim)

    def share(self, total: int) -> Share:
        """Returns this mp rank's run of them."""
        return Share(total, (self.columns(total)[self.mp_rank],))

    def _features(self, heads: range, offset: int = 0) -> range:
        return range(offset + heads.start * self.head_dim, offset + heads.stop * self.head_dim)


@dataclass(frozen=True)
class Source:
    """Where one parameter comes from: checkpoint keys, packed side by side on the output axis."""

    keys: tuple[str, ...]


def same_name(parameter: str) -> Source:
    """Returns the source of a parameter that the checkpoint has under the same name."""
    return Source((parameter,))


# Linear of an attention or MLP of the MM-DiT -> checkpoint keys beside it.
_LINEARS: dict[str, tuple[str, ...]] = {
    "qkv": ("to_q", "to_k", "to_v"),
    "qkv_context": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_out": ("to_out.0",),
    "to_add_out": ("to_add_out",),
    "up": ("net.0.proj",),
    "down": ("net.2",),
}
_BLOCK = re.compile(r"(transformer_blocks\.\d+\.(?:attn2?|ff|ff_context))\.(\w+)\.(weight|bias)")


def mmdit_source(parameter: str) -> Source:
    """Returns where the MM-DiT's parameter `parameter` comes from (diffusers' names)."""
    match = _BLOCK.fullmatch(parameter)
    if match and match[2] in _LINEARS:
        parent, linear, kind = match.groups()
        return Source(tuple(f"{parent}.{key}.{kind}" for key in _LINEARS[linear]))
    return same_name(parameter)


@dataclass(frozen=True)
class Rows:
    """The rows of one dp rank.

    images: the run of images that this rank renders, of the request's B.
    guidance: "both" rows of each image, or "uncond" or "cond" alone: then the other half is on the rank's partner and
    the noise predictions are gathered once a step. "none" without guidance.
    """

    images: range
    guidance: Literal["both", "uncond", "cond", "none"]

    @property
    def split(self) -> bool:
        """Whether the two halves of the guidance batch are on two ranks."""
        return self.guidance in ("uncond", "cond")


def rows_for(dp_rank: int, dp: int, images: int, guidance: bool) -> Rows:
    """Returns the rows of dp rank `dp_rank` of `dp` for `images` images.

    Whole images where dp divides their number: nothing is sent between dp ranks in the loop. Else, with guidance, dp/2
    groups of images, each on a pair of ranks (uncond, cond).

    Raises:
        ConfigError: dp divides neither the images nor, with guidance, the rows.
    """
    if images % dp == 0:
        share = images // dp
        return Rows(range(dp_rank * share, (dp_rank + 1) * share), "both" if guidance else "none")
    if guidance and dp % 2 == 0 and images % (dp // 2) == 0:
        share = images // (dp // 2)
        group, half = divmod(dp_rank, 2)
        return Rows(range(group * share, (group + 1) * share), "cond" if half else "uncond")
    raise ConfigError("dp_size", dp, f"{_possible_dp(images, guidance)} for {images} image(s) "
                      + ("with guidance" if guidance else "without guidance"))  # fmt: skip


def _possible_dp(images: int, guidance: bool) -> list[int]:
    divisors = {n for n in range(1, images + 1) if images % n == 0}
    return sorted(divisors | {2 * n for n in divisors} if guidance else divisors)


def fewest_images(dp: int) -> int:
    """Returns the smallest number of images that `dp` ranks can share, with guidance."""
    return dp // 2 if dp % 2 == 0 else dp


@dataclass(frozen=True)
class Tokens:
    """The tokens of one sp rank: `start:stop` of `total`, then padding up to `size` (the same on every rank)."""

    start: int
    stop: int
    size: int
    total: int

    @property
    def length(self) -> int:
        """How many tokens these are, without padding."""
        return self.stop - self.start

    @property
    def padding(self) -> int:
        """Number of padding tokens at the end of this rank's shard."""
        return self.size - self.length


def tokens_for(sp_rank: int, sp: int, total: int) -> Tokens:
    """Returns the run of `total` tokens that sp rank `sp_rank` of `sp` holds; padding stands after the last token."""
    size = -(-total // sp)
    start = min(sp_rank * size, total)
    return Tokens(start, min(start + size, total), size, total)


def clip_ranks(world: int) -> tuple[int, int]:
    """Returns the ranks that run CLIP-L and CLIP-G: the last ones."""
    return max(world - 2, 0), world - 1


def axis_ranks(parallel: ParallelConfig, rank: int) -> dict[str, list[int]]:
    """Returns which ranks, in order, are on each axis with rank `rank`: of dp, sp, mp and the world."""
    rest, mp_rank = divmod(rank, parallel.mp)
    dp_rank, sp_rank = divmod(rest, parallel.sp)
    plane = parallel.sp * parallel.mp
    return {
        "dp": [d * plane + sp_rank * parallel.mp + mp_rank for d in range(parallel.dp)],
        "sp": [dp_rank * plane + s * parallel.mp + mp_rank for s in range(parallel.sp)],
        "mp": [rank - mp_rank + m for m in range(parallel.mp)],
        "world": list(range(parallel.world)),
    }


def ring(ranks: Sequence[int], world: int) -> int:
    """Returns the number of the group of `ranks`, a run with equal steps: 0 for the world.

    It follows from them alone, so that programs find their groups whatever was made before them in the process.
    """
    if len(ranks) in (1, world):
        return 0
    return (ranks[0] * MOST_RANKS + len(ranks)) * MOST_RANKS + ranks[1] - ranks[0]


def check_world(parallel: ParallelConfig, world: int) -> None:
    """Raises ConfigError, which says what to type, unless dp * mp * sp processes were started."""
    if parallel.world != world:
        product = f"dp_size {parallel.dp} x mp_size {parallel.mp} x sp_size {parallel.sp} = {parallel.world}"
        raise ConfigError(
            "dp_size * mp_size * sp_size", parallel.world,
            f"{world}, the number of processes that were started; {product} needs "
            f"python -m paddle.distributed.launch --nproc_per_node {parallel.world} (GPUs: --gpus "
            f"{','.join(str(i) for i in range(parallel.world))})",
        )  # fmt: skip

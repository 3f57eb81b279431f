"""Who holds what: parameters over mp, rows over dp, tokens over sp. Pure functions, no communication."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError

Split = Literal["none", "column", "row", "row_bias"]


@dataclass(frozen=True)
class Source:
    """Where one parameter comes from: checkpoint keys, packed side by side on the output axis, and how mp splits it.

    column: each mp rank holds a run of outputs. row: a run of inputs. row_bias: mp rank 0 holds it all and the others
    zeros, so that the sum over ranks counts it once.
    """

    keys: tuple[str, ...]
    split: Split = "none"


def same_name(parameter: str) -> Source:
    """Returns the source of a parameter that the checkpoint has under the same name, whole on every rank."""
    return Source((parameter,))


# Linear of an attention or MLP of the MM-DiT -> checkpoint keys beside it, split. Biases follow their weight.
_LINEARS: dict[str, tuple[tuple[str, ...], Split]] = {
    "qkv": (("to_q", "to_k", "to_v"), "column"),
    "qkv_context": (("add_q_proj", "add_k_proj", "add_v_proj"), "column"),
    "to_out": (("to_out.0",), "row"),
    "to_add_out": (("to_add_out",), "row"),
    "up": (("net.0.proj",), "column"),
    "down": (("net.2",), "row"),
}
_BLOCK = re.compile(r"(transformer_blocks\.\d+\.(?:attn2?|ff|ff_context))\.(\w+)\.(weight|bias)")
_MODULATION = re.compile(r"(transformer_blocks\.\d+\.norm1(?:_context)?\.linear|norm_out\.linear)\.(weight|bias)")


def mmdit_source(parameter: str) -> Source:
    """Returns where the MM-DiT's parameter `parameter` comes from (diffusers' names) and how mp splits it."""
    match = _BLOCK.fullmatch(parameter)
    if match and match[2] in _LINEARS:
        parent, linear, kind = match.groups()
        keys, split = _LINEARS[linear]
        names = tuple(f"{parent}.{key}.{kind}" for key in keys)
        return Source(names, "row_bias" if split == "row" and kind == "bias" else split)
    if _MODULATION.fullmatch(parameter):
        return Source((parameter,), "column")
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


@dataclass(frozen=True)
class Tokens:
    """The tokens of one sp rank: `start:stop` of `total`, then padding up to `size` (the same on every rank)."""

    start: int
    stop: int
    size: int
    total: int

    @property
    def padding(self) -> int:
        """Number of padding tokens at the end of this rank's shard."""
        return self.size - (self.stop - self.start)


def tokens_for(sp_rank: int, sp: int, total: int) -> Tokens:
    """Returns the run of `total` tokens that sp rank `sp_rank` of `sp` holds; padding stands after the last token."""
    size = -(-total // sp)
    start = min(sp_rank * size, total)
    return Tokens(start, min(start + size, total), size, total)


def split_axis(parallel: ParallelConfig, *counts: int) -> str:
    """Returns which processes split what has `counts` equal pieces: the most whose number divides all of the counts.

    "world": all processes; "mp", "sp" or "dp": those of that axis, of which rank 0 is one; "none": rank 0 alone.
    """
    sizes = {"world": parallel.world, "mp": parallel.mp, "sp": parallel.sp, "dp": parallel.dp}
    fitting = [name for name, size in sizes.items() if all(count % size == 0 for count in counts)]
    best = max(fitting, key=lambda name: sizes[name], default="none")
    return best if best == "world" or sizes.get(best, 1) > 1 else "none"


def clip_ranks(world: int) -> tuple[int, int]:
    """Returns the ranks that run CLIP-L and CLIP-G: the last ones, which have no T5 where it cannot be split."""
    return max(world - 2, 0), world - 1


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

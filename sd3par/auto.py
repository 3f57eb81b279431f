"""Which mesh to take: the meshes that are possible, and the rule that picks one of them where the caller leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sd3par.config import ModelConfig, ParallelConfig, require
from sd3par.errors import ConfigError
from sd3par.plan import rows_for

if TYPE_CHECKING:
    from sd3par.device import Device

# Of a card's memory, the most that the MM-DiT's weights may take: text encoders (T5 alone has 9.5 GB in bfloat16, split
# over all processes), autoencoder, activations and recorded steps need the rest.
WEIGHTS_SHARE = 0.6


@dataclass(frozen=True)
class Sizes:
    """Sizes of the mesh that the caller wants; None leaves one open."""

    dp: int | None = None
    mp: int | None = None
    sp: int | None = None

    def allow(self, parallel: ParallelConfig) -> bool:
        """Whether `parallel` is as wanted."""
        pairs = ((self.dp, parallel.dp), (self.mp, parallel.mp), (self.sp, parallel.sp))
        return all(want in (None, have) for want, have in pairs)

    @property
    def cards(self) -> int:
        """The fewest processes that have these sizes."""
        return (self.dp or 1) * (self.mp or 1) * (self.sp or 1)

    def __str__(self) -> str:
        return ", ".join(f"{axis}_size {size}" for axis, size in vars(self).items() if size is not None)


def meshes(cards: int, images: int, guidance: bool, heads: int) -> list[ParallelConfig]:
    """Returns every mesh of `cards` processes that can render `images` pictures at once with a model of `heads` heads.

    Those with the most data parallelism come first, then those with the most sequence parallelism.
    """
    found = [ParallelConfig(dp, mp, cards // dp // mp) for dp in _divisors(cards) for mp in _divisors(cards // dp)]
    legal = [one for one in found if one.mp * one.sp <= heads and _splits(one.dp, images, guidance)]
    return sorted(legal, key=lambda one: (-one.dp, -one.sp))


def auto_mesh(
    cards: int,
    images: int,
    guidance: bool,
    heads: int,
    weight_bytes: int = 0,
    card_bytes: int | None = None,
    wanted: Sizes = Sizes(),
    exact: bool = False,
) -> ParallelConfig:
    """Returns the mesh for a request, by a rule that looks at nothing but these numbers:

    1. mp as small as the weights allow, so 1 where they fit: its norms and sums send the most.
    2. dp as large as pictures and the two halves of guidance allow: it sends next to nothing.
    3. sp is the rest.

    That is the order of the measured times (two H200s, SD3-medium, 1024 x 1024: dp 0.480 s, sp 0.491 s, mp 0.509 s).
    For more cards benchmarks/scaling.md compares it with a model of the time.

    Args:
        cards: processes, all of which are used where any mesh of so many is possible.
        images: pictures rendered at once.
        guidance: whether unconditional rows are rendered too.
        heads: the model's attention heads.
        weight_bytes: of the whole MM-DiT; card_bytes: memory of one card, None for no limit.
        wanted: sizes that the caller chose.
        exact: refuse rather than leave cards idle.

    Raises:
        ConfigError: no such mesh.
    """

    def preference(mesh: ParallelConfig) -> tuple[bool, int, int]:
        # A rank has up to 0.53, 0.29 and 0.17 of them at mp 2, 4 and 8 (`WeightPlan.whole_out`): the share has room.
        large = card_bytes is not None and weight_bytes > WEIGHTS_SHARE * card_bytes * mesh.mp
        return large, -mesh.mp if large else mesh.mp, -mesh.dp

    for count in [cards] if exact else range(cards, 0, -1):
        possible = [mesh for mesh in meshes(count, images, guidance, heads) if wanted.allow(mesh)]
        if possible:
            return min(possible, key=preference)
    given = f" with {wanted}" if str(wanted) else ""
    raise ConfigError(
        "dp_size * mp_size * sp_size", f"auto for {cards} process(es){given}",
        f"another number of processes: no mesh of them renders {images} image(s) "
        f"{'with' if guidance else 'without'} guidance by {heads} heads",
    )  # fmt: skip


def weight_bytes(model: ModelConfig, dtype: str) -> int:
    """Returns the bytes of an MM-DiT's blocks: the QKV, output, MLP and modulation matrices of both streams."""
    blocks = 36 * model.num_layers + 7 * len(model.dual_attention_layers)  # a second attention, three modulations more
    return blocks * model.dim**2 * (4 if dtype == "float32" else 2)


def needs(model: ModelConfig, target: Device) -> tuple[int, int, int | None]:
    """Returns heads, weight_bytes and card_bytes for `auto_mesh`; the CPU's memory is one for all, and no limit."""
    card_bytes = None if target.kind == "cpu" else target.total_memory()
    return model.num_attention_heads, weight_bytes(model, target.dtype), card_bytes


def resolved(parallel: ParallelConfig | str, model: ModelConfig, target: Device, world: int) -> ParallelConfig:
    """Returns the mesh of `world` processes on `target`, chosen for one picture with guidance where it is "auto".

    Raises:
        ConfigError: no mesh, or one that the model cannot have.
    """
    if parallel == "auto":
        return auto_mesh(world, 1, True, *needs(model, target), exact=True)
    if not isinstance(parallel, ParallelConfig):
        raise ConfigError("parallel", parallel, 'a ParallelConfig(dp=..., mp=..., sp=...), or "auto"')
    model.check_mesh(parallel)
    check_transport(parallel, target)
    return parallel


def check_transport(parallel: ParallelConfig, target: Device) -> None:
    """Raises ConfigError where ranks shall store to each other's memory and never can on such a device and dtype.

    What only the ranks can find out `routes.routes_for` refuses, in the same words.
    """
    if parallel.transport != "peer" or parallel.mp * parallel.sp == 1:
        return
    from sd3par import kernels  # which imports Triton: nobody else chooses a mesh by it

    reason = kernels.why_never_peers(target.dtype, target.kind)
    require(not reason, "transport", "peer", f"auto or collective: {reason}")


def _divisors(number: int) -> Iterable[int]:
    return (n for n in range(1, number + 1) if number % n == 0)


def _splits(dp: int, images: int, guidance: bool) -> bool:
    try:
        rows_for(0, dp, images, guidance)
    except ConfigError:
        return False
    return True

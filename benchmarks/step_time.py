"""What a denoising step takes on a mesh, from arithmetic, bytes and meetings: a model with few numbers, all measured.

A step is its kernels' times, those that a card takes when each is launched again and again, times `SLOWER`, and what of
the bytes to other cards no kernel hides. `benchmarks/scaling.md` has its errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sd3par.config import ModelConfig, ParallelConfig
from sd3par.copied_sums import copies_rows

HALF = 2  # bytes of a number

# One H200, bfloat16, SD3-medium at 1024 x 1024 with guidance and 333 text tokens; commit 6e9fa7d. Microseconds.
# Products of both streams, by (rows of both, columns, depth).
PRODUCTS = {
    (8858, 4608, 1536): 164.6, (8858, 1536, 1536): 60.7, (8858, 6144, 1536): 221.2, (8858, 1536, 6144): 217.3,
    (4429, 4608, 1536): 87.5, (4429, 1536, 1536): 34.5, (4429, 6144, 1536): 117.6, (4429, 1536, 6144): 115.6,
    (2215, 4608, 1536): 50.0, (2215, 1536, 1536): 19.0, (2215, 6144, 1536): 67.0, (2215, 1536, 6144): 63.0,
    (1108, 4608, 1536): 28.5, (1108, 1536, 1536): 11.1, (1108, 6144, 1536): 38.8, (1108, 1536, 6144): 34.2,
}  # fmt: skip
# Attention of 4429 tokens, by (rows, heads).
ATTENTION = {(2, 24): 446.0, (1, 24): 231.0, (2, 12): 228.0, (1, 12): 120.0, (1, 6): 68.0, (1, 3): 42.0}
# Loop seconds of 28 steps, by (dp, mp, sp), means of runs 44bb1c2ca30e and f7aa298bc1c2 (mp 2 of the second alone), and
# milliseconds of decoding, by cards.
LOOPS = {(1, 1, 1): 0.874, (2, 1, 1): 0.477, (1, 1, 2): 0.488, (1, 2, 1): 0.509}
DECODE_MS = {1: 17.8, 2: 9.7}

# Least squares of relative errors: of the four products of a block together, and of each attention.
PRODUCT_FLOPS, PRODUCT_US = 784e12, 8.5
ATTENTION_FLOPS, ATTENTION_US = 564e12, 15.0
NORM_BYTES, NORM_US = 3.9e12, 2.0  # gate, residual and norm of both streams: 30 us for 109 MB
PEER_BYTES = 352e9  # a kernel's stores to another card's memory over NVLink: 10 MB in 30 us
MEETING_US = 5.0
GATHER_US = 20.0  # a small all-gather of NCCL's inside a graph: assumed, not measured
# Noise, text embedding and modulations of two rows: by what two loops of one step exceed one of two (steps.jsonl: 3.9
# by medians, 2.6 by minima). The fit does not tell 0 from 12.
LOOP_MS = 4.0
# Least squares of relative errors of `LOOPS` but mp: kernels in a recorded step to kernels alone (a hotter card), and
# how many of the bytes that products and attention store to peers while they compute cost time.
SLOWER, EXPOSED = 1.122, 0.26
# Of the time that norms take to other cards what remains where they are copied beside products, by the loop of mp.
COPIED = 0.29


class Network(NamedTuple):
    """Cards of a host, and what reaches a card of another host: bytes a second, and microseconds of a message."""

    cards: int = 8
    bytes: float = 50e9
    us: float = 20.0


ONE_HOST = Network()


@dataclass(frozen=True)
class Work:
    """What is rendered: image and text tokens of a row, and pictures at once."""

    model: ModelConfig
    image_tokens: int = 4096
    text_tokens: int = 333
    images: int = 1
    guidance: bool = True
    steps: int = 28

    def rows(self, mesh: ParallelConfig) -> int:
        """Returns how many rows a card computes."""
        return self.images * (2 if self.guidance else 1) // mesh.dp

    def tokens(self, mesh: ParallelConfig) -> int:
        """Returns how many tokens of a row a card holds, of both streams, padding included."""
        return -(-self.image_tokens // mesh.sp) + -(-self.text_tokens // mesh.sp)


class Sent(NamedTuple):
    """Bytes that a card sends to others in a step, and how often it waits for them.

    hidden: by products and attention, which store while they compute. shown: by norms, which only store. gathered: by
    the all-gather of the prediction, between the halves of guidance.
    """

    hidden: float
    shown: float
    gathered: float
    meetings: int


def sent(work: Work, mesh: ParallelConfig) -> Sent:
    """Returns what a step of `work` sends on `mesh`."""
    model, rows, held = work.model, work.rows(mesh), work.tokens(mesh)
    numbers, dual = rows * held * model.dim / mesh.mp, len(model.dual_attention_layers)
    exchanged = (3 + 1) * numbers * (mesh.sp - 1) / mesh.sp  # Q, K and V there, and what attention makes of them back
    image = rows * -(-work.image_tokens // mesh.sp) * model.dim / mesh.mp * (3 + 1) * (mesh.sp - 1) / mesh.sp
    whole = rows * held * model.dim * (mesh.mp - 1) / mesh.mp
    mixed = whole / mesh.mp if mesh.sp == 1 else whole  # what attention makes; with sp, parts of the product behind it
    if mesh.sp == 1:
        image += mixed * work.image_tokens / held
    partial = whole + mixed
    normed = 2 * whole + dual / model.num_layers * whole
    halves = work.guidance and work.images % mesh.dp != 0
    latents = work.image_tokens / mesh.sp * model.patch_size**2 * model.channels_out * work.rows(mesh) if halves else 0
    layers = model.num_layers
    return Sent(
        hidden=HALF * (layers * (exchanged + partial) + dual * image),
        shown=HALF * layers * normed,
        gathered=HALF * latents,
        meetings=layers * (2 * (mesh.sp > 1) + 4 * (mesh.mp > 1)),
    )


def copies_norms(work: Work, mesh: ParallelConfig) -> bool:
    """Returns whether norms travel beside the products that take them."""
    return mesh.mp > 1 and mesh.sp == 1 and copies_rows(mesh.mp, work.rows(mesh), work.image_tokens)


def product_us(rows: float, columns: float, depth: float) -> float:
    """Returns the microseconds of a product [rows, depth] x [depth, columns]."""
    return 2e6 * rows * columns * depth / PRODUCT_FLOPS + PRODUCT_US


def attention_us(rows: int, heads: int, tokens: int, head_dim: int = 64) -> float:
    """Returns the microseconds of an attention of all `tokens` with all, [rows, tokens, heads, head_dim]."""
    return 4e6 * rows * heads * tokens**2 * head_dim / ATTENTION_FLOPS + ATTENTION_US


def kernels_us(work: Work, mesh: ParallelConfig) -> tuple[float, float, float]:
    """Returns the microseconds of a step's products, attentions and norms, each kernel by itself."""
    model, rows, held, heads = work.model, work.rows(mesh), work.tokens(mesh), work.model.num_attention_heads
    hidden = 4 * model.dim / mesh.mp
    dual, layers = len(model.dual_attention_layers), model.num_layers
    most = -(-heads // mesh.mp)  # heads of the mp rank with the most
    own = -(-most // mesh.sp)
    inner = most * model.attention_head_dim
    image, whole = rows * -(-work.image_tokens // mesh.sp), rows * held

    def block(count: float) -> float:
        out = (count / mesh.mp, model.dim) if mesh.sp == 1 else (count, inner)  # all heads of own tokens, or own heads
        return product_us(count, 3 * inner, model.dim) + product_us(out[0], model.dim, out[1])

    mlp = product_us(whole, hidden, model.dim) + product_us(whole, model.dim, hidden)
    products = layers * (block(whole) + mlp) + dual * block(image)
    attention = layers * attention_us(rows, own, work.image_tokens + work.text_tokens)
    attention += dual * attention_us(rows, own, work.image_tokens)
    # In: the residual and the branch's parts, one of each mp rank, one behind attention; out: the residual, the norm.
    parts = mesh.mp if mesh.sp > 1 else (mesh.mp + 1) / 2
    moved = (3 + parts) * HALF * whole * model.dim / mesh.mp
    norms = (2 * layers + 1) * (1e6 * moved / NORM_BYTES + NORM_US)
    return products, attention, norms


def step_ms(work: Work, mesh: ParallelConfig, network: Network = ONE_HOST) -> float:
    """Returns the milliseconds of a step on `mesh`, ranks in order over hosts of `network.cards` each."""
    told, inner = sent(work, mesh), mesh.mp * mesh.sp
    shown = told.shown * (COPIED if copies_norms(work, mesh) else 1.0)
    outside = max(0.0, 1 - network.cards / inner) if inner > network.cards else 0.0
    wire = (EXPOSED * told.hidden + shown) * (1 - outside) / PEER_BYTES
    wire += (told.hidden + told.shown) * outside / network.bytes  # nothing stores to another host: all of it shows
    meeting = network.us if outside else MEETING_US
    gather = 0.0
    if told.gathered:
        crossing = mesh.world > network.cards
        gather = (network.us if crossing else GATHER_US) + 1e6 * told.gathered / (
            network.bytes if crossing else PEER_BYTES
        )
    return (SLOWER * sum(kernels_us(work, mesh)) + 1e6 * wire + told.meetings * meeting + gather) / 1e3


def loop_s(work: Work, mesh: ParallelConfig, network: Network = ONE_HOST) -> float:
    """Returns the seconds from text states to latents."""
    return (LOOP_MS * work.rows(mesh) / 2 + work.steps * step_ms(work, mesh, network)) / 1e3


def decode_s(work: Work, mesh: ParallelConfig) -> float:
    """Returns the seconds of decoding all pictures, which all cards share by rows."""
    shared = 2 * (DECODE_MS[1] - DECODE_MS[2])
    return work.images * work.image_tokens / 4096 * (DECODE_MS[1] - shared + shared / mesh.world) / 1e3

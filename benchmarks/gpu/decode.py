"""The autoencoder's decoder by strips of rows, one process a GPU: right, and how fast.

    python -m paddle.distributed.launch --devices 0,1,2,3 benchmarks/gpu/decode.py --sizes 512 1024 2048

Rank 0 prints one JSON object a line and, as the last ones, a table. Milliseconds are those of CUDA graphs, the slowest
rank's: of one process alone, of all together, and of all without what they send (mute), which shows what sending costs.
Errors are those of bfloat16 to fp32, relative, alone and together. Ends with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from sd3par import device  # noqa: E402
from sd3par.captured import EAGER_CALLS, Captured  # noqa: E402
from sd3par.config import ParallelConfig  # noqa: E402
from sd3par.mesh import Axis, Mesh  # noqa: E402
from sd3par.vae import VAE  # noqa: E402
from sd3par.weights.random_model import random_component  # noqa: E402

ROOM = 1.1  # times the error of one process
MOST_BYTES = 64 << 30  # of a recording; the pipeline's are smaller, and larger pictures run without
REPEATS = 10
COLLECTIVES = 20  # in a row, of the size that most convolutions of 1024 x 1024 send
Row = dict[str, Any]


class Mute(Mesh):
    """A mesh that sends nothing: what others would have sent is what lay in memory."""

    def all_gather(self, axis: Axis, x: Tensor) -> Tensor:
        """Returns `[size, ...]` of any values, for x: [...]."""
        return paddle.empty([axis.size, *x.shape], dtype=x.dtype)


def milliseconds(mesh: Mesh, call: Callable[..., object], *arguments: Tensor) -> float:
    """Returns the time of one call on the slowest rank, of ten in a row behind three."""
    for _ in range(3):
        call(*arguments)
    mesh.barrier()
    begin, end = device.Event(), device.Event()
    begin.record()
    for _ in range(REPEATS):
        call(*arguments)
    end.record()
    mine = paddle.to_tensor([begin.elapsed_ms(end) / REPEATS], dtype="float32")
    return round(float(mesh.all_gather(mesh.world, mine).numpy().max()), 3)


def recorded(card: device.Device, mesh: Mesh, function: Callable[[Tensor], Tensor], latents: Tensor) -> Captured:
    """Returns what replays the function for latents of this shape, warmed up."""
    call = Captured(card, must=True, most_bytes=MOST_BYTES, mesh=mesh)
    for _ in range(EAGER_CALLS + 1):
        call(function, latents)
    return call


def timed(card: device.Device, mesh: Mesh, function: Callable[[Tensor], Tensor], latents: Tensor) -> float:
    """Returns the milliseconds of a recording."""
    call = recorded(card, mesh, function, latents)
    try:
        return milliseconds(mesh, call, function, latents)
    finally:
        call.clear()


def error(got: Tensor, want: Tensor) -> float:
    """Returns |got - want| / |want| in the 2-norm."""
    got, want = got.astype("float32"), want.astype("float32")
    return float(((got - want).norm() / want.norm()).item())


def alike(mesh: Mesh, x: Tensor) -> bool:
    """Returns whether x: [...] is the same on all ranks, to the bit."""
    every = mesh.all_gather(mesh.world, x)
    return bool((every.astype("float32") == x.astype("float32")).all().item())


def checked(card: device.Device, mesh: Mesh, vae: VAE, exact: VAE, size: tuple[int, int]) -> Row:
    """Returns the errors at one size, and whether recordings and ranks agree."""
    latents, other = (drawn(size) for _ in range(2))
    want = exact.decode(latents)
    alone, together = error(vae.decode(latents), want), error(vae.decode_together(latents), want)
    call = recorded(card, mesh, vae.decode_together, latents)
    replays = all(
        bool((call(vae.decode_together, one).astype("float32") == vae.decode_together(one).astype("float32")).all())
        for one in (latents, other, latents)
    )
    call.clear()
    same = alike(mesh, vae.decode_together(latents))
    row = {
        "bench": "decode",
        "what": "check",
        "size": size,
        "error_alone": alone,
        "error": together,
        "replays": replays,
        "same": same,
    }
    return row | {"ok": together <= ROOM * alone and replays and same}


def drawn(size: tuple[int, int]) -> Tensor:
    """Returns latents [1, 16, h, w], the same on every rank: all have the same seed."""
    return paddle.randn([1, 16, size[0] // 8, size[1] // 8])


def speed(card: device.Device, mesh: Mesh, vae: VAE, mute: VAE, px: int) -> Row:
    """Returns the times at one size."""
    latents = drawn((px, px))
    functions = {"alone_ms": vae.decode, "together_ms": vae.decode_together, "mute_ms": mute.decode_together}
    times = {name: timed(card, mesh, function, latents) for name, function in functions.items()}
    world = mesh.world.size
    return {
        "bench": "decode",
        "what": "speed",
        "world": world,
        "px": px,
        **times,
        "ideal_ms": round(times["alone_ms"] / world, 3),
    }


def collectives(card: device.Device, mesh: Mesh) -> Row:
    """Returns the microseconds of one all-gather of many in a graph: of nothing much, and of two lines of a map."""
    row: Row = {"bench": "decode", "what": "all_gather", "world": mesh.world.size}
    for name, numbers in (("1 KiB", 512), ("512 KiB", 2 * 512 * 256), ("1 MiB", 2 * 1024 * 256)):

        def _many(x: Tensor) -> Tensor:
            for _ in range(COLLECTIVES):
                x = mesh.all_gather(mesh.world, x)[0]
            return x[:1]

        x = paddle.zeros([numbers], dtype="bfloat16")
        row[f"{name} us"] = round(1e3 * timed(card, mesh, _many, x) / COLLECTIVES, 1)
    return row


def loaded(dtype: str, mesh: Mesh) -> VAE:
    """Returns SD3's decoder with random weights."""
    return VAE.load(random_component("random:sd3-medium", "vae"), dtype, encoder=False, mesh=mesh)


@paddle.no_grad()
def main() -> int:
    """Checks and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 2048], help="pictures to time, in pixels")
    parser.add_argument("--checks", type=int, nargs="*", default=[512, 512, 1024, 1024, 1040, 784], help="H W H W ...")
    options = parser.parse_args()
    card = device.choose("auto")
    card.activate()
    mesh = Mesh.from_env(ParallelConfig(sp=int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))))
    paddle.seed(0)
    vae, mute = (loaded(card.dtype, one) for one in (mesh, Mute(mesh.dp, mesh.sp, mesh.mp, mesh.world, mesh.host)))
    exact = loaded("float32", Mesh.single())
    sizes = zip(options.checks[::2], options.checks[1::2], strict=True)
    parts: list[Callable[[], Row]] = [partial(checked, card, mesh, vae, exact, size) for size in sizes]
    parts += [partial(speed, card, mesh, vae, mute, px) for px in options.sizes]
    parts += [partial(collectives, card, mesh)]
    rows = []
    for part in parts:
        try:
            rows.append(part())
        except Exception:
            rows.append({"failed": traceback.format_exc()[-1500:], "ok": False})
        if mesh.world.rank == 0:
            print(json.dumps(rows[-1]), flush=True)
    if mesh.world.rank == 0:
        print(table(rows), flush=True)
    mesh.barrier()
    return int(not all(row.get("ok", True) for row in rows))


def table(rows: list[Row]) -> str:
    """Returns the rows of `speed` as text."""
    names = ("world", "px", "alone_ms", "together_ms", "mute_ms", "ideal_ms")
    lines = [names, *([row[name] for name in names] for row in rows if row.get("what") == "speed")]
    return "\n".join("".join(f"{value:>14}" for value in line) for line in lines)


if __name__ == "__main__":
    sys.exit(main())

"""SD3-medium's text encoders on GPUs, together and each rank by itself: right, how fast, how large. Rank 0 says it.

    NCCL_NVLS_ENABLE=0 python -m paddle.distributed.launch --devices 0,1 tests/nvgpu/gpu_text.py --mp_size 2

"together" is what a pipeline has in this mesh; "alone" encodes all on every rank; "two calls" does so, one half of the
guidance after the other. Errors are root mean squares over those of the states, against float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

sys.path.insert(0, str(Path(__file__).parents[2]))

from sd3par import device  # noqa: E402
from sd3par.captured import EAGER_CALLS, Captured  # noqa: E402
from sd3par.config import ParallelConfig  # noqa: E402
from sd3par.device import Device  # noqa: E402
from sd3par.mesh import Mesh  # noqa: E402
from sd3par.text import TextEncoders, TextStates  # noqa: E402
from sd3par.text.load import load_text  # noqa: E402
from sd3par.weights import open_model  # noqa: E402

MODEL, HALF, JOINT_DIM, REPEATS = "random:sd3-medium", "bfloat16", 4096, 20
PROMPTS = ["", "a red circle on a blue background", *(f"{number} green squares" for number in range(7))]
CASES = [(1, 256), (2, 77), (2, 256), (2, 512), (9, 256)]  # different prompts, tokens of T5
Encode = Callable[[], TextStates]


def gathered(mesh: Mesh, value: float) -> np.ndarray:
    """Returns every rank's value: [world] fp64."""
    return mesh.all_gather(mesh.world, paddle.to_tensor([value], dtype="float32")).numpy().ravel().astype(float)


def timed(mesh: Mesh, encode: Encode, repeats: int) -> float:
    """Returns the milliseconds of a call, tokens and the rank's rows included, on the slowest rank."""
    taken = []
    for _ in range(repeats):
        mesh.barrier()
        device.synchronize()
        begin = time.perf_counter()
        encode()
        device.synchronize()
        taken.append(1e3 * (time.perf_counter() - begin))
    return float(gathered(mesh, statistics.median(taken)).max())


def encoder(text: TextEncoders, prompts: list[str], length: int, *calls: Callable[..., object]) -> Encode:
    """Returns what encodes prompts."""
    return lambda: text.encode(prompts, prompts, prompts, length, JOINT_DIM, *calls).rows(range(len(prompts)))


def halves(text: TextEncoders, prompts: list[str], length: int, call: Captured) -> Encode:
    """Returns what encodes prompts one after the other."""
    each = [encoder(text, [prompt], length, call, call) for prompt in prompts]
    return lambda: [one() for one in each][-1]


def error(states: TextStates, right: TextStates) -> float:
    """Returns the error of both, the larger."""
    pairs = [(states.context, right.context), (states.pooled, right.pooled)]
    return max(float(((a.astype("float32") - b) ** 2).mean() ** 0.5 / (b**2).mean() ** 0.5) for a, b in pairs)


def same(mesh: Mesh, states: TextStates) -> bool:
    """Returns whether all ranks have the same bits."""
    bits = zlib.crc32(states.context.astype("float32").numpy().tobytes())
    every = mesh.all_gather(mesh.world, paddle.to_tensor([bits], dtype="int64")).numpy()
    return bool((every == bits).all())


def row(mesh: Mesh, card: Device, texts: list[TextEncoders], count: int, length: int) -> str:
    """Measures one case; texts: together, alone, and alone in float32."""
    together, alone, right = texts
    prompts = PROMPTS[:count]
    local, split = Captured(card, must=True), Captured(card, must=True, mesh=mesh)
    run, by_itself = encoder(together, prompts, length, local, split), encoder(alone, prompts, length, local, local)
    eager = timed(mesh, encoder(together, prompts, length), 5)
    plain = encoder(together, prompts, length)()
    for _ in range(EAGER_CALLS + 1):
        found, whole = run(), by_itself()
    two = halves(alone, prompts, length, local)
    for _ in range(EAGER_CALLS + 1):
        two()
    wanted = encoder(right, prompts, length)()
    equal = bool((plain.context == run().context).all().item())
    line = f"{count:3} x {length:3}  eager {eager:6.2f}  together {timed(mesh, run, REPEATS):6.2f}"
    line += f"  alone {timed(mesh, by_itself, REPEATS):6.2f}  one by one {timed(mesh, two, REPEATS):6.2f} ms"
    line += f"  error {error(found, wanted):.1e} alone {error(whole, wanted):.1e}"
    line += f"  same on all ranks: {same(mesh, run())}, captured equals eager: {equal}"
    for call in (split, local):
        call.clear()
    return line


@paddle.no_grad()
def main() -> int:
    """Measures all cases; 1 if one failed."""
    parser = argparse.ArgumentParser()
    for axis in ("dp", "mp", "sp"):
        parser.add_argument(f"--{axis}_size", type=int, default=1)
    options = parser.parse_args()
    parallel = ParallelConfig(dp=options.dp_size, mp=options.mp_size, sp=options.sp_size)
    card = device.choose(HALF)
    card.activate()
    mesh, files, lines, texts = Mesh.from_env(parallel), open_model(MODEL), [], []
    for name, where, dtype in (("together", mesh, HALF), ("alone", Mesh.single(), HALF),
                               ("float32", Mesh.single(), "float32")):  # fmt: skip
        before, begin = paddle.device.memory_allocated(card.name), time.perf_counter()
        texts.append(load_text(files, dtype, where))
        device.synchronize()
        seconds = gathered(mesh, time.perf_counter() - begin)
        held = gathered(mesh, (paddle.device.memory_allocated(card.name) - before) / 2**30)
        lines.append(f"{name}: loaded in {seconds.round(1)} s, {held.round(2)} GiB")
    failed = 0
    for case in CASES:
        try:
            lines.append(row(mesh, card, texts, *case))
        except Exception:
            failed = 1
            lines.append(f"{case}: {traceback.format_exc()[-800:]}")
    if mesh.world.rank == 0:
        print(f"RESULT {mesh.describe()}", *lines, sep="\nRESULT ", flush=True)
    mesh.barrier()
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""Stores to other GPUs' memory beside NCCL: are they right, and what do they take, in a CUDA graph.

    python -m paddle.distributed.launch --devices 0,1 benchmarks/gpu/peers.py

All processes are sp ranks of SD3-medium's shapes at 1024x1024 for the exchange of heads, then mp ranks for sums. Rank 0
prints one JSON object a line; times are the slowest rank's.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]  # the launcher starts this file as a script

from sd3par import device, kernels  # noqa: E402
from sd3par.attention import SequenceExchange  # noqa: E402
from sd3par.config import ParallelConfig  # noqa: E402
from sd3par.device import CapturedGraph, Event  # noqa: E402
from sd3par.layers import Linear  # noqa: E402
from sd3par.mesh import Mesh  # noqa: E402
from sd3par.peer_exchange import PeerExchange  # noqa: E402
from sd3par.peer_memory import Meeting  # noqa: E402
from sd3par.peer_sums import PeerSums  # noqa: E402
from sd3par.plan import WeightPlan, tokens_for  # noqa: E402
from sd3par.sums import Branch, Sums  # noqa: E402

DIM, HEADS, HEAD_DIM, IMAGE, TEXT = 1536, 24, 64, 4096, 333
TIMES, REPLAYS = 10, 7
DTYPE = "bfloat16"


def microseconds(mesh: Mesh, work: Callable[[], object]) -> float:
    """Returns what a call takes, recorded ten times in a graph: the median replay, of the slowest rank."""
    graph = CapturedGraph(device.Device(device.current(), DTYPE), lambda: [work() for _ in range(TIMES)])
    found = []
    for _ in range(REPLAYS):
        mesh.barrier()
        start, end = Event(), Event()
        start.record()
        graph()
        end.record()
        found.append(1e3 * start.elapsed_ms(end) / TIMES)
    mine = paddle.to_tensor([statistics.median(found)], dtype="float32")
    graph.reset()
    return float(mesh.all_gather(mesh.world, mine).max().item())


def say(mesh: Mesh, what: str, **row: Any) -> None:
    """Prints a row on rank 0."""
    if mesh.world.rank == 0:
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        print(json.dumps({"bench": "peers", "what": what, "world": mesh.world.size, **shown}), flush=True)


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """Returns the largest difference of tensors, over the largest number."""
    return max(
        float((x.astype("float32") - y.astype("float32")).abs().max() / y.astype("float32").abs().max())
        for x, y in zip(a, b, strict=True)
    )


def linear(rows: int, columns: int, scale: Tensor | float = 1.0) -> Linear:
    """Returns a product with weights [rows, columns] times scale, [columns] or one; the same on every rank."""
    made = Linear(rows, columns, DTYPE)
    made.weight.set_value((paddle.randn([rows, columns]) * rows**-0.5 * scale).astype(DTYPE))
    if made.bias is not None:
        made.bias.set_value((paddle.randn([columns]) * scale).astype(DTYPE))
    return made


def scales(plan: WeightPlan) -> Tensor:
    """Returns [3 * DIM]: attention's scale for the columns of queries, 1 for the others."""
    factors = (kernels.query_scale(HEAD_DIM), 1.0, 1.0)
    return paddle.to_tensor([one for heads in plan.groups for one in factors for _ in range(len(heads) * HEAD_DIM)])


def exchange(mesh: Mesh, rows: int) -> None:
    """Compares both ways of sp: products and the way to heads, attention and the way back."""
    plan = WeightPlan(HEADS, HEAD_DIM, sp=mesh.sp.size)
    tokens = [tokens_for(mesh.sp.rank, mesh.sp.size, count) for count in (IMAGE, TEXT)]
    paddle.seed(1)
    layers = [linear(DIM, 3 * DIM, scales(plan)) for _ in tokens]
    whole = [paddle.randn([rows, count, DIM]).astype(DTYPE) for count in (IMAGE, TEXT)]
    parts = [
        paddle.concat([x[:, t.start : t.stop], x[:, : t.padding] * 0], axis=1)
        for x, t in zip(whole, tokens, strict=True)
    ]
    given = [kernels.Product(x, layer.weight, layer.bias) for x, layer in zip(parts, layers, strict=True)]
    found, results = {}, {}
    ways: list[tuple[str, Any]] = [
        ("collective", SequenceExchange(mesh, plan)),
        ("peer", PeerExchange(mesh, plan, DTYPE)),
    ]
    for name, way in ways:

        def attend(heads: list[Tensor], way: Any = way) -> list[Tensor]:
            """heads: [R, T, 3 * heads * hd] each -> mixed tokens, [R, t, heads * hd] each."""
            split = [x.reshape([rows, x.shape[1], 3, -1, HEAD_DIM]) for x in heads]
            return way.attend([split], tokens)

        heads = way.project(given, tokens)
        mixed = attend(heads)
        results[name] = (
            [x.clone() for x in heads],
            [x[:, : t.length].clone() for x, t in zip(mixed, tokens, strict=True)],
        )
        found[f"{name}_project_us"] = microseconds(mesh, partial(way.project, given, tokens))
        found[f"{name}_attend_us"] = microseconds(mesh, partial(attend, heads))
    found["products_us"] = microseconds(mesh, lambda: [kernels.linear(*one) for one in given])
    split = [x.reshape([rows, x.shape[1], 3, -1, HEAD_DIM]) for x in results["peer"][0]]
    found["attention_us"] = microseconds(mesh, lambda: kernels.attention(split))
    for part, name in enumerate(("heads", "mixed")):
        found[f"{name}_difference"] = difference(results["peer"][part], results["collective"][part])
    say(mesh, "exchange", rows=rows, **found)


def sums(mesh: Mesh, rows: int) -> None:
    """Compares both ways of mp: the second product of an MLP, its sum, and the norm behind it."""
    plan = WeightPlan(HEADS, HEAD_DIM, mesh.mp.size, mesh.mp.rank)
    paddle.seed(1)
    inner = 4 * DIM // mesh.mp.size
    layers = [linear(inner, DIM) for _ in range(2)]
    hidden = [paddle.randn([rows, count, inner]).astype(DTYPE) for count in (IMAGE, TEXT)]
    streams = [paddle.randn([rows, count, DIM]).astype(DTYPE) for count in (IMAGE, TEXT)]
    scale, shift, gate = paddle.randn([rows, 3, DIM]).astype(DTYPE).unbind(1)
    branches = [Branch(x, layer) for x, layer in zip(hidden, layers, strict=True)]
    found, results = {}, {}
    ways: list[tuple[str, Any]] = [("collective", Sums(mesh)), ("peer", PeerSums(mesh, plan, DTYPE))]
    for name, way in ways:
        held = way.held(streams)

        def norm(parts: list[Tensor], way: Any = way, held: list[Tensor] = held) -> list[Tensor]:
            """parts: what `add` gives -> norms, [R, t, D] each."""
            given = [kernels.Stream(x, part, gate, ((scale, shift),)) for x, part in zip(held, parts, strict=True)]
            return [normed for _, normed in way.norm(given, [IMAGE, TEXT])]

        parts = way.add(branches)
        results[name] = [x.clone() for x in norm(parts)]
        found[f"{name}_add_us"] = microseconds(mesh, partial(way.add, branches))
        found[f"{name}_norm_us"] = microseconds(mesh, partial(norm, parts))
    found["products_us"] = microseconds(mesh, lambda: [branch.value() for branch in branches])
    found["norms_difference"] = difference(results["peer"], results["collective"])
    say(mesh, "sums", rows=rows, **found)


def main() -> None:
    """Measures on as many GPUs as the launcher started processes."""
    world = int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    device.choose(DTYPE).activate()
    mesh = Mesh.from_env(ParallelConfig(sp=world))
    meeting = Meeting(mesh, mesh.sp)
    say(mesh, "meeting", us=microseconds(mesh, meeting))
    for rows in (2, 1):
        exchange(mesh, rows)
    by_mp = Mesh(mp=mesh.sp, world=mesh.world, host=mesh.host)
    for rows in (2, 1):
        sums(by_mp, rows)


if __name__ == "__main__":
    with paddle.no_grad():
        main()

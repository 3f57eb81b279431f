"""Peers in programs and eagerly, on the dry device, launch by launch: python -m tests.static.stored DIR

One process stands for a rank of two: what it stores to the other lands in its own memory, and nobody is met. Prints
one JSON object: what differs, how many launches there are, and how many of them are meetings.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import paddle
import triton
from paddle import Tensor

from sd3par import mmdit
from sd3par.attention import SequenceExchange
from sd3par.conditions import Conditions, Layout
from sd3par.config import ParallelConfig
from sd3par.device import choose
from sd3par.kernels import runtime, static
from sd3par.kernels.static import library
from sd3par.mesh import Axis, Mesh
from sd3par.mmdit import MMDiT
from sd3par.peer_memory import unshared
from sd3par.peer_mix import PeerMix
from sd3par.peer_sums import PeerSums
from sd3par.plan import tokens_for
from sd3par.routes import Routes
from sd3par.static.mesh import TracedMesh
from tests.static import launched
from tests.static.gpu_operators import step_inputs, step_specs
from tests.static.operator_cases import MODEL, untranslated

DTYPE, SIZES, RANKS = "bfloat16", {"T": 561, "C": 77}, 2
CONFIG = dataclasses.replace(MODEL, num_layers=4, dual_attention_layers=(1, 2))


class Step(paddle.nn.Layer):
    """A rank's prediction."""

    def __init__(self, model: MMDiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, context: Tensor, positions: Tensor, modulations: Tensor) -> Tensor:
        return predict(self.model, tokens, context, positions, modulations)


def predict(model: MMDiT, tokens: Tensor, context: Tensor, positions: Tensor, modulations: Tensor) -> Tensor:
    layout = Layout(tokens_for(0, 1, SIZES["T"]), tokens_for(0, 1, SIZES["C"]))
    return model.step(tokens, Conditions(context, positions, modulations, layout), 0)


def zeros(model: MMDiT) -> MMDiT:
    for one in model.parameters():
        one.set_value(paddle.zeros(one.shape, one.dtype))
    model.eval()
    return model


class Pools:
    """Memory of both, and where each pool is; both ranks' places are this process's."""

    def __init__(self) -> None:
        self.memory = [paddle.zeros([8 << 20], dtype=DTYPE) for _ in range(4)]
        self.flags, self.targets = paddle.zeros([RANKS + 1], dtype="int32"), paddle.zeros([RANKS], dtype="int64")

    def tell(self, rank: int) -> None:
        library.tell_peers(rank, RANKS, self.flags.data_ptr(), self.targets.data_ptr())
        for which, memory in enumerate(self.memory):
            library.tell_pool(which, (memory.data_ptr(),) * RANKS, memory.shape[0])


def eager(rank: int, pools: Pools) -> MMDiT:
    """A model whose sums and mixed tokens are stored, in the memory of `pools`, alone."""
    one, mesh_axis = Axis(1, 0, None), Axis(RANKS, rank, None)
    mesh = Mesh(one, one, mesh_axis, Axis(RANKS, rank, None), transport="collective")
    plan = mmdit.plan_of(CONFIG, mesh)
    mix, sums = PeerMix.__new__(PeerMix), PeerSums.__new__(PeerSums)
    mix.axis, mix.dim, mix._first = mesh_axis, CONFIG.dim, plan.mixed.pieces[0].start
    sums.axis, sums.dim, sums.whole, sums._mix = mesh_axis, CONFIG.dim, True, mix
    mix._meet = sums._meet = lambda: None
    sums.held = lambda given: [x.contiguous() for x in PeerSums.held(sums, given)]  # a program has no views
    sums._norms, sums._last, sums._parts, mix._pool = (Pool(memory) for memory in pools.memory)
    sums._norm_room, sums._part_room = map(functools.cache, (sums._lay_out_norms, sums._lay_out_parts))
    mix._token_room = functools.cache(mix._lay_out_tokens)
    mmdit.routes_for = lambda *given: Routes(SequenceExchange(mesh, plan, sums.multiply, sums.mix), sums)
    return zeros(MMDiT(CONFIG, mesh, DTYPE))


class Pool:
    """`SharedPool` over memory that is there."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory

    def tensors(self, shapes: list[list[int]], sizes: list[int]) -> list[Any]:
        from sd3par.peer_memory import SharedPool

        pool = SharedPool.__new__(SharedPool)
        pool._with_room_for = lambda count: unshared(0, DTYPE, RANKS)._replace(  # type: ignore[method-assign]
            own=self._memory, addresses=(self._memory.data_ptr(),) * RANKS
        )
        return pool.tensors(shapes, sizes)


class Raw(launched.Memory):
    """Addresses as they are."""

    def at(self, address: int) -> tuple[object, ...]:
        return ("raw", address)


def tables(launches: list[launched.Launch]) -> list[list[int]]:
    """The numbers in device memory that launches read: where norms and mixed tokens go, and all lines of tiles."""
    found = []
    for one in launches:
        if one.name == "_adaln":
            found += [numbers(one.values[place][1], RANKS) for place in (8, 31)]
        elif one.name == "_attention_hopper":
            found += [numbers(one.values[place][1], RANKS) for place in (2, 6)]
        elif one.name == "_linear_hopper":
            slots = numbers(one.values[-1][1], 1)[0]
            found.append(numbers(one.values[-1][1], 16 * (1 + (slots + 1) * one.grid[0])))
    return found


def numbers(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


def program(rank: int, path: Path) -> None:
    """Writes a rank's program."""
    mesh = TracedMesh.of(ParallelConfig(mp=RANKS, transport="peer"), rank, False)
    step = Step(zeros(MMDiT(CONFIG, mesh, DTYPE)))
    step.eval()
    with static.tracing(DTYPE, [90]), paddle.no_grad():
        specs = step_specs(step.model, DTYPE)[:4]
        paddle.jit.save(paddle.jit.to_static(step, full_graph=True, input_spec=specs), str(path))


def main() -> None:
    folder, log = Path(sys.argv[1]), Path(os.environ["DRY_LAUNCHES"])
    untranslated()
    paddle.set_device("cpu")
    for rank in range(RANKS):
        program(rank, folder / f"step{rank}")
    static.write_operators(folder, DTYPE, [90], CONFIG, heads=[CONFIG.num_attention_heads // RANKS], peers=RANKS)
    kernels = launched.without_code(folder / "sd3par_kernels.bin")
    triton.knobs.compilation.disable_line_info = True  # as programs' kernels
    launches: list[Any] = []
    runtime._driver = lambda: launched.noting(launches)
    runtime._activate()
    choose(DTYPE, "nvgpu").activate()
    static.load_operators(folder)
    paddle.set_flags({"FLAGS_enable_pir_in_executor_trace_run": True})
    wrong, counts = {}, {}
    for rank in range(RANKS):
        pools = Pools()
        pools.tell(rank)
        model, loaded = eager(rank, pools), paddle.jit.load(str(folder / f"step{rank}"))
        loaded.eval()
        given = step_inputs(model, SIZES, DTYPE)[:4]
        given[0] = paddle.concat([given[0], given[0]])
        log.write_text("")
        with paddle.no_grad():
            made = launched.listed(loaded(*given))
            launches.clear()
            wanted = [predict(model, *given)]
        memories = []
        for results in (made, wanted):
            memory = launched.Memory()
            memory.name(pools.memory, "pool")
            memory.name(given, "input")
            memory.name(results, "result")
            memories.append(memory)
        found = launched.programs(log, kernels, memories[0])
        meetings = [one for one in found if one.name == "_meet"]
        rest = [one for one in found if one.name != "_meet"]
        wrong[rank] = launched.difference(rest, launched.eagers(launches, memories[1]))
        counts[rank] = (len(rest), len(meetings))
        raw = [one for one in launched.programs(log, kernels, Raw()) if one.name != "_meet"]
        alike = tables(raw) == tables(launched.eagers(launches, Raw()))
        wrong[rank] = wrong[rank] or ("" if alike else "tables")
        wrong[rank] = wrong[rank] or ("" if made[0].shape == wanted[0].shape else f"{made[0].shape}")
    print(json.dumps({"wrong": wrong, "launches": counts}))


if __name__ == "__main__":
    main()

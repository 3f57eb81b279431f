"""CUDA graphs of denoising steps on GPUs: their memory is theirs alone, and what they compute is what eager does.

    python -m tests.kernels.gpu_graph [MODEL] [--sizes 1024 512] [--shapes 528x528x589] [--images 200 --steps 28]
    python -m paddle.distributed.launch --devices 0,1 tests/kernels/gpu_graph.py MODEL --mp_size 2

MODEL is "tiny", "random:sd3-medium" or a folder. Prints a PASS or FAIL line for each check; the exit code is 1 if one
failed on any rank. The process ends with its graphs alive: that, too, must take no more than a second or two.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

sys.path[:1] = [str(Path(__file__).resolve().parents[2])]  # the launcher starts this file as a script

from sd3par import SD3Pipeline  # noqa: E402
from sd3par.config import GenerationRequest, ParallelConfig  # noqa: E402
from sd3par.device import CapturedGraph, Device, choose, current, synchronize  # noqa: E402
from sd3par.graph import StepGraphs  # noqa: E402
from sd3par.inputs import Inputs, PromptEmbeds  # noqa: E402
from sd3par.launch.bench.steps import Loop  # noqa: E402

LENGTHS = [1, 63, 1000, 1 << 15, (1 << 18) + 3, 1 << 21, 1 << 24]  # of fp32: 4 bytes to 64 MB
ROUNDS, COPIES = 30, 3
SCALE = 7.0
PACE = 1.05  # a replayed step's time over an eager one's, at most: the clock's noise
CHECKS = ("memory", "results", "callbacks", "pace", "many")
Check = tuple[str, bool, dict[str, Any]]  # name, whether it passed, what was seen


class Patterns:
    """Tensors of all sizes made without a graph, each full of a number of its own."""

    def __init__(self, lengths: list[int] | None = None, copies: int = COPIES) -> None:
        lengths = LENGTHS if lengths is None else lengths
        self._held = [(paddle.full([n], 1.0 + i), 1.0 + i) for i, n in enumerate(copies * lengths)]

    def broken(self) -> int:
        """Returns how many hold something else by now."""
        return sum(int((x != value).any().item()) for x, value in self._held)


def work(inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Makes and drops tensors of all sizes, with kernels that need room of their own too; returns some of them."""
    results = []
    for x in inputs:
        a = x * 2 + 1
        b = paddle.exp(-a.abs())
        total = b.mean()
        results.append(a * total + b)
    square = inputs[-1].reshape([4096, -1])
    hidden = F.softmax(F.linear(square[:, : weight.shape[0]], weight), axis=-1)
    halves = paddle.concat([hidden.transpose([1, 0]), hidden.transpose([1, 0]) * 2], axis=1)
    return [*results, halves.astype("bfloat16").astype("float32").sum(0)]


def memory(device: Device) -> Iterator[Check]:
    """A graph is replayed between tensors that come, stay and go: neither writes into the other."""
    draws = [[paddle.randn([n]) for n in LENGTHS] for _ in range(3)]
    weight, inputs = paddle.randn([1024, 1024]) * 0.03, [x.clone() for x in draws[0]]
    graph = CapturedGraph(device, lambda: work(inputs, weight))
    stay, unequal, broken = Patterns(), 0, 0
    for turn in range(ROUNDS):
        for x, value in zip(inputs, draws[turn % len(draws)], strict=True):
            paddle.assign(value, x)
        come = Patterns()
        replayed = graph()
        gone = Patterns(copies=5)  # made after the replay was asked for: its memory must not be that of the results
        want = work(inputs, weight)
        unequal += sum(int((a != b).any().item()) for a, b in zip(replayed, want, strict=True))
        broken += come.broken() + gone.broken() + stay.broken()
    yield "memory: no tensor is written by a graph", broken == 0, {"broken": broken, "rounds": ROUNDS}
    yield "memory: no graph is written by a tensor", unequal == 0, {"unequal": unequal, "rounds": ROUNDS}
    del come, gone, stay, replayed, want
    yield memory_returns(device, graph)
    broken = control(device)
    yield "memory: the check sees a graph that writes into freed memory", broken > 0, {"broken": broken}


def control(device: Device) -> int:
    """Returns how many patterns a graph breaks that writes where its own tensor was before: some, or `memory` is blind.

    The tensor was made before the recording, so its memory is anyone's after it.
    """
    length = LENGTHS[-2]
    held, x = [paddle.zeros([length])], paddle.randn([length])

    def function() -> None:
        if held:
            paddle.assign(x * 3, held[0])

    graph = CapturedGraph(device, function)
    held.clear()
    gc.collect()
    patterns = Patterns([length], copies=20)
    graph()
    broken = patterns.broken()
    graph.reset()
    return broken


def memory_returns(device: Device, graph: CapturedGraph[Any]) -> Check:
    """The memory of a graph is the device's again after its end."""
    before = paddle.device.memory_reserved(device.name)
    graph.reset()
    freed = (before - paddle.device.memory_reserved(device.name)) >> 20
    return "memory: a graph that ends gives it back", freed > 100, {"freed_mib": freed}


def embeds(pipe: SD3Pipeline, seed: int, count: int, tokens: int) -> PromptEmbeds:
    """Returns text states of `count` prompts, the same on every rank."""
    config, draw = pipe.transformer.config, np.random.default_rng(seed)
    states, pooled = (count, tokens, config.joint_attention_dim), (count, config.pooled_projection_dim)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return paddle.to_tensor(draw.standard_normal(shape, dtype=np.float32)).astype(pipe.transformer.dtype)

    return PromptEmbeds(normal(states), normal(pooled), normal(states), normal(pooled))


class Case:
    """One request."""

    def __init__(self, height: int, width: int, seed: int = 0, scale: float = SCALE, images: int = 1, tokens: int = 333,
                 steps: int = 4) -> None:  # fmt: skip
        self.seed, self.images, self.tokens = seed, images, tokens
        self._inputs: Inputs | None = None
        self.request = GenerationRequest(
            None, height=height, width=width, num_inference_steps=steps, guidance_scale=scale, seed=seed
        )

    def run(self, pipe: SD3Pipeline, graphs: StepGraphs | None, callback: Any = None) -> Tensor:
        """Returns its latents, [B, C, h, w] fp32."""
        pipe.graphs = graphs
        return pipe.generate(self.request, self.inputs(pipe), "latent", callback, progress=False).images

    def inputs(self, pipe: SD3Pipeline) -> Inputs:
        """Returns its text states, drawn once."""
        if self._inputs is None:
            self._inputs = Inputs(embeds=embeds(pipe, self.seed, self.images, self.tokens))
        return self._inputs


def cases(px: int) -> dict[str, Case]:
    """Returns requests of several shapes about one size, some twice, more than a pipeline keeps graphs of."""
    plain, wide = Case(px, px), Case(px // 2, px)
    return {
        "plain": plain, "another prompt": Case(px, px, seed=1), "wide": wide, "tall": Case(px, px // 2),
        "another scale": Case(px, px, scale=2.5), "batch of two": Case(px, px, images=2), "plain again": plain,
        "odd size": Case(px - 16, px - 48), "less text": Case(px, px, tokens=154), "wide again": wide,
        "more text": Case(px, px, tokens=589), "no guidance": Case(px, px, scale=0.0, images=2),
        "plain after all": plain,
    }  # fmt: skip


def shaped(text: str) -> Case:
    """Returns the case of HEIGHTxWIDTHxTOKENS."""
    height, width, tokens = (int(part) for part in text.split("x"))
    return Case(height, width, tokens=tokens)


def results(pipe: SD3Pipeline, graphs: StepGraphs, given: dict[str, Case]) -> Iterator[Check]:
    """Replayed steps give what eager ones do, bit for bit, while other tensors come and go between them."""
    for name, case in given.items():
        try:
            want, again = case.run(pipe, None), case.run(pipe, None)
            got, broken = between_steps(pipe, graphs, case)
        except Exception as error:
            yield name, False, {"error": f"{type(error).__name__}: {error}"[-300:]}
            continue
        seen = {"difference": far(got, want), "eager_itself": far(again, want), "broken": broken}
        seen["finite"] = bool(paddle.isfinite(want).all().item()) and float(want.std().item()) > 0
        equal = seen["difference"] <= seen["eager_itself"] and bool(seen["finite"])
        yield f"{name}: as eager, and no tensor is written", equal and not broken, seen


def between_steps(pipe: SD3Pipeline, graphs: StepGraphs, case: Case) -> tuple[Tensor, int]:
    """Returns latents and how many tensors were broken of those that came between the steps."""
    patterns, latents = [Patterns(copies=1)], []

    def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Tensor]) -> None:
        latents.append((kwargs["latents"], kwargs["latents"].clone()))
        patterns[1:] = [Patterns(copies=1)]  # those of the step before go

    got = case.run(pipe, graphs, callback)
    broken = sum(one.broken() for one in patterns)
    return got, broken + sum(int((one != copy).any().item()) for one, copy in latents)


def far(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference."""
    return float((one - other).abs().max().item())


def callbacks(pipe: SD3Pipeline, graphs: StepGraphs, px: int) -> Iterator[Check]:
    """Latents may be changed, the loop stopped, and another picture asked for, between two replays."""
    case, inner = Case(px, px, steps=6), Case(px, px, seed=5, steps=2)

    def run(used: StepGraphs | None) -> tuple[Tensor, list[int]]:
        steps: list[int] = []

        def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Tensor]) -> Any:
            steps.append(step)
            if step == 2:
                inner.run(pipe, used)
            pipe.interrupt = step == 4
            return {"latents": kwargs["latents"] * 0.5} if step == 1 else None

        return case.run(pipe, used, callback), steps

    (want, steps), (got, replayed) = run(None), run(graphs)
    right = far(got, want) == 0 and steps == replayed == [0, 1, 2, 3, 4]
    yield f"{px} px: callbacks change, stop and ask again", right, {"difference": far(got, want), "steps": replayed}


def many(pipe: SD3Pipeline, graphs: StepGraphs, px: int, images: int, steps: int) -> Iterator[Check]:
    """Many pictures in a row, of two seeds in turn: the same seed the same picture, and memory does not grow."""
    card, pair = Device(current(), pipe.transformer.dtype), [Case(px, px, seed=seed, steps=steps) for seed in (0, 9)]
    want = [pipe.vae.decode(case.run(pipe, graphs)).clone() for case in pair]
    different, held, begin = 0, [], time.perf_counter()
    for index in range(images):
        picture = pipe.vae.decode(pair[index % 2].run(pipe, graphs))
        different += int(far(picture, want[index % 2]) != 0)
        held.append((paddle.device.memory_allocated(current()), paddle.device.memory_reserved(current()),
                     card.memory()[0]))  # fmt: skip
    seen = {"images": images, "different": different, "seeds_differ": round(far(*want), 3), "steps": steps,
            "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip
    seen["mib"] = [x >> 20 for x in (*held[2], *held[-1])]  # allocated, reserved, and free on the card
    flat = len(set(held[2:])) == 1
    yield f"{px} px: many pictures, memory flat", flat and different == 0 and far(*want) > 0, seen


def pace(pipe: SD3Pipeline, graphs: StepGraphs, px: int) -> Iterator[Check]:
    """Milliseconds a step, of the host before it waits and of all, replayed and eager."""
    seen: dict[str, Any] = {}
    for name, used in (("eager", None), ("graph", graphs)):
        few, long = Case(px, px, steps=4), Case(px, px, steps=28)
        times = []
        for _ in range(4):
            took = [total(pipe, one, used) for one in (few, long)]
            times.append((took[1] - took[0]) / 24)  # what comes before the loop and after it is in both
        seen[f"{name}_ms"] = round(1e3 * statistics.median(times[1:]), 3)
        seen[f"{name}_host_ms"] = round(Loop(pipe.transformer, (px, px), 333, 1, 12, used).host_ms(), 3)
    yield f"{px} px: a replay is no slower than eager", seen["graph_ms"] <= PACE * seen["eager_ms"], seen


def total(pipe: SD3Pipeline, case: Case, graphs: StepGraphs | None) -> float:
    """Returns the seconds of a request."""
    pipe.graphs, inputs = graphs, case.inputs(pipe)
    synchronize()
    start = time.perf_counter()
    pipe.generate(case.request, inputs, "latent", progress=False)
    synchronize()
    return time.perf_counter() - start


def main() -> int:
    """Runs all checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default="tiny")
    for axis in ("dp", "mp", "sp"):
        parser.add_argument(f"--{axis}_size", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256], help="in pixels")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, default=CHECKS)
    parser.add_argument("--shapes", nargs="*", default=[], help="HEIGHTxWIDTHxTOKENS: as eager, and no more")
    parser.add_argument("--images", type=int, default=60, help="how many are drawn in a row, of each size")
    parser.add_argument("--steps", type=int, default=4, help="of each of those")
    options = parser.parse_args()
    parallel = ParallelConfig(options.dp_size, options.mp_size, options.sp_size)
    pipe = SD3Pipeline.from_pretrained(options.model, parallel=parallel, engine="graph", text_encoder_3=False)
    graphs, device, failed = pipe.graphs, choose(pipe.transformer.dtype), 0
    assert graphs is not None
    with paddle.no_grad():
        if "memory" in options.checks:
            failed += say(pipe, memory(device))
        failed += say(pipe, results(pipe, graphs, {text: shaped(text) for text in options.shapes}))
        for px in options.sizes:
            sized = {f"{px} px, {name}": case for name, case in cases(px).items()}
            checks = {
                "results": results(pipe, graphs, sized), "callbacks": callbacks(pipe, graphs, px),
                "pace": pace(pipe, graphs, px), "many": many(pipe, graphs, px, options.images, options.steps),
            }  # fmt: skip
            failed += sum(say(pipe, check) for name, check in checks.items() if name in options.checks)
    if pipe.mesh.world.rank == 0:
        print(f"{failed} FAILED" if failed else "ALL PASSED", "with", len(graphs._graphs), "graphs alive", flush=True)
    return int(failed > 0)


def say(pipe: SD3Pipeline, checks: Iterator[Check]) -> int:
    """Prints a line for each check; returns how many failed on a rank."""
    failures = 0
    for name, passed, seen in checks:
        failed = pipe.mesh.any(not passed)
        failures += failed
        if pipe.mesh.world.rank == 0 or not passed:
            print("FAIL" if failed else "PASS", f"[rank {pipe.mesh.world.rank}]", name, seen, flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())

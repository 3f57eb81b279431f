"""Recorded denoising steps: on the CPU a graph is its function, so what is tested here is all but the recording."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par import denoise, graph
from sd3par.device import Device, overwrite, why_no_graphs
from sd3par.errors import Cancelled, ConfigError, OutOfMemory
from sd3par.graph import StepGraph, StepGraphs
from sd3par.guidance import halves
from sd3par.pipeline import SD3Pipeline
from sd3par.plan import rows_for
from tests import tolerances
from tests.pipeline_cases import CASES
from tests.test_pipeline import arguments, random_pipe

GPU, CPU = Device("nvgpu:0", "bfloat16"), Device("cpu", "float32")
FAST = dict(prompt="a red circle", height=64, width=80, num_inference_steps=3, output_type="latent", progress=False)
OTHERS = [  # shapes that another recording would have; the second has as many tokens as FAST
    dict(height=64, width=64), dict(height=80, width=64), dict(guidance_scale=0.0), dict(num_images_per_prompt=2),
    dict(max_sequence_length=96),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> SD3Pipeline:
    return random_pipe()


@pytest.fixture
def recorded(pipe: SD3Pipeline) -> Iterator[SD3Pipeline]:
    """The same pipeline with graphs."""
    pipe.graphs = StepGraphs(CPU, must=True)
    yield pipe
    pipe.graphs = None


def latents(pipe: SD3Pipeline, **options: Any) -> np.ndarray:
    return pipe(**(FAST | options)).images.numpy()


def eager(pipe: SD3Pipeline, **options: Any) -> np.ndarray:
    """Returns the latents without graphs."""
    graphs, pipe.graphs = pipe.graphs, None
    try:
        return latents(pipe, **options)
    finally:
        pipe.graphs = graphs


def count(pipe: SD3Pipeline) -> int:
    """Returns how many graphs a pipeline holds."""
    return len(pipe.graphs._graphs)


@pytest.mark.parametrize("name", [name for name in CASES if name != "no-t5"])
def test_latents_are_those_of_eager(recorded: SD3Pipeline, name: str) -> None:
    options = arguments(CASES[name]) | dict(output_type="latent")
    np.testing.assert_array_equal(latents(recorded, **options), eager(recorded, **options))
    assert (recorded.engine, count(recorded)) == ("graph", 1)


def test_one_graph_serves_every_request_of_its_shape(recorded: SD3Pipeline) -> None:
    requests = [dict(), dict(seed=7), dict(prompt="a blue dog"), dict(guidance_scale=2.5), dict(num_inference_steps=5),
                dict(width=64, height=80), dict(negative_prompt="red"), dict()]  # fmt: skip
    results = [latents(recorded, **options) for options in requests]
    assert count(recorded) == 1
    for options, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(result, eager(recorded, **options))
    np.testing.assert_array_equal(results[0], results[-1])
    assert not np.array_equal(results[0], results[1])


def test_the_graph_not_used_for_longest_goes(recorded: SD3Pipeline) -> None:
    recorded.graphs.most = 2
    reset: list[StepGraph] = []
    for options in (dict(), OTHERS[0], dict(), OTHERS[2]):
        latents(recorded, **options)
        for one in recorded.graphs._graphs.values():
            one.reset = lambda one=one: reset.append(one)
    first, last = recorded.graphs._graphs.values()
    assert first.tokens.shape[1] == 20 and last.tokens.shape[1] == 20 and len(reset) == 1
    assert reset[0].tokens.shape[1] == 16  # of 64x64: FAST was used after it
    recorded.graphs.clear()
    assert reset[1:] == [first, last] and count(recorded) == 0


def test_graphs_take_no_more_than_their_share(recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one in use stays, even alone too large."""
    memory = {16: 0.1, 20: 0.15, 40: 0.4}  # by tokens
    taken = property(lambda graph: memory[graph.tokens.shape[0] * graph.tokens.shape[1]], lambda graph, share: None)
    monkeypatch.setattr(StepGraph, "share", taken, raising=False)
    held = []
    for options in (dict(), OTHERS[0], OTHERS[2], OTHERS[3], dict()):
        latents(recorded, **options)
        held.append([graph.share for graph in recorded.graphs._graphs.values()])
    assert held == [[0.15], [0.15, 0.1], [0.1, 0.15], [0.4], [0.15]]


@pytest.mark.parametrize("options", OTHERS)
def test_shapes_are_told_apart(recorded: SD3Pipeline, options: dict[str, Any]) -> None:
    both = [latents(recorded, **each) for each in (dict(), options, dict(), options)]
    assert count(recorded) == (1 if options == OTHERS[1] else 2)
    for result, each in zip(both, (dict(), options) * 2, strict=True):
        np.testing.assert_array_equal(result, eager(recorded, **each))


def test_results_are_no_memory_of_the_graph(recorded: SD3Pipeline) -> None:
    """A later request writes into the graph's memory again, as the next step does."""
    seen: list[paddle.Tensor] = []

    def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["latents"])

    result = recorded(**FAST, callback_on_step_end=callback).images
    copies = [one.numpy() for one in (*seen, result)]
    latents(recorded, seed=3)
    for one, copy in zip((*seen, result), copies, strict=True):
        np.testing.assert_array_equal(one.numpy(), copy)
    assert len(seen) == 3 and not np.array_equal(copies[0], copies[1])


def test_callbacks_change_stop_and_ask_again(recorded: SD3Pipeline) -> None:
    def callback(pipe: SD3Pipeline, step: int, timestep: float, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        if step == 0:
            return {"latents": kwargs["latents"] * 0.5}
        if step == 2:
            latents(pipe, seed=11, num_inference_steps=2)  # of the same shape, while this request's graph is in use
        if step == 3:
            raise Cancelled
        return None

    options = dict(num_inference_steps=6, callback_on_step_end=callback)
    np.testing.assert_array_equal(latents(recorded, **options), eager(recorded, **options))
    np.testing.assert_array_equal(latents(recorded), eager(recorded))
    assert count(recorded) == 1


def test_a_graph_survives_a_callback_that_fails(recorded: SD3Pipeline) -> None:
    def callback(*_: Any) -> None:
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        latents(recorded, callback_on_step_end=callback)
    assert count(recorded) == 1
    np.testing.assert_array_equal(latents(recorded), eager(recorded))


def test_windows_of_modulations(recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    want = eager(recorded)
    monkeypatch.setattr(denoise, "MODULATION_BYTES", 1)
    # The same bits, but where MKL meets memory of another alignment.
    assert np.abs(latents(recorded) - want).max() < tolerances.PIPELINE * want.std()


def no_graph(*_: Any, **__: Any) -> None:
    raise RuntimeError("the device has no graphs")


def full(*_: Any, **__: Any) -> None:
    raise MemoryError("the device is full")


def test_what_cannot_be_recorded_is_run(
    recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want = eager(recorded)
    monkeypatch.setattr(graph, "CapturedGraph", no_graph)
    recorded.graphs.must = False
    with caplog.at_level(logging.WARNING):
        results = [latents(recorded), latents(recorded)]
    assert [record.getMessage().count("the device has no graphs") for record in caplog.records] == [1]
    assert recorded.engine == "eager"
    for result in results:
        np.testing.assert_array_equal(result, want)


def test_what_must_be_recorded_is_an_error(recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "CapturedGraph", no_graph)
    with pytest.raises(RuntimeError, match="the device has no graphs"):
        latents(recorded)


def test_what_has_no_room_is_run_this_once(
    recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want, recorded.graphs.must = eager(recorded), False
    with monkeypatch.context() as patch:
        patch.setattr(graph, "CapturedGraph", full)
        np.testing.assert_array_equal(latents(recorded), want)
    assert [record.getMessage().count("the device is full") for record in caplog.records] == [1]
    assert (recorded.engine, count(recorded)) == ("graph", 0)
    np.testing.assert_array_equal(latents(recorded), want)
    assert count(recorded) == 1


def test_what_must_be_recorded_and_has_no_room_is_an_error(
    recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "CapturedGraph", full)
    message = "^out of memory while recording a denoising step as a CUDA graph: MemoryError: the device is full. Sm"
    with pytest.raises(OutOfMemory, match=message):
        latents(recorded)


def test_older_graphs_make_room(recorded: SD3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    want = eager(recorded)
    for options in OTHERS[2:4]:
        latents(recorded, **options)
    works = graph.CapturedGraph

    def fits_alone(*given: Any, **named: Any) -> Any:
        if count(recorded):
            full()
        return works(*given, **named)

    monkeypatch.setattr(graph, "CapturedGraph", fits_alone)
    np.testing.assert_array_equal(latents(recorded), want)
    assert count(recorded) == 1


def test_engines() -> None:
    assert StepGraphs.choose("auto", CPU, 1) is None and StepGraphs.choose("eager", GPU, 1) is None
    musts = [StepGraphs.choose(engine, GPU, world).must for engine, world in (("auto", 1), ("auto", 2), ("graph", 1))]
    assert musts == [False, True, True]
    with pytest.raises(ConfigError, match="^engine: got graph; allowed: auto or eager: the CPU has no CUDA graphs$"):
        SD3Pipeline.from_pretrained("tiny", device="cpu", engine="graph")
    assert SD3Pipeline.from_pretrained("tiny", device="cpu").engine == "eager"


def test_an_allocator_without_pools_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "FLAGS_allocator_strategy"
    monkeypatch.setattr(paddle, "get_flags", lambda name: {flag: "naive_best_fit"})
    assert "naive_best_fit" in why_no_graphs(GPU) and StepGraphs.choose("auto", GPU, 1) is None


def test_memory_that_moves_is_noticed() -> None:
    into = paddle.zeros([3])
    overwrite(paddle.ones([3]), into)
    assert into.numpy().tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="other memory"):
        overwrite(paddle.ones([3000]), into)


def test_halves_of_a_batch_are_views(recorded: SD3Pipeline) -> None:
    prediction = paddle.randn([4, 3, 8])
    uncond, cond = halves(prediction, rows_for(0, 1, 2, guidance=True), recorded.mesh)
    prediction[:] = prediction * 2.0
    assert bool((uncond == prediction[:2]).all()) and bool((cond == prediction[2:]).all())

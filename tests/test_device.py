"""What sd3par.device answers on the CPU, and how it records graphs, on a stand-in for Paddle's."""

from __future__ import annotations

import gc
import sys
import threading

import paddle
import pytest

from sd3par import device, engine
from sd3par.device import CapturedGraph, Device, Event
from sd3par.engine import choose_device
from sd3par.errors import ConfigError
from sd3par.pipeline import SD3Pipeline
from sd3par.weights import open_model

CPU = Device("cpu", "float32")


def test_names() -> None:
    assert (CPU.kind, CPU.index) == ("cpu", 0)
    assert (Device("nvgpu:3", "bfloat16").kind, Device("nvgpu:3", "bfloat16").index) == ("nvgpu", 3)


def test_the_cpu_answers_everything() -> None:
    CPU.activate()
    device.synchronize()
    assert device.stream_handle() == 0
    assert device.current() == "cpu" and device.current_index() == 0
    assert CPU.description() == "CPU"
    free, total = CPU.memory()
    assert 0 < free <= total
    CPU.reset_peak_memory()
    assert total >= CPU.peak_memory().allocated > 10 << 20  # Paddle alone takes more


def test_events_measure() -> None:
    begin, end = Event(), Event()
    begin.record()
    paddle.randn([100_000]).numpy()
    end.record()
    assert 0 < begin.elapsed_ms(end) < 60_000


def test_a_plug_in_without_devices_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: [])
    assert device.count("nvgpu") == 0 and "nvgpu" not in device.available()
    monkeypatch.setattr(paddle.device, "get_available_custom_device", lambda: ["nvgpu:0", "nvgpu:1", "npu:0"])
    assert device.count("nvgpu") == 2 and "nvgpu" in device.available()


def test_a_device_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    with pytest.raises(ConfigError, match="^device: got gpu; allowed: auto or cpu on this machine; sd3par doctor says"):
        device.choose(kind="gpu")


def test_weights_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._memory_and_swap() >= CPU.total_memory() > 0
    medium = open_model("random:sd3-medium")
    monkeypatch.setattr(engine, "_memory_and_swap", lambda: 25_000_000_000)
    says = "^model: got random:sd3-medium; allowed: what fits into 25.0 GB of memory and swap: its weights take 31.0 GB"
    with pytest.raises(ConfigError, match=says + r", or without T5 \(--no_t5, text_encoder_3=False\), then 11.9 GB$"):
        engine.check_memory(medium)
    engine.check_memory(open_model("random:sd3-medium", text_encoder_3=False))
    monkeypatch.setattr(engine, "_memory_and_swap", lambda: 1_000_000)
    with pytest.raises(ConfigError, match="^model: got tiny; .* weights take 0.0 GB$"):
        SD3Pipeline.from_pretrained("tiny", device="cpu")


def test_t5_in_float16_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available", lambda: ["nvgpu", "cpu"])
    assert choose_device(open_model("tiny", text_encoder_3=False), "float16").dtype == "float16"
    assert choose_device(open_model("tiny"), "auto").dtype == "bfloat16"
    with pytest.raises(ConfigError, match="^dtype: got float16; allowed: float32 or bfloat16; float16 without T5"):
        choose_device(open_model("tiny"), "float16")


def test_a_graph_on_the_cpu_is_its_function() -> None:
    calls = []
    graph = CapturedGraph(CPU, lambda: calls.append(1) or len(calls))
    assert calls == []
    assert (graph(), graph()) == (1, 2)
    graph.reset()


class Recorder:
    """Stands in for Paddle's CUDAGraph and notes what happens."""

    log: list[str]

    def __init__(self, place: object) -> None:
        Recorder.log = []

    def __getattr__(self, name: str):
        return lambda: Recorder.log.append(name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(device, "CUDAGraph", Recorder)
    monkeypatch.setattr(Device, "place", lambda self: None)
    monkeypatch.setattr(Device, "reserved", lambda self: 100 + 7 * ("capture_end" in Recorder.log))
    return Device("nvgpu:0", "bfloat16")


def test_a_graph_is_recorded_once_and_replayed(gpu: Device) -> None:
    calls = []
    graph = CapturedGraph(gpu, lambda: calls.append(gc.isenabled()) or len(calls))
    assert calls == [True, True, False]  # two warm-ups, one recording
    assert (graph(), graph(), graph.bytes) == (3, 3, 7)
    graph.reset()
    assert Recorder.log == ["capture_begin", "capture_end", "replay", "replay", "reset"]
    assert gc.isenabled()


def test_a_recording_that_fails_ends_and_says_why(gpu: Device) -> None:
    def function() -> None:
        if not gc.isenabled():
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        CapturedGraph(gpu, function)
    assert Recorder.log == ["capture_begin", "capture_end", "reset"]
    assert gc.isenabled()


def test_a_recording_that_cannot_begin_lets_garbage_be_collected(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(recorder: Recorder) -> None:
        raise OSError("another recording is under way")

    monkeypatch.setattr(Recorder, "capture_begin", refused, raising=False)
    with pytest.raises(OSError, match="another recording"):
        CapturedGraph(gpu, lambda: 1)
    assert Recorder.log == []  # nor is the other one ended
    assert gc.isenabled()


@pytest.mark.parametrize("ends", [True, False])
def test_graphs_go_at_the_end_of_the_process(gpu: Device, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """Unless the device does not end its work: then they are left, since giving their memory back would wait for it."""
    graphs = device._Graphs()
    monkeypatch.setattr(device, "_graphs", graphs)
    monkeypatch.setattr(device.atexit, "register", lambda function: None)
    graph = CapturedGraph(gpu, lambda: 1)
    before, stop = sys.getrefcount(graph), threading.Event()
    monkeypatch.setattr(device, "synchronize", lambda: None if ends else stop.wait())
    monkeypatch.setattr(device, "_EXIT_WAIT_S", 0.05 if not ends else 5.0)
    graphs._at_exit()
    stop.set()
    assert Recorder.log[-1] == ("reset" if ends else "capture_end")
    assert sys.getrefcount(graph) == before + (0 if ends else 1)

"""Which calls are recorded, which recordings stay, and what a failure means; tests/nvgpu records for real."""

from __future__ import annotations

import paddle
import pytest
from paddle import Tensor

from sd3par import captured
from sd3par.captured import EAGER_CALLS, Captured, directly
from sd3par.device import Device
from sd3par.mesh import Axis, Mesh

CARD = Device("nvgpu:0", "bfloat16")


class Recording:
    """Stands in for one of a GPU: calls the function, and counts."""

    alive: list[Recording] = []

    def __init__(self, device: Device, function: object, inputs: tuple[Tensor, ...]) -> None:
        self.function, self.bytes = function, 4 * sum(x.size for x in inputs)
        self.alive.append(self)

    def __call__(self, *inputs: Tensor) -> object:
        return self.function(*inputs)

    def reset(self) -> None:
        self.alive.remove(self)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captured, "_Recording", Recording)
    monkeypatch.setattr(Recording, "alive", [])


class Layer(paddle.nn.Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1

    def twice(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, 2 * y


def often(call: Captured, function: object, *inputs: Tensor, times: int = EAGER_CALLS + 1) -> object:
    """Calls as often as a recording takes."""
    for _ in range(times):
        result = call(function, *inputs)
    return result


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    call, layer = Captured(CARD, must=True), Layer()
    x = paddle.ones([3])
    often(call, layer, x, times=EAGER_CALLS)
    assert Recording.alive == []
    assert call(layer, x).tolist() == [2, 2, 2]
    often(call, layer.twice, x, paddle.ones([2]))  # each access makes a new bound method, the same function
    assert [one.function for one in Recording.alive] == [layer, layer.twice]
    often(call, layer, paddle.ones([4]))
    often(call, layer, paddle.ones([4], dtype="int64"))
    often(call, Layer(), x)
    assert len(Recording.alive) == 5
    often(call, layer, x, times=9)
    assert len(Recording.alive) == 5
    call.clear()
    assert Recording.alive == []


def test_the_one_not_used_for_longest_goes() -> None:
    call, layer = Captured(CARD, must=True, most=2), Layer()
    for size in (1, 2):
        often(call, layer, paddle.ones([size]))
    call(layer, paddle.ones([1]))
    often(call, layer, paddle.ones([3]))
    assert [one.bytes for one in Recording.alive] == [4, 12]
    often(call, layer, paddle.ones([2]))  # may come back
    assert [one.bytes for one in Recording.alive] == [12, 8]


def test_memory_is_bounded() -> None:
    call, layer = Captured(CARD, must=True, most_bytes=100), Layer()
    for size in (10, 12, 4):
        often(call, layer, paddle.ones([size]))
    assert [one.bytes for one in Recording.alive] == [48, 16]
    assert often(call, layer, paddle.ones([26]), times=9).tolist() == [2.0] * 26
    assert [one.bytes for one in Recording.alive] == [48, 16]  # too large for itself: none of the others goes


def failing(*arguments: object) -> None:
    raise OSError("a wait inside a capture")


def test_a_failure_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(captured, "_Recording", failing)
    call, layer = Captured(CARD, must=False), Layer()
    for function in (layer, Layer()):
        assert often(call, function, paddle.ones([1]), times=9).tolist() == [2]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Layer could not be recorded" in caplog.text
    assert "a wait inside" in call.off


def test_a_failure_of_engine_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_Recording", failing)
    with pytest.raises(OSError, match="a wait inside"):
        often(Captured(CARD, must=True), Layer(), paddle.ones([1]))


def test_engines() -> None:
    assert Captured.choose("eager", CARD) is None
    assert Captured.choose("auto", Device("cpu", "float32")) is None
    auto, graph = Captured.choose("auto", CARD), Captured.choose("graph", CARD)
    assert (auto.must, graph.must) == (False, True)
    assert Captured.choose("auto", CARD, Mesh(), Axis(size=2)).must  # another process would wait for this one
    assert directly(Layer(), paddle.ones([1])).tolist() == [2]

"""What programs for the CPU do otherwise, as it is quick there: the same results, and no other program has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import paddle
import pytest
from paddle import Tensor, nn
from paddle.static import InputSpec

from sd3par import kernels
from sd3par.kernels import static
from sd3par.kernels.attention import GROUP
from tests import tolerances
from tests.static import exports

pytestmark = pytest.mark.usefixtures("on_the_cpu")
HEADS, HEAD_DIM, DIM = 2 * GROUP + 1, 4, 24
ROWS = [None, None, DIM]


class Called(nn.Layer):
    """A function of tensors as a layer, which Paddle does not rewrite."""

    def __init__(self, function: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """inputs: of the function -> what it gives."""
        return self.run(*inputs)

    @paddle.jit.not_to_static
    def run(self, *inputs: Tensor) -> list[Tensor]:
        """The same."""
        return self.function(*inputs)


def both(*segments: Tensor) -> list[Tensor]:
    return kernels.attention(list(segments))


def normed(x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> list[Tensor]:
    ((x, norm),) = kernels.adaln([kernels.Stream(x, branch, gate, ((scale, shift),))])
    return [x, norm]


def gated(x: Tensor, x2: Tensor, gate: Tensor, gate2: Tensor) -> list[Tensor]:
    return [kernels.gated_sum(x, gate, x2, gate2)]


SEGMENT = [None, None, 3, HEADS, HEAD_DIM]
# A function, its inputs' shapes, those that a program is run with, an operator, and how many of it CPUs and GPUs get.
CASES = {
    "two segments": (both, [SEGMENT] * 2, [[3, 7, *SEGMENT[2:]], [3, 2, *SEGMENT[2:]]], "softmax", 3, 2),
    "one segment": (both, [SEGMENT], [[2, 5, *SEGMENT[2:]]], "softmax", 3, 1),
    "norm": (normed, [ROWS] * 2 + [[None, DIM]] * 3, [[3, 5, DIM]] * 2 + [[3, DIM]] * 3, "expand_as", 3, 0),
    "gated sum": (gated, [ROWS] * 2 + [[None, DIM]] * 2, [[3, 5, DIM]] * 2 + [[3, DIM]] * 2, "expand_as", 2, 0),
}  # fmt: skip


def written(name: str, folder: Path, within: AbstractContextManager[None]) -> Path:
    """Returns the program of a case, traced within something."""
    function, shapes, *_ = CASES[name]
    specs = [InputSpec(shape, "float32", f"x{index}") for index, shape in enumerate(shapes)]
    with within:
        traced = paddle.jit.to_static(Called(function), input_spec=[specs], full_graph=True)
        paddle.jit.save(traced, str(folder / "program"))
    return folder / "program.json"


@pytest.mark.parametrize("name", CASES)
def test_the_same_as_eager(name: str, tmp_path: Path) -> None:
    function, _, sizes, operator, wanted, _ = CASES[name]
    path = written(name, tmp_path, nullcontext())
    assert path.read_text("utf-8").count(f'"1.{operator}"') == wanted
    inputs = [paddle.randn(size) for size in sizes]
    found, eager = exports.loaded(path)(*inputs), function(*inputs)
    assert [x.shape for x in found] == [x.shape for x in eager]
    assert all(float((x - y).abs().max()) < tolerances.MODULE for x, y in zip(found, eager, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_not_for_gpus(name: str, tmp_path: Path) -> None:
    """In float32, which has no kernels of ours."""
    *_, operator, _, wanted = CASES[name]
    text = written(name, tmp_path, static.tracing("float32", (90,))).read_text("utf-8")
    assert text.count(f'"1.{operator}"') == wanted

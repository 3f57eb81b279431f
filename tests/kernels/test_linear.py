"""Linears with a bias: what they compute, and where they are one product. No fused product runs on the CPU."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import Tensor

from sd3par import ConfigError, kernels
from sd3par.kernels.linear import Product, linear_fused, linear_gelu_fused, linear_gelu_reference, linear_reference
from sd3par.kernels.nvgpu import products
from sd3par.launch.bench.swap import references, swapped
from tests import tolerances
from tests.arrays import array

linear = importlib.import_module("sd3par.kernels.linear")
linear_to = importlib.import_module("sd3par.kernels.linear_to")


def tensors(columns: int = 24, dtype: str = "float32") -> tuple[Tensor, Tensor, Tensor]:
    shapes = {"x": (2, 5, 13), "weight": (13, columns), "bias": (columns,)}
    return tuple(paddle.to_tensor(array(name, shape)).astype(dtype) for name, shape in shapes.items())


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> np.ndarray:
    return x.numpy().astype(np.float64) @ weight.numpy().astype(np.float64) + bias.numpy()


def test_linear_on_the_cpu() -> None:
    given = tensors(23)
    assert np.abs(kernels.linear(*given).numpy() - exact(*given)).max() <= tolerances.MODULE
    without = kernels.linear(*given[:2], None)
    assert np.abs(without.numpy() + given[2].numpy() - exact(*given)).max() <= tolerances.MODULE


def test_pairs_go_where_benchmarks_put_references_and_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take the place of `kernels.linear_pair`: what went around it was neither timed nor switched off."""
    monkeypatch.setattr(kernels, "worth_a_pair", lambda products: len(products) == 2)
    given = tensors()
    with swapped(references()):
        pair = kernels.linears([Product(*given)] * 2)
    for one in pair:
        assert np.abs(one.numpy() - exact(*given)).max() <= tolerances.MODULE


def test_linear_gelu_on_the_cpu_is_the_tanh_form() -> None:
    given = tensors()
    x = exact(*given)
    want = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert np.abs(kernels.linear_gelu(*given).numpy() - want).max() <= tolerances.MODULE


@pytest.mark.parametrize(
    ("kind", "dtype", "columns", "fused", "fused_gelu"),
    [
        ("nvgpu", "bfloat16", 24, True, True),
        ("nvgpu", "float16", 24, True, True),
        ("nvgpu", "float32", 24, True, True),
        ("nvgpu", "float64", 24, False, False),
        ("nvgpu", "float32", 23, True, False),
        ("gpu", "bfloat16", 24, True, True),
        ("gpu", "float32", 24, False, False),
        ("cpu", "float32", 24, False, False),
    ],
)
def test_which_are_one_product(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, columns: int, fused: bool, fused_gelu: bool
) -> None:
    monkeypatch.setattr(linear, "kind_of", lambda x: kind)
    x, weight, _ = tensors(columns, dtype)
    assert linear.fuses(x) == fused
    assert linear.fuses_gelu(x, weight) == fused_gelu


def test_one_product_gets_what_the_reference_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    references = {"none": linear_reference, "gelu": linear_gelu_reference}
    noted = []

    def product(x: Tensor, weight: Tensor, bias: Tensor, *options: object) -> tuple[Tensor, None]:
        noted.append(options)
        return references[options[-1]](x, weight, bias), None

    monkeypatch.setattr(linear, "kind_of", lambda x: "nvgpu")
    monkeypatch.setattr(paddle._C_ops, "fused_gemm_epilogue", product)
    x, weight, bias = tensors()
    for call, reference in ((kernels.linear, linear_reference), (kernels.linear_gelu, linear_gelu_reference)):
        assert bool((call(x, weight, bias) == reference(x, weight, bias)).all())
        assert bool((call(x, weight, None) == reference(x, weight, None)).all())
    assert noted == [(False, False, "none"), (False, False, "gelu")]  # without a bias there is nothing to fuse


def test_a_vector_is_no_fused_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kind_of", lambda x: "nvgpu")
    assert not linear.fuses(paddle.zeros([8]))


def test_traced_programs_are_no_fused_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "kind_of", lambda x: "nvgpu")
    x = paddle.zeros([2, 8])
    assert linear.fuses(x)
    monkeypatch.setattr(paddle, "in_dynamic_mode", lambda: False)
    assert not linear.fuses(x)


@pytest.mark.parametrize(
    ("columns", "rows", "launches"),
    [(192, 5, ["one"]), (96, 5, ["each"]), (192, 0, [])],
    ids=["heads of 64", "an odd number of heads of 32", "no tokens"],
)
def test_which_products_go_to_peers_in_one_launch(
    columns: int, rows: int, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(linear_to.linear_hopper, "fits", lambda streams: True)
    monkeypatch.setattr(linear_to.linear_hopper, "linear_hopper", lambda *given, **named: made.append("one"))
    monkeypatch.setattr(linear_to, "_one_by_one", lambda products, rectangles: made.append("each"))
    product = Product(paddle.zeros([5, 128]), paddle.zeros([128, 384]), paddle.zeros([384]))
    ways = [kernels.Rectangle(0, 0, rows, columns * to, columns, 1 << 20, columns) for to in range(2)]
    kernels.linear_to([product], ways)
    assert made == launches


@pytest.mark.parametrize("gelu", [False, True])
def test_rows_into_memory_that_is_there(gelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuBLASLt is asked for it: by an address, and how far it is there from row to row."""

    def store(
        x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, address: int, pitch: int, stream: int
    ) -> None:  # fmt: skip
        value = (linear_gelu_reference if gelu else linear_reference)(x, weight, bias).numpy()
        assert (x.ndim, pitch, stream) == (2, value.shape[1], 7)
        ctypes.memmove(address, value.tobytes(), value.nbytes)

    monkeypatch.setattr(products, "linear_into", store)
    monkeypatch.setattr(linear_to.device, "stream_handle", lambda: 7)
    x, weight, bias = tensors(23)
    out = paddle.zeros([2, 5, 23])
    kernels.linear_into(Product(x[1:], weight, bias), out[1:], gelu)
    want = (linear_gelu_reference if gelu else linear_reference)(x, weight, bias)
    assert out[0].abs().max() == 0 and float((out[1] - want[1]).abs().max()) <= tolerances.MODULE


@pytest.mark.parametrize("gap", ["gaps", "no bias", "other rows"])
def test_what_memory_that_is_there_is_not_for(gap: str) -> None:
    x, weight, bias = tensors(23)
    out = paddle.zeros([2, 4 if gap == "other rows" else 5, 46])[..., ::2]
    with pytest.raises(ConfigError) as caught:
        kernels.linear_into(Product(x, weight, None if gap == "no bias" else bias), out)
    assert "Tensor" not in str(caught.value)


def wrong(name: str) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    x, weight, bias = tensors()
    return {
        "weight of other inputs": (x, weight[1:], bias),
        "weight of another dtype": (x, weight.astype("float64"), bias),
        "bias of another dtype": (x, weight, bias.astype("float64")),
        "bias of other outputs": (x, weight[:, 1:], bias),
    }[name]


@pytest.mark.parametrize("call", [linear_fused, linear_gelu_fused])
@pytest.mark.parametrize(
    "case", ["weight of other inputs", "weight of another dtype", "bias of another dtype", "bias of other outputs"]
)
def test_wrong_tensors_are_named(call: Callable[..., Tensor], case: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call(*wrong(case))
    assert caught.value.field == case.split()[0]

"""From checkpoint to model: the slices of all ranks together are the checkpoint, bit for bit; strict about names."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.paddle import save_file

from sd3par.errors import CheckpointError
from sd3par.layers import LayerNorm, Linear
from sd3par.plan import Source, WeightPlan, same_name
from sd3par.weights.file_part import Part
from sd3par.weights.fill import fill
from sd3par.weights.safetensors_file import SafetensorsFile
from tests.arrays import weight

DIM, HIDDEN = 8, 16
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"attn.{part}.weight": (DIM, DIM) for part in ("to_q", "to_k", "to_v")},
    **{f"attn.{part}.bias": (DIM,) for part in ("to_q", "to_k", "to_v")},
    "up.weight": (HIDDEN, DIM),
    "up.bias": (HIDDEN,),
    "down.weight": (DIM, HIDDEN),
    "down.bias": (DIM,),
    "norm.weight": (DIM,),
    "norm.bias": (DIM,),
}


class Block(nn.Layer):
    """The share of mp rank `rank` in a small block of 4 heads."""

    def __init__(self, rank: int, mp: int, dtype: str, factors: tuple[float, ...] = ()) -> None:
        super().__init__()
        plan = WeightPlan(4, DIM // 4, mp, rank)
        self.norm = LayerNorm(DIM, 1e-6, dtype)
        self.qkv = Linear(DIM, plan.qkv, dtype, factors=factors)
        self.up = Linear(DIM, plan.share(HIDDEN), dtype)
        self.down = Linear(plan.share(HIDDEN), DIM, dtype)


def source(parameter: str) -> Source:
    """Where the block's parameters come from."""
    layer, kind = parameter.split(".")
    if layer == "qkv":
        return Source(tuple(f"attn.{part}.{kind}" for part in ("to_q", "to_k", "to_v")))
    return same_name(parameter)


def checkpoint(folder: Path, dtype: str = "float32", shapes: dict[str, tuple[int, ...]] = SHAPES) -> SafetensorsFile:
    """The block's tensors in a file."""
    tensors = {name: paddle.to_tensor(weight(name, shape)).astype(dtype) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "block.safetensors"))
    return SafetensorsFile(folder / "block.safetensors")


def bits(tensor: paddle.Tensor) -> np.ndarray:
    """The tensor in fp32, which holds bf16 exactly."""
    return tensor.astype("float32").numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mp", [1, 2, 4])
def test_the_ranks_together_hold_the_checkpoint(tmp_path: Path, mp: int, dtype: str) -> None:
    file = checkpoint(tmp_path, dtype)
    blocks = [Block(rank, mp, dtype) for rank in range(mp)]
    for block in blocks:
        fill(block, file, source)
    stored = {name: bits(file.read(name)) for name in SHAPES}
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        weights = [bits(block.qkv.weight).T.reshape(3, -1, DIM)[part] for block in blocks]
        np.testing.assert_array_equal(np.concatenate(weights), stored[f"attn.{name}.weight"])
        biases = [bits(block.qkv.bias).reshape(3, -1)[part] for block in blocks]
        np.testing.assert_array_equal(np.concatenate(biases), stored[f"attn.{name}.bias"])
    np.testing.assert_array_equal(np.concatenate([bits(block.up.weight).T for block in blocks]), stored["up.weight"])
    np.testing.assert_array_equal(np.concatenate([bits(block.up.bias) for block in blocks]), stored["up.bias"])
    np.testing.assert_array_equal(
        np.concatenate([bits(block.down.weight).T for block in blocks], 1), stored["down.weight"]
    )
    np.testing.assert_array_equal(sum(bits(block.down.bias) for block in blocks), stored["down.bias"])
    for block in blocks:
        np.testing.assert_array_equal(bits(block.norm.bias), stored["norm.bias"])
        assert block.qkv.weight.dtype == (paddle.float32 if dtype == "float32" else paddle.bfloat16)


@pytest.mark.parametrize("mp", [1, 2])
def test_what_is_multiplied_is_rounded_once(tmp_path: Path, mp: int) -> None:
    """Of a file in float16, whose numbers bfloat16 does not hold, queries and values are."""
    file, factors = checkpoint(tmp_path, "float16"), (0.18, 1.0, 3.0)
    blocks = [Block(rank, mp, "bfloat16", factors) for rank in range(mp)]
    for block in blocks:
        fill(block, file, source)
    for part, name in enumerate(("to_q", "to_k", "to_v")):
        for kind, shape in (("weight", (3, -1, DIM)), ("bias", (3, -1))):
            held = [bits(getattr(block.qkv, kind)).T.reshape(shape)[part] for block in blocks]
            exact = bits(file.read(f"attn.{name}.{kind}")) * np.float32(factors[part])
            np.testing.assert_array_equal(np.concatenate(held), bits(paddle.to_tensor(exact).astype("bfloat16")))


@pytest.mark.parametrize("mp", [1, 2, 4])
def test_a_rank_reads_its_bytes_alone(tmp_path: Path, mp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkpoint(tmp_path)
    sizes: dict[str, int] = {}
    read = Part.read

    def counted(part: Part, opened: FileIO, values: np.ndarray) -> None:
        (name,) = (name for name, entry in file._entries.items() if part.start == file._start + entry.start)
        sizes[name] = values.size
        read(part, opened, values)

    monkeypatch.setattr(Part, "read", counted)
    fill(Block(mp - 1, mp, "float32"), file, source)
    for name, shape in SHAPES.items():
        if name == "down.bias":
            assert (name in sizes) == (mp == 1)  # rank 0 alone adds it
        else:
            assert sizes[name] == np.prod(shape) // (1 if name.startswith("norm") else mp)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"down.bias": None}, "down.bias: missing"),
        ({"other.weight": (3,)}, "other.weight: not a tensor of the model"),
        ({"up.weight": (DIM, HIDDEN)}, r"up.weight: shape \[8, 16\]; allowed: shape \[16, 8\]"),
        ({"attn.to_k.bias": (DIM + 1,)}, r"attn.to_k.bias: shape \[9\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    shapes = {name: shape for name, shape in {**SHAPES, **change}.items() if shape is not None}
    with pytest.raises(CheckpointError, match=words):
        fill(Block(0, 2, "float32"), checkpoint(tmp_path, shapes=shapes), source)  # type: ignore[arg-type]


def test_an_ignored_tensor_may_be_left_over(tmp_path: Path) -> None:
    fill(Block(0, 1, "float32"), checkpoint(tmp_path, shapes={**SHAPES, "ids": (3,)}), source, ignored=["id*"])

"""The MM-DiT against diffusers' outputs, every variant, and the traps that a wrong block would fall into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.weights import Component
from tests import tolerances
from tests.checkpoints import ArrayCheckpoint
from tests.mmdit_cases import CASES, VARIANTS, Case, inputs, key

GOLDEN = np.load(Path(__file__).parent / "golden" / "mmdit.npz")


def checkpoint(variant: str) -> ArrayCheckpoint:
    """Returns the deterministic weights of a variant."""
    lines = (line.split() for line in GOLDEN[f"{variant}/names"])
    return ArrayCheckpoint.from_shapes({name: tuple(int(n) for n in shape.split(",")) for name, shape in lines})


def model(variant: str, mesh: Mesh | None = None) -> MMDiT:
    """Returns our MM-DiT with these weights."""
    component = Component(VARIANTS[variant], variant, checkpoint(variant))
    return MMDiT.load(component, "float32", mesh or Mesh.single())


def predict(net: MMDiT, variant: str, case: Case, **changed: np.ndarray) -> np.ndarray:
    """Returns the noise prediction for a case's inputs, some of them replaced."""
    x = {name: paddle.to_tensor(value) for name, value in {**inputs(variant, case), **changed}.items()}
    with paddle.no_grad():
        return net(x["latents"], x["context"], x["pooled"], x["timestep"]).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_with_diffusers(variant: str, case: Case) -> None:
    error = np.abs(predict(model(variant), variant, case) - GOLDEN[key(variant, case)]).max()
    assert error < tolerances.MODULE


def test_parity_can_fail() -> None:
    """Another text, another timestep or another pooled text each moves the output far beyond the tolerance."""
    variant, case = "sd3.5-medium", CASES[0]
    net, golden = model(variant), GOLDEN[key(variant, case)]
    for name in ("context", "pooled", "timestep"):
        other = inputs(variant, case)[name][::-1].copy()
        assert np.abs(predict(net, variant, case, **{name: other}) - golden).max() > 100 * tolerances.MODULE


def test_rows_do_not_mix() -> None:
    """Row 1 of a batch is what row 1 alone gives (trap: attention of row 0 broadcast to all)."""
    variant, case = "sd3-medium", CASES[1]
    net, x = model(variant), inputs("sd3-medium", CASES[1])
    both = predict(net, variant, case)
    alone = predict(net, variant, case, **{name: value[1:] for name, value in x.items()})
    assert np.abs(both[1:] - alone).max() < tolerances.MODULE
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("latents", (2, 16, 10)), ("latents", (2, 16, 9, 6)), ("latents", (2, 16, 26, 6)), ("latents", (2, 4, 10, 6)),
        ("context", (1, 77, 24)), ("context", (2, 77, 23)), ("pooled", (2, 21)), ("timestep", (1,)),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        predict(model("sd3-medium"), "sd3-medium", CASES[0], **{name: np.zeros(shape, np.float32)})
    assert caught.value.field == name


def test_config_defaults_are_diffusers() -> None:
    config = parse_config(ModelConfig, VARIANTS["sd3.5-large"], "config.json")
    assert (config.dim, config.channels_out, config.patch_size) == (64, 16, 2)


def test_meshes_are_those_of_the_pipeline() -> None:
    assert MMDiT.from_pretrained("tiny", device="cpu", parallel="auto").mesh.world.size == 1
    for wrong, field in ((None, "parallel"), ("two", "parallel"), (ParallelConfig(mp=5), "mp_size * sp_size")):
        with pytest.raises(ConfigError) as caught:
            MMDiT.from_pretrained("tiny", device="cpu", parallel=wrong)
        assert caught.value.field == field

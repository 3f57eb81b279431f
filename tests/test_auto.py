"""The rule by which a mesh is chosen, and the meshes that there are to choose from."""

from __future__ import annotations

import math

import pytest

from sd3par.auto import WEIGHTS_SHARE, Sizes, auto_mesh, meshes, resolved, weight_bytes
from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.device import Device
from sd3par.errors import ConfigError
from sd3par.mmdit import MMDiT
from sd3par.pipeline import SD3Pipeline
from sd3par.weights import open_model

GB = 10**9


def sizes(mesh: ParallelConfig) -> tuple[int, int, int]:
    return mesh.dp, mesh.mp, mesh.sp


def config(model: str) -> ModelConfig:
    component = open_model(model, text_encoders=False).transformer
    return parse_config(ModelConfig, component.config, component.where)


@pytest.mark.parametrize("cards, images, guidance, heads, mesh", [
    (1, 1, True, 24, (1, 1, 1)),
    (2, 1, True, 24, (2, 1, 1)),
    (4, 1, True, 24, (2, 1, 2)),
    (8, 1, True, 24, (2, 1, 4)),
    (8, 1, True, 38, (2, 1, 4)),
    (2, 1, False, 24, (1, 1, 2)),
    (8, 1, False, 24, (1, 1, 8)),
    (8, 8, True, 24, (8, 1, 1)),
    (8, 4, True, 24, (8, 1, 1)),
    (8, 3, True, 24, (2, 1, 4)),
    (6, 3, False, 24, (3, 1, 2)),
    (3, 1, True, 24, (1, 1, 3)),
    (48, 1, True, 24, (2, 1, 24)),
])  # fmt: skip
def test_rule(cards: int, images: int, guidance: bool, heads: int, mesh: tuple[int, int, int]) -> None:
    assert sizes(auto_mesh(cards, images, guidance, heads)) == mesh


@pytest.mark.parametrize("cards, card_bytes, mesh", [
    (4, None, (2, 1, 2)),
    (4, int(16.2 * GB / WEIGHTS_SHARE) + 1, (2, 1, 2)),
    (4, 24 * GB, (2, 2, 1)),
    (8, 24 * GB, (2, 2, 2)),
    (4, 12 * GB, (1, 4, 1)),
    (4, 1 * GB, (1, 4, 1)),
])  # fmt: skip
def test_mp_is_what_the_weights_need(cards: int, card_bytes: int | None, mesh: tuple[int, int, int]) -> None:
    assert sizes(auto_mesh(cards, 1, True, 38, int(16.2 * GB), card_bytes)) == mesh


def test_sizes_that_the_caller_wants() -> None:
    assert sizes(auto_mesh(8, 1, True, 24, wanted=Sizes(mp=2))) == (2, 2, 2)
    assert sizes(auto_mesh(8, 1, True, 24, wanted=Sizes(dp=1))) == (1, 1, 8)
    assert sizes(auto_mesh(8, 1, True, 24, wanted=Sizes(sp=3))) == (2, 1, 3)
    assert sizes(auto_mesh(8, 1, True, 24, wanted=Sizes(2, 4, 1))) == (2, 4, 1)


def test_cards_stay_idle_only_where_nothing_uses_them_all() -> None:
    assert auto_mesh(50, 1, True, 24).world == 48
    with pytest.raises(ConfigError, match="got auto for 50 process"):
        auto_mesh(50, 1, True, 24, exact=True)
    with pytest.raises(ConfigError, match="got auto for 8 process.* with mp_size 3; allowed: another number"):
        auto_mesh(8, 1, True, 24, wanted=Sizes(mp=3), exact=True)
    with pytest.raises(ConfigError, match="with dp_size 3"):
        auto_mesh(8, 1, True, 24, wanted=Sizes(dp=3))


def test_meshes_are_all_that_are_legal() -> None:
    assert {sizes(mesh) for mesh in meshes(8, 1, True, 24)} == {
        (2, 1, 4), (2, 2, 2), (2, 4, 1), (1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1),
    }  # fmt: skip
    assert {sizes(mesh) for mesh in meshes(4, 1, False, 2)} == set()
    assert [sizes(mesh) for mesh in meshes(4, 4, False, 1)] == [(4, 1, 1)]
    assert sizes(meshes(6, 3, True, 24)[0]) == (6, 1, 1)


@pytest.mark.parametrize("model", ["random:sd3-medium", "random:sd3.5-medium", "random:sd3.5-large"])
def test_weight_bytes(model: str) -> None:
    """The last block lacks some of the text's matrices; biases and norms are not counted."""
    component = open_model(model, text_encoders=False).transformer
    shapes = component.checkpoint.shapes()
    blocks = 2 * sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("transformer_blocks."))
    assert 1.0 < weight_bytes(config(model), "bfloat16") / blocks < 1.02
    assert weight_bytes(config(model), "float32") == 2 * weight_bytes(config(model), "bfloat16")


def test_resolved() -> None:
    model, target = config("tiny"), Device("cpu", "float32")
    assert sizes(resolved("auto", model, target, 4)) == (2, 1, 2)
    assert resolved(ParallelConfig(mp=4), model, target, 1) == ParallelConfig(mp=4)
    with pytest.raises(ConfigError, match="^mp_size"):
        resolved(ParallelConfig(mp=5), model, target, 5)
    with pytest.raises(ConfigError, match="^parallel: got all"):
        resolved("all", model, target, 1)


@pytest.mark.parametrize(("target", "reason"), [
    (Device("cpu", "float32"), "on cpu no kernels store to another process's memory"),
    (Device("gpu:0", "bfloat16"), "on gpu no kernels store to another process's memory"),
    (Device("nvgpu:0", "float32"), "only half precision has such kernels"),
])  # fmt: skip
def test_peers_are_refused_where_there_can_be_none(target: Device, reason: str) -> None:
    """Before any other process is met: here are none."""
    for sizes in (dict(mp=2), dict(sp=2)):
        with pytest.raises(ConfigError, match=f"^transport: got peer; allowed: auto or collective: {reason}$"):
            resolved(ParallelConfig(**sizes, transport="peer"), config("tiny"), target, 2)
    for possible in (ParallelConfig(dp=2, transport="peer"), ParallelConfig(mp=2)):
        assert resolved(possible, config("tiny"), target, 2) == possible


def test_peers_may_be_possible_on_gpus_in_half_precision() -> None:
    peers = ParallelConfig(mp=2, transport="peer")
    assert resolved(peers, config("tiny"), Device("nvgpu:0", "bfloat16"), 2) == peers


def test_pipeline_refuses_peers_on_the_cpu() -> None:
    for load in (SD3Pipeline.from_pretrained, MMDiT.from_pretrained):
        with pytest.raises(ConfigError, match="^transport: got peer; allowed: auto or collective: on cpu no kernels"):
            load("tiny", parallel=ParallelConfig(mp=2, transport="peer"), device="cpu")


def test_pipeline_for_the_world_that_is_there() -> None:
    assert SD3Pipeline.from_pretrained("tiny", parallel="auto", text_encoder_3=False).parallel == ParallelConfig()


def test_pipeline_of_opened_files() -> None:
    pipe = SD3Pipeline.from_pretrained(open_model("tiny", text_encoders=False))
    assert pipe.text is None

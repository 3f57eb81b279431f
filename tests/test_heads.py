"""Heads that mp and sp do not divide: who holds which, and the prediction of one process on every rank."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest

from sd3par import device, kernels
from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.errors import ConfigError
from sd3par.mesh import Axis, Mesh
from sd3par.mmdit import MMDiT
from sd3par.plan import Share, WeightPlan, runs
from sd3par.weights import Component
from sd3par.weights.random_parts import transformer_names
from tests import ranks, tolerances
from tests.checkpoints import ArrayCheckpoint
from tests.heads_worker import MESHES, MODELS, predict

PARTS = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 4), (1, 8), (2, 2), (2, 4), (4, 2), (3, 5)]


def plans(heads: int, head_dim: int, mp: int, sp: int) -> list[WeightPlan]:
    """Returns what each mp rank holds."""
    return [WeightPlan(heads, head_dim, mp, rank, sp) for rank in range(mp)]


def numbers(shares: list[Share]) -> list[int]:
    """Returns what the shares hold, in order."""
    return list(chain(*(piece for share in shares for piece in share.pieces)))


def test_38_heads_on_4_and_8() -> None:
    assert [len(run) for run in runs(38, 4)] == [10, 10, 9, 9]
    assert [len(run) for run in runs(38, 8)] == [5, 5, 5, 5, 5, 5, 4, 4]
    assert [[len(run) for run in plan.groups] for plan in plans(38, 64, 2, 4)] == [[5, 5, 5, 4]] * 2
    assert [plan.mixed.size for plan in plans(38, 64, 4, 1)] == [640, 640, 576, 576]
    assert {plan.share(4 * 2432).size for plan in plans(38, 64, 8, 1)} == {1216}


@pytest.mark.parametrize(("mp", "sp"), PARTS)
@pytest.mark.parametrize("heads", [15, 24, 38])
def test_every_number_is_held_once(heads: int, mp: int, sp: int) -> None:
    every, dim = plans(heads, 8, mp, sp), heads * 8
    groups = [run for plan in every for run in plan.groups]
    assert list(chain(*groups)) == list(range(heads))
    assert max(map(len, groups)) == -(-heads // (mp * sp))
    assert min(map(len, groups)) == heads // (mp * sp)
    assert numbers([plan.mixed for plan in every]) == list(range(dim))
    assert sorted(numbers([plan.qkv for plan in every])) == list(range(3 * dim))
    for total in (2 * dim, 4 * dim, 9 * dim):
        shares = [plan.share(total) for plan in every]
        assert numbers(shares) == list(range(total))
        assert max(share.size for share in shares) - min(share.size for share in shares) <= 8


def test_columns_come_sp_rank_by_sp_rank() -> None:
    """3 heads of 2: the q, k, v of heads 0 and 1, then of head 2."""
    assert numbers([WeightPlan(3, 2, sp=2).qkv]) == [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 4, 5, 10, 11, 16, 17]
    assert numbers([WeightPlan(3, 2).qkv]) == list(range(18))


@pytest.mark.parametrize(("mp", "rank", "sp"), [(1, 0, 1), (4, 0, 1), (4, 3, 1), (1, 0, 4), (2, 1, 2), (3, 1, 1)])
def test_a_rank_reads_what_it_holds_once(mp: int, rank: int, sp: int) -> None:
    config = MODELS["5 heads, dual, QK norm"]
    checkpoint = ArrayCheckpoint.from_shapes({name: made.shape for name, made in transformer_names(config).items()})
    mesh = Mesh(mp=Axis(mp, rank), sp=Axis(sp, 0))
    net = MMDiT.load(Component(config, "heads", checkpoint), "float32", mesh)
    held = {name: int(parameter.numel()) for name, parameter in net.named_parameters()}
    # A sum's bias is zeros on all ranks but the first, and read by none of them.
    sums = ("to_out.bias", "to_add_out.bias", "down.bias")
    unread = sum(size for name, size in held.items() if rank and name.endswith(sums))
    assert sum(size for _, size in checkpoint.reads) == 4 * (sum(held.values()) - unread)


def test_shares_hold_the_checkpoints_numbers() -> None:
    """mp rank 1 of 2, with sp 2, of 5 heads of 8 holds heads 3 and 4: one for each sp rank. Queries are scaled."""
    config = MODELS["5 heads"]
    checkpoint = ArrayCheckpoint.from_shapes({name: made.shape for name, made in transformer_names(config).items()})
    mesh = Mesh(mp=Axis(2, 1), sp=Axis(2, 1))
    attention = MMDiT.load(Component(config, "heads", checkpoint), "float32", mesh).transformer_blocks[0].attn
    for kind in ("weight", "bias"):
        stored = [checkpoint.arrays[f"transformer_blocks.0.attn.{key}.{kind}"] for key in ("to_q", "to_k", "to_v")]
        stored[0] = stored[0] * np.float32(kernels.query_scale(8))
        want = np.concatenate([one[head : head + 8] for head in (24, 32) for one in stored])
        np.testing.assert_array_equal(getattr(attention.qkv, kind).numpy().T, want)
    out = checkpoint.arrays["transformer_blocks.0.attn.to_out.0.weight"]
    np.testing.assert_array_equal(attention.to_out.weight.numpy().T, out[:, 24:])
    assert not attention.to_out.bias.numpy().any()


def test_more_ranks_than_heads_are_refused() -> None:
    config = parse_config(ModelConfig, MODELS["5 heads"], "config.json")
    config.check_mesh(ParallelConfig(dp=4, mp=5))
    with pytest.raises(ConfigError) as caught:
        config.check_mesh(ParallelConfig(mp=2, sp=3))
    assert caught.value.field == "mp_size * sp_size"
    assert str(caught.value).endswith("got 2 * 3 = 6; allowed: at most 5, the model's attention heads")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "nvgpu"])
@pytest.mark.parametrize("world", MESHES)
def test_every_mesh_equals_one_process(kind: str, world: int) -> None:
    """gloo on the CPU, NCCL on as many GPUs."""
    if kind != "cpu" and device.count(kind) < world:
        pytest.skip(f"this machine has no {world} {kind} devices")
    for printed in ranks.run(world, "tests.heads_worker", kind):
        results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT")]
        assert len(results) == len(MESHES[world])
        for result in results:
            wrong = {name: error for name, error in result["errors"].items() if not error < tolerances.MODULE}
            assert len(result["errors"]) == len(MODELS) and not wrong, (result["mesh"], wrong)


def test_predictions_are_of_a_size_that_shows_errors() -> None:
    """The tolerance is absolute."""
    assert all(np.abs(predict(config, Mesh.single())).mean() > 0.1 for config in MODELS.values())

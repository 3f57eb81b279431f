"""The text encoders of 1 to 4 processes: the states of one, each rank reading what it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sd3par.config import ParallelConfig
from sd3par.mesh import Axis, Mesh
from sd3par.plan import clip_ranks, split_axis
from sd3par.text.place import clip_places, t5_place
from tests import ranks, tolerances

MESHES = {1: 1, 2: 3, 3: 3, 4: 6}


def lines(printed: list[str], word: str) -> Iterator[list[dict[str, Any]]]:
    """Yields what all ranks say of one mesh."""
    every = [[json.loads(line[len(word) :]) for line in text.splitlines() if line.startswith(word)] for text in printed]
    yield from map(list, zip(*every, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("world", MESHES)
def test_every_mesh_equals_one_process(world: int) -> None:
    printed = ranks.run(world, "tests.text_worker", timeout_s=300)
    meshes = list(lines(printed, "RESULT"))
    assert len(meshes) == MESHES[world]
    for results in meshes:
        check_states(results)
        check_t5(results)
        check_read(results, world)
    (last,) = lines(printed, "LAST")
    for one in last:
        assert one["refusals"] == ["prompt", *(["request"] if world > 1 else []), "1"]
        assert one["random"] < tolerances.PIPELINE
        assert one["recorded"] == (last[0]["recorded"] if one is last[0] or world != 3 else [[]] * 8)
    # Rank 0 would have room for both, the others for one; in three processes rank 0 has all of T5.
    kept = [30] if world in (2, 4) else [30, 20]
    assert last[0]["recorded"][-1] == kept and last[0]["recorded"][3] == []


def check_states(results: list[dict[str, Any]]) -> None:
    """The states of one process, and ranks with the same rows have the same bits."""
    enough = {"lists", "no guidance"} <= set(results[0]["states"])  # dp 1, 2 and 4
    assert enough or "dp 3" in results[0]["mesh"], results[0]["mesh"]
    for name in results[0]["states"]:
        first = {one["dp_rank"]: one["states"][name]["bits"] for one in results}
        for one in results:
            found = one["states"][name]
            assert found["error"] < tolerances.MODULE, (one["mesh"], name)
            assert found["bits"] == first[one["dp_rank"]], (one["mesh"], name)


def check_t5(results: list[dict[str, Any]]) -> None:
    """Transformers' states from every rank that has a part of a T5, of which rank 0 is one."""
    for name in results[0]["t5"]:
        errors = [one["t5"][name] for one in results]
        assert errors[0] is not None
        assert all(error is None or error < tolerances.MODULE for error in errors), (results[0]["mesh"], name)


def check_read(results: list[dict[str, Any]], world: int) -> None:
    """Each CLIP is read by one rank, T5 by all alike, up to its norms and position biases; by rank 0 of three."""
    for part, reader in zip(("text_encoder", "text_encoder_2"), clip_ranks(world), strict=True):
        assert [one["read"][part] for one in results] == [float(rank == reader) for rank in range(world)]
    for rank, one in enumerate(results):
        share = 1 / world if world != 3 else float(rank == 0)
        assert share <= one["read"]["text_encoder_3"] < share + 0.02


@pytest.mark.parametrize(("sizes", "counts", "axis"), [
    ((1, 1, 1), (64, 10240), "world"), ((1, 2, 4), (64, 10240), "world"), ((8, 1, 1), (64, 10240), "world"),
    ((3, 1, 2), (64, 10240), "sp"), ((3, 2, 1), (64, 10240), "mp"), ((2, 3, 4), (64, 10240), "sp"),
    ((2, 1, 2), (2, 64), "sp"), ((4, 1, 1), (4, 30), "none"), ((1, 1, 3), (64, 10240), "none"),
])  # fmt: skip
def test_t5_is_split_over_as_many_as_possible(sizes: tuple[int, int, int], counts: tuple[int, int], axis: str) -> None:
    assert split_axis(ParallelConfig(*sizes), *counts) == axis


def mesh_of(parallel: ParallelConfig, rank: int) -> Mesh:
    """A mesh without processes."""
    rest, mp = divmod(rank, parallel.mp)
    dp, sp = divmod(rest, parallel.sp)
    return Mesh(Axis(parallel.dp, dp), Axis(parallel.sp, sp), Axis(parallel.mp, mp), Axis(parallel.world, rank))


@pytest.mark.parametrize(("sizes", "here"), [
    ((2, 2, 2), 8), ((3, 2, 1), 2), ((3, 1, 2), 2), ((2, 1, 3), 2), ((3, 1, 1), 1), ((3, 2, 4), 4),
])  # fmt: skip
def test_every_encoder_has_its_ranks(sizes: tuple[int, int, int], here: int) -> None:
    """One rank gives the states of each; those that split T5 are the processes of rank 0's axis."""
    parallel = ParallelConfig(*sizes)
    meshes = [mesh_of(parallel, rank) for rank in range(parallel.world)]
    t5 = [t5_place(mesh, 64, 10240) for mesh in meshes]
    assert [place.gives for place in t5] == [rank == 0 for rank in range(parallel.world)]
    assert sorted(place.axis.rank for place in t5 if place.here) == list(range(here))
    assert {place.axis.size for place in t5} == {here}
    for which, reader in enumerate(clip_ranks(parallel.world)):
        clip = [clip_places(mesh)[which] for mesh in meshes]
        assert [place.here for place in clip] == [place.gives for place in clip]
        assert [rank for rank, place in enumerate(clip) if place.gives] == [reader]


def test_three_encoders_are_on_three_ranks() -> None:
    assert [clip_ranks(world) for world in (1, 2, 3, 4, 8)] == [(0, 0), (0, 1), (1, 2), (2, 3), (6, 7)]

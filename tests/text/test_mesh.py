"""The text encoders of 1 to 4 processes: the states of one, each rank reading what it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sd3par.mesh import Axis, Mesh
from sd3par.plan import clip_ranks
from sd3par.text.place import clip_places, t5_place
from tests import ranks, tolerances

MESHES = {1: 1, 3: 3, 4: 6}  # of three, whose heads do not divide; two are among the four


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
        assert one["recorded"] == last[0]["recorded"]
    kept = [30] if world > 1 else [30, 20]  # rank 0 would have room for both, the others for one
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
    """Each CLIP is read by one rank, T5 by all alike, up to its norms and position biases."""
    for part, reader in zip(("text_encoder", "text_encoder_2"), clip_ranks(world), strict=True):
        assert [one["read"][part] for one in results] == [float(rank == reader) for rank in range(world)]
    for one in results:
        most, least = (1 / world,) * 2 if world != 3 else (0.5, 0.2)  # of 4 heads
        assert least <= one["read"]["text_encoder_3"] < most + 0.02


@pytest.mark.parametrize(("world", "here"), [(1, 1), (2, 2), (3, 3), (8, 8), (64, 64), (72, 1)])
def test_every_encoder_has_its_ranks(world: int, here: int) -> None:
    """One rank gives the states of each; T5 with 64 heads is on all, or on one where some would have no head."""
    meshes = [Mesh(world=Axis(world, rank)) for rank in range(world)]
    t5 = [t5_place(mesh, 64) for mesh in meshes]
    assert [place.gives for place in t5] == [rank == 0 for rank in range(world)]
    assert [place.axis.rank for place in t5 if place.here] == list(range(here))
    assert {place.axis.size for place in t5} == {here}
    for which, reader in enumerate(clip_ranks(world)):
        clip = [clip_places(mesh)[which] for mesh in meshes]
        assert [place.here for place in clip] == [place.gives for place in clip]
        assert [rank for rank, place in enumerate(clip) if place.gives] == [reader]


def test_three_encoders_are_on_three_ranks() -> None:
    assert [clip_ranks(world) for world in (1, 2, 3, 4, 8)] == [(0, 0), (0, 1), (1, 2), (2, 3), (6, 7)]

"""Too little memory on one rank is one error on all, and the next request is drawn as if nothing had been."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import paddle
import pytest

from sd3par.errors import OutOfMemory, is_out_of_memory
from sd3par.mesh import Axis, Mesh
from sd3par.rehearsal import SLACK_BYTES, Rehearsals, agree, attempt
from tests.memory_worker import LARGE, MESHES
from tests.ranks import run

PARTS = ("encode", "denoise", "decode")
ADVICE = "Smaller or fewer pictures take less, and so does each process of a larger mp_size or sp_size"


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What each of two ranks has found on every mesh."""
    lines = [[json.loads(line.split(maxsplit=1)[1]) for line in text.splitlines() if line.startswith("RESULT")]
             for text in run(2, "tests.memory_worker")]  # fmt: skip
    return [{line["mesh"]: line for line in rank} for rank in lines]


@pytest.mark.xdist_group("rehearsal")
@pytest.mark.parametrize("part", LARGE)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_all_say_which_rank_lacks_memory_and_go_on(found: list[dict[str, Any]], mesh: str, part: str) -> None:
    """Each has tried twice, and given back what it had between."""
    said = f"out of memory while {part}: rank 1: 1.2 GB asked for on nvgpu:1, 700.5 MB free. {ADVICE}"
    assert [rank[mesh]["attempts"][part] for rank in found] == 2 * [[said, 2, True]]


@pytest.mark.xdist_group("rehearsal")
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.slow
def test_all_record_or_none(found: list[dict[str, Any]], mesh: str) -> None:
    """Beside the older graph, then without it."""
    what = "recording a denoising step as a CUDA graph"
    said = f"out of memory while {what}: rank 1: MemoryError: the device is full. {ADVICE}"
    assert [rank[mesh]["recording"] for rank in found] == 2 * [[said, [1, 0], True]]


class Two:
    """As much of a mesh of two as rehearsals ask for; `other` says when the other process lacks memory."""

    world = Axis(2, 0)

    def __init__(self) -> None:
        self.other: list[bool] = []
        self.rehearsing = nullcontext

    def any(self, flag: bool) -> bool:
        return flag or bool(self.other and self.other.pop(0))

    def texts(self, text: str) -> list[str]:
        return [text, "" if text else "the other one"]


@pytest.fixture
def two() -> SimpleNamespace:
    """Rehearsals of a mesh of two, the room that this one has, and what has happened."""
    case = SimpleNamespace(mesh=Two(), room=10 * SLACK_BYTES, log=[])
    case.rehearsals = Rehearsals(case.mesh, lambda: case.room)
    case.give_back = lambda: case.log.append("give back")
    return case


def request(case: SimpleNamespace, shape: str = "square", takes: int = 0) -> None:
    """Renders in parts, and notes what is rehearsed; `takes` of the room are kept."""

    def render(rehearse: Any) -> None:
        for part in PARTS:
            rehearse(part, lambda part=part: case.log.append(part))
        case.room -= takes

    case.rehearsals.run(shape, case.rehearsals.due(shape), render, case.give_back)


def test_a_shape_is_rehearsed_once(two: SimpleNamespace) -> None:
    request(two)
    request(two)
    assert two.log == [*PARTS]
    request(two, "wide")
    assert two.log == [*PARTS, *PARTS]


def test_what_requests_take_themselves_is_no_reason(two: SimpleNamespace) -> None:
    """Recordings are made at the first request, and at the third."""
    for takes in (3 * SLACK_BYTES, 0, 2 * SLACK_BYTES, 0, 0):
        request(two, takes=takes)
    assert two.log == [*PARTS]


def test_where_memory_was_taken_since_a_request_is_rehearsed_again(two: SimpleNamespace) -> None:
    request(two)
    two.room -= SLACK_BYTES // 2 + 1
    request(two)
    assert two.log == [*PARTS]
    two.room -= SLACK_BYTES // 2
    request(two)
    request(two)
    assert two.log == [*PARTS, *PARTS]


def test_a_request_that_needs_what_was_given_back_is_rehearsed_each_time(two: SimpleNamespace) -> None:
    two.mesh.other = [False, True]  # the second part
    request(two)
    assert two.log == ["encode", "denoise", "give back", "denoise", "decode"]
    request(two)
    request(two)
    assert two.log[5:] == [*PARTS]


def test_a_request_that_failed_is_rehearsed_again(two: SimpleNamespace) -> None:
    request(two)
    two.room, two.mesh.other = 0, [True, True]
    with pytest.raises(OutOfMemory, match="^out of memory while encode: rank 1: the other one. Smaller"):
        request(two)
    two.log.clear()
    request(two)
    assert two.log == [*PARTS]


def test_the_others_rehearse_where_one_wants_to(two: SimpleNamespace) -> None:
    request(two)
    two.log.clear()

    def render(rehearse: Any) -> None:
        rehearse("encode", lambda: two.log.append("encode"))

    two.rehearsals.run("square", True, render, two.give_back)
    assert two.log == ["encode"]


def test_other_errors_are_not_about_memory(two: SimpleNamespace) -> None:
    def broken() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        two.rehearsals.run("square", True, lambda rehearse: rehearse("encode", broken), two.give_back)
    assert two.log == []


def test_one_process_says_it_too() -> None:
    log: list[str] = []
    rehearsals, give_back = Rehearsals(Mesh.single(), None), lambda: log.append("give back")

    def full(rehearse: object) -> None:
        raise MemoryError("the device is full")

    assert not rehearsals.due("square")
    with pytest.raises(OutOfMemory, match=f"^out of memory while rendering: MemoryError: the device is full. {ADVICE}"):
        rehearsals.run("square", False, full, give_back)
    assert log == ["give back"]
    assert rehearsals.run("square", False, lambda rehearse: "a picture", give_back) == "a picture"


def test_no_error_holds_memory() -> None:
    """What was made before it is gone, also while the caller still has the error."""
    gone: list[str] = []

    class Held:
        def __del__(self) -> None:
            gone.append("gone")

    def work() -> None:
        held = Held()
        raise MemoryError(f"{held.__class__.__name__} is too large")

    made, reason = attempt(work)
    assert (made, reason, gone) == (None, "MemoryError: Held is too large", ["gone"])
    with pytest.raises(OutOfMemory) as caught:
        agree(Mesh.single(), "testing", reason)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(("error", "is_one"), [
    (MemoryError(), True), (RuntimeError("cuMemAlloc: CUDA error: out of memory"), True), (OutOfMemory("x"), True),
    (OSError("(External) ResourceExhausted"), True), (RuntimeError("gloo: connection closed"), False),
    ("rank 1: ResourceExhaustedError: Out of memory error on nvgpu:1", True), ("rank 1: killed", False),
])  # fmt: skip
def test_errors_that_are_about_memory(error: BaseException | str, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_collectives_of_a_rehearsal_send_nothing() -> None:
    mesh = Mesh(dp=Axis(2, 1), world=Axis(2, 1))  # without groups
    x = paddle.arange(6, dtype="float32").reshape([2, 3])
    with mesh.rehearsing():
        assert mesh.alone
        assert mesh.all_reduce(mesh.dp, x).shape == [2, 3]
        assert mesh.all_gather(mesh.dp, x).shape == [2, 2, 3]
        assert mesh.all_to_all(mesh.dp, x).shape == [2, 3]
    assert not mesh.alone
    with pytest.raises(RuntimeError, match="broken"), mesh.rehearsing():
        raise RuntimeError("broken")
    assert not mesh.alone

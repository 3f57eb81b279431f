"""Memory that ranks map into each other, and what becomes of a mesh whose ranks cannot."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from sd3par import cuda_driver, kernels, peer_memory
from sd3par.errors import ConfigError
from sd3par.mesh import Mesh
from sd3par.peer_memory import ALIGNED, Meeting, Post, Shared, SharedPool, share, why_not
from sd3par.plan import WeightPlan
from sd3par.routes import routes_for
from tests.emulated import Emulation, Race
from tests.turns import Stuck

why_no_peers = kernels.why_no_peers
GPU = SimpleNamespace(
    current=lambda: "nvgpu:0", current_index=lambda: 0, synchronize=lambda: None, tensor=paddle.to_tensor
)
PLAN = WeightPlan(heads=6, head_dim=8)

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """Three sp ranks, on what says to be a GPU."""
    monkeypatch.setattr(peer_memory, "device", GPU)
    return Emulation(monkeypatch, 1, 3)


def fail_on(emulation: Emulation, rank: int, function: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a function of the driver fail on one rank."""
    works = getattr(cuda_driver, function)

    def fails(*given: object) -> object:
        if emulation.turns.me == rank:
            raise error
        return works(*given)

    monkeypatch.setattr(cuda_driver, function, fails)


def test_addresses_are_where_the_others_memory_lies(three: Emulation) -> None:
    every: list[Shared] = three.run(lambda mesh: share(mesh, mesh.sp, 5, "float32"))
    starts = [shared.own.data_ptr() for shared in every]
    for rank, shared in enumerate(every):
        assert shared.addresses[rank] == starts[rank]
        assert [address % (1 << 52) for address in shared.addresses] == starts
        assert len({address >> 52 for address in shared.addresses}) == 2  # its own memory, and what it maps
        assert shared.address(1, 3) == shared.addresses[1] + 12
        assert shared.everywhere(2).tolist() == [address + 8 for address in shared.addresses]


def test_memory_begins_as_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "export_memory", lambda index, address: (bytes(64), 0))
    assert share(Mesh.single(), Mesh.single().sp, 3, "int32").own.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("function", "error"), [
    ("export_memory", OSError("no libcuda.so.1")),
    ("export_memory", RuntimeError("cuIpcGetMemHandle failed with 801: operation not supported")),
    ("import_memory", RuntimeError("cuIpcOpenMemHandle_v2 failed with 217: peer access is not supported")),
])  # fmt: skip
def test_where_one_cannot_map_all_hear_of_it(
    function: str, error: Exception, three: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(three, 1, function, error, monkeypatch)

    def told(mesh: Mesh) -> str:
        with pytest.raises(RuntimeError) as caught:
            share(mesh, mesh.sp, 5, "float32")
        assert why_not(mesh, "float32") == str(caught.value)
        assert routes_for(three.mesh(mesh.sp.rank, "auto"), PLAN, "float32").transport == "collective"
        return str(caught.value)

    said = three.run(told)
    assert said[1] == str(error)
    assert said[0] == said[2] == "another process cannot map the others' memory"


def test_pool_lays_tensors_side_by_side_over_the_same_bytes(three: Emulation) -> None:
    def lay(mesh: Mesh) -> None:
        pool = SharedPool(mesh, mesh.sp, "float32")
        for shapes in ([[2, 3, 50], [ALIGNED]], [[7], [1, 5]]):
            sizes = [300, ALIGNED]
            first, second = pool.tensors(shapes, sizes)
            assert [list(first.own.shape), list(second.own.shape)] == shapes
            assert second.own.data_ptr() - first.own.data_ptr() == 4 * 3 * ALIGNED
            assert [b - a for a, b in zip(first.addresses, second.addresses, strict=True)] == 3 * [4 * 3 * ALIGNED]
            assert first.addresses[mesh.sp.rank] == first.own.data_ptr() == pool._held[0].own.data_ptr()

    three.run(lay)
    assert len(three.memories) == 3


def test_pool_grows_seldom_and_keeps_what_it_gave(three: Emulation) -> None:
    """Requests that are each a little larger than the one before take three times what the last needs, at most."""

    def grow(mesh: Mesh) -> int:
        pool = SharedPool(mesh, mesh.sp, "float32")
        (first,) = pool.tensors([[10]], [10])
        for tokens in range(1, 400):
            pool.tensors([[tokens, 48]], [tokens * 48])
        assert pool.tensors([[10]], [10])[0].own.data_ptr() != first.own.data_ptr()
        assert pool._held[0].own.data_ptr() == first.own.data_ptr()
        return sum(one.own.shape[0] for one in pool._held)

    assert max(three.run(grow)) < 3 * 1.5 * 400 * 48
    assert len(three.memories) < 3 * 20


def test_nobody_leaves_a_meeting_before_all_have_come(three: Emulation) -> None:
    here: list[int] = []

    def meet(mesh: Mesh) -> None:
        meeting = Meeting(mesh, mesh.sp)
        for turn in range(5):
            here.append(turn)
            meeting()
            assert here.count(turn) == 3

    three.run(meet)


def test_a_meeting_that_one_leaves_out_ends_for_nobody(three: Emulation) -> None:
    def meet(mesh: Mesh) -> None:
        meeting = Meeting(mesh, mesh.sp)
        if mesh.sp.rank != 2:
            meeting()

    with pytest.raises(Stuck):
        three.run(meet)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("receives", [True, False])
def test_what_was_sent_may_be_overwritten_once_all_is_received(
    receives: bool, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_memory, "device", GPU)
    emulation = Emulation(monkeypatch, 1, 3, late=late)

    def send(mesh: Mesh) -> list[float]:
        post, mine, found = Post(mesh, mesh.sp), *(peer_memory.share(mesh, mesh.sp, 2, "float32") for _ in range(2))
        for turn in range(2):
            emulation.store(mine.own.data_ptr(), np.full([1, 2], 10 * turn + mesh.sp.rank, "float32"), 0)
            post.send([(mine.own, found.address((mesh.sp.rank + 1) % 3, 0))])
            if receives:
                post.receive()
        return found.own.tolist()

    if receives:
        assert emulation.run(send) == [[12.0] * 2, [10.0] * 2, [11.0] * 2]
    else:
        with pytest.raises(Race):
            emulation.run(send)


def test_only_what_stays_is_sent(three: Emulation) -> None:
    def send(mesh: Mesh) -> None:
        post, found = Post(mesh, mesh.sp), peer_memory.share(mesh, mesh.sp, 2, "float32")
        post.send([(paddle.zeros([2]), found.address(mesh.sp.rank, 0))])

    with pytest.raises(AssertionError, match="gone"):
        three.run(send)


def on_two_machines(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_memory, "machine", lambda: -(1 << 63) + (emulation.turns.me == 2))


def without_kernels(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "why_no_peers", lambda dtype: "no Triton" if emulation.turns.me == 0 else "")


def without_stores(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank stores to others is lost, and nobody waits for ever."""

    def alone(flags: paddle.Tensor, targets: paddle.Tensor, trial: bool = False) -> None:
        assert trial
        flags[emulation.turns.me] = flags[3] = 1

    monkeypatch.setattr(kernels, "meet", alone)


def without_stores_of_one(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last rank arrive at nobody."""

    def alone(flags: paddle.Tensor, targets: paddle.Tensor, trial: bool = False) -> None:
        flags[0] = flags[1] = flags[3] = 1
        flags[2] = int(emulation.turns.me == 2)

    monkeypatch.setattr(kernels, "meet", alone)


@pytest.mark.parametrize(("harm", "reasons"), [
    (on_two_machines, ["the processes are on several machines"] * 3),
    (without_kernels, ["no Triton", "another process cannot", "another process cannot"]),
    (without_stores, ["what is stored to another GPU does not arrive"] * 3),
    (without_stores_of_one, ["what is stored to another GPU does not arrive"] * 3),
])  # fmt: skip
@pytest.mark.parametrize("transport", ["auto", "peer"])
def test_where_one_cannot_none_does(
    transport: str, harm: Callable[[Emulation, pytest.MonkeyPatch], None], reasons: list[str], three: Emulation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    harm(three, monkeypatch)

    def choose(mesh: Mesh) -> str:
        mesh = three.mesh(mesh.sp.rank, transport)
        try:
            assert routes_for(mesh, PLAN, "float32").transport == "collective"
        except ConfigError as error:
            assert (error.field, error.value) == ("transport", "peer")
            return str(error)
        return why_not(mesh, "float32")

    said = three.run(choose)
    if transport == "peer":
        reasons = [f"transport: got peer; allowed: auto or collective: {reason}" for reason in reasons]
    assert said == reasons


def test_where_all_can_all_do(three: Emulation) -> None:
    def choose(mesh: Mesh) -> list[str]:
        ways = ("auto", "peer", "collective")
        return [routes_for(three.mesh(mesh.sp.rank, way), PLAN, "float32").transport for way in ways]

    assert three.run(choose) == [["peer", "peer", "collective"]] * 3


def test_only_who_stores_to_each_other_must_share_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here dp goes from one machine to another."""
    emulation = Emulation(monkeypatch, 2, 2)
    monkeypatch.setattr(peer_memory, "device", GPU)
    monkeypatch.setattr(peer_memory, "machine", lambda: emulation.turns.me % 2)
    by_dp = emulation.run(lambda mesh: why_not(Mesh(dp=mesh.mp, sp=mesh.sp, world=mesh.world), "float32"))
    assert by_dp == [""] * 4
    assert emulation.run(lambda mesh: why_not(mesh, "float32")) == ["the processes are on several machines"] * 4


def test_the_cpu_refuses_peers_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    emulation = Emulation(monkeypatch, 2, 1)
    monkeypatch.setattr(kernels, "why_no_peers", why_no_peers)

    def choose(mesh: Mesh) -> str:
        assert routes_for(emulation.mesh(mesh.mp.rank, "auto"), PLAN, "float32").transport == "collective"
        with pytest.raises(ConfigError) as caught:
            routes_for(mesh, PLAN, "float32")
        return str(caught.value)

    refusal = "transport: got peer; allowed: auto or collective: on cpu no kernels store to another process's memory"
    assert emulation.run(choose) == [refusal] * 2
    assert routes_for(Mesh(transport="peer"), PLAN, "float32").transport == "collective"  # alone there is nobody

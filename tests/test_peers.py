"""Stores to other ranks' memory: the prediction of one process on every mesh, and what must not race."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
import pytest

from sd3par import copied_sums, kernels
from sd3par.conditions import gather_tokens
from sd3par.copied_sums import CopiedSums
from sd3par.mesh import Mesh
from sd3par.mmdit import MMDiT
from sd3par.peer_exchange import PeerExchange
from sd3par.peer_memory import Post
from sd3par.peer_mix import PeerMix
from sd3par.peer_sums import PeerSums
from sd3par.plan import tokens_for
from tests import tolerances
from tests.arrays import array
from tests.emulated import Emulation, Race
from tests.heads_worker import MODELS, model

# Rows, patches down and across, text tokens: uneven, fewer than ranks, larger than before and smaller again.
SHAPES = ((2, 5, 3, 7), (1, 3, 1, 2), (1, 4, 6, 9), (2, 5, 3, 7))
STEPS = 2
# The image has as many tokens as are copied, the text fewer, or as many too; one row is not enough for two ranks.
COPIED = ((2, 5, 3, 7), (1, 4, 6, 9), (4, 3, 2, 3), (4, 3, 2, 6), (3, 5, 3, 8), (2, 5, 3, 7))
LEAST_TOKENS = 20
MESHES = ((1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2))  # (mp, sp)
CASES = [(name, *mesh) for name, config in MODELS.items() for mesh in MESHES
         if mesh[0] * mesh[1] <= config["num_attention_heads"]]  # fmt: skip
Shape = tuple[int, int, int, int]

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def steps(net: MMDiT, shape: Shape, between: Callable[[], object] = lambda: None) -> list[np.ndarray]:
    """Returns what steps one after the other predict, [R, T, 64] each; each but the first begins where one ended.

    between: called after each step.
    """
    rows, down, across, text = shape
    context = paddle.to_tensor(array(f"context {shape}", (rows, text, 24)))
    pooled = paddle.to_tensor(array(f"pooled {shape}", (rows, 20)))
    timesteps = paddle.to_tensor(np.linspace(937.5, 12.25, STEPS * rows).reshape([STEPS, rows]).astype("float32"))
    x = paddle.to_tensor(array(f"latents {shape}", (rows, down * across, 64)))
    conditions, sp, found = net.prepare(context, pooled, timesteps, (down, across)), net.mesh.sp, []
    tokens = tokens_for(sp.rank, sp.size, down * across)
    for index in range(STEPS):
        mine = paddle.concat([x[:, tokens.start : tokens.stop], paddle.zeros([rows, tokens.padding, 64])], axis=1)
        x = gather_tokens(net.mesh, net.step(mine, conditions, index), tokens)
        found.append(x.numpy())
        between()
    return found


def run(name: str, shapes: tuple[Shape, ...], mesh: Mesh) -> list[np.ndarray]:
    """Returns the predictions for some requests that one model gets."""
    net = model(MODELS[name], mesh)
    return [x for shape in shapes for x in steps(net, shape)]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[np.ndarray]]:
    """What one process predicts."""
    with paddle.no_grad():
        return {name: run(name, SHAPES, Mesh.single()) for name in MODELS}


@pytest.mark.parametrize(("name", "mp", "sp"), CASES)
def test_every_mesh_equals_one_process(
    name: str, mp: int, sp: int, alone: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulation = Emulation(monkeypatch, mp, sp)
    for predictions in emulation.run(lambda mesh: run(name, SHAPES, mesh)):
        for got, want in zip(predictions, alone[name], strict=True):
            assert np.abs(got - want).max() < tolerances.MODULE
    assert emulation.meetings > 0


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets few tokens be as many as are copied."""
    monkeypatch.setattr(copied_sums, "LEAST_TOKENS", LEAST_TOKENS)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets few tokens be as many as are copied."""
    few(monkeypatch)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    ("name", "mp", "late"),
    [*((name, 2, True) for name in MODELS),
     *(("5 heads, dual, QK norm", *way) for way in ((2, False), (3, True), (4, False), (4, True)))],
)  # fmt: skip
def test_copies_beside_the_products(name: str, mp: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with paddle.no_grad():
        want = run(name, COPIED, Mesh.single())
    emulation = Emulation(monkeypatch, mp, 1, late, late)
    for predictions in emulation.run(lambda mesh: run(name, COPIED, mesh)):
        assert max(np.abs(x - y).max() for x, y in zip(predictions, want, strict=True)) < tolerances.MODULE
    assert emulation.copies > 0
    assert not any(side.open for side in emulation.sides.values())  # a recorded step ends with all its streams


@pytest.mark.parametrize(("mp", "most"), [(2, 0.53), (3, 0.38)])
def test_weights_of_a_rank(mp: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the blocks; the product after attention is whole on each."""

    def numbers(mesh: Mesh) -> int:
        return sum(one.size for one in model(MODELS["6 heads, QK norm"], mesh).transformer_blocks.parameters())

    whole = numbers(Mesh.single())
    assert max(Emulation(monkeypatch, mp, 1).run(numbers)) <= most * whole


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("failing", ["tell", "attention", "linear_to", "adaln"])
def test_a_step_that_fails_on_all_ranks_leaves_them_in_step(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it does: what was told is heard, before the next step or by it."""
    name = "5 heads, dual, QK norm"
    with paddle.no_grad():
        want = run(name, COPIED[:1], Mesh.single())
    emulation = Emulation(monkeypatch, 2, 1)
    whole, calls = getattr(kernels, failing), {0: 0, 1: 0}

    def fails_once(*given: object, **named: object) -> object:
        me = emulation.turns.me
        calls[me] += 1
        if calls[me] == 2:
            raise MemoryError("no room")
        return whole(*given, **named)

    monkeypatch.setattr(kernels, failing, fails_once)

    def twice(mesh: Mesh) -> list[np.ndarray]:
        net = model(MODELS[name], mesh)
        with pytest.raises(MemoryError):
            steps(net, COPIED[0])
        net.routes.sums._meet()  # as a request begins: all ranks have ended the one before
        return steps(net, COPIED[0])

    for predictions in emulation.run(twice):
        assert max(np.abs(x - y).max() for x, y in zip(predictions, want, strict=True)) < tolerances.MODULE


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_fails_beside_its_copies_leaves_none_behind(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all ranks, as where memory does not suffice: the next one waits for its own norms."""
    name = "5 heads, dual, QK norm"
    with paddle.no_grad():
        want = run(name, COPIED[:1], Mesh.single())
    emulation = Emulation(monkeypatch, 2, 1, late=late)
    multiply, ranks = kernels.linear_into, {0, 1}

    def fails_once(*given: object) -> None:
        if emulation.turns.me in ranks:
            ranks.remove(emulation.turns.me)
            raise MemoryError("no room for a product")
        multiply(*given)

    monkeypatch.setattr(kernels, "linear_into", fails_once)

    def twice(mesh: Mesh) -> list[np.ndarray]:
        net = model(MODELS[name], mesh)
        with pytest.raises(MemoryError):
            steps(net, COPIED[0])
        return steps(net, COPIED[0])

    for predictions in emulation.run(twice):
        assert max(np.abs(x - y).max() for x, y in zip(predictions, want, strict=True)) < tolerances.MODULE
    assert not ranks


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_ranks_gives_the_same(
    seed: int, alone: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "5 heads, dual, QK norm"
    for predictions in Emulation(monkeypatch, 2, 2, seed + 1).run(lambda mesh: run(name, SHAPES[:1], mesh)):
        assert all(
            np.abs(x - y).max() < tolerances.MODULE for x, y in zip(predictions, alone[name][:STEPS], strict=True)
        )


@pytest.mark.parametrize(("mp", "sp", "least"), [(2, 1, copied_sums.LEAST_TOKENS), (2, 1, LEAST_TOKENS),
                                               (1, 3, LEAST_TOKENS), (2, 2, LEAST_TOKENS)])  # fmt: skip
def test_a_rehearsal_stores_to_nobody_and_meets_nobody(
    mp: int, sp: int, least: int, alone: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank takes what a step takes, then all make the step together: right, and in no memory of the rehearsal."""
    monkeypatch.setattr(copied_sums, "LEAST_TOKENS", least)
    name, emulation = "5 heads, dual, QK norm", Emulation(monkeypatch, mp, sp)
    shapes = [SHAPES[1], SHAPES[0]]  # the second grows what the first has shared

    def rehearsed(mesh: Mesh) -> list[np.ndarray]:
        net, found = model(MODELS[name], mesh), []
        for shape in shapes:
            mesh.barrier()
            meetings, copies, memories = emulation.meetings, emulation.copies, len(emulation.memories)
            with mesh.rehearsing():
                steps(net, shape)
            mine = [one for one in emulation.memories[memories:] if one.owner == mesh.world.rank]
            assert mine and not mesh.rehearsal.kept
            mesh.barrier()
            assert (emulation.meetings, emulation.copies) == (meetings, copies)
            assert all(set(one.writer.tolist()) <= {-1, one.owner} for one in mine)
            mesh.barrier()
            found += steps(net, shape)
        return found

    want = [alone[name][STEPS * SHAPES.index(shape) + step] for shape in shapes for step in range(STEPS)]
    for predictions in emulation.run(rehearsed):
        assert all(np.abs(x - y).max() < tolerances.MODULE for x, y in zip(predictions, want, strict=True))
    assert (emulation.copies > 0) == (sp == 1 and least == LEAST_TOKENS)


def test_requests_within_requests_and_models_beside_models(
    alone: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback asks the same model for a larger picture, which asks another model, between any two steps."""
    names, (small, large) = ("5 heads, dual, QK norm", "6 heads, QK norm"), SHAPES[1:3]

    def both(mesh: Mesh) -> list[np.ndarray]:
        net, other = (model(MODELS[name], mesh) for name in names)
        found: list[np.ndarray] = []

        def beside() -> None:
            found.extend(steps(other, small))

        def within() -> None:
            found.extend(steps(net, large, beside))

        return [*steps(net, small, within), *found]

    outer, inner, aside = alone[names[0]][STEPS : 2 * STEPS], alone[names[0]][2 * STEPS : 3 * STEPS], alone[names[1]]
    want = outer + STEPS * (STEPS * aside[STEPS : 2 * STEPS] + inner)
    for predictions in Emulation(monkeypatch, 2, 2).run(both):
        assert all(np.abs(x - y).max() < tolerances.MODULE for x, y in zip(predictions, want, strict=True))


def test_pools_grow_on_all_ranks_or_on_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mp ranks have different numbers of heads too: growing is a collective of the whole mesh."""
    shapes = ((1, 1, 1, 1), (1, 1, 1, 3), (1, 2, 2, 3), (1, 2, 3, 3), (1, 3, 3, 4))
    Emulation(monkeypatch, 2, 2).run(lambda mesh: run("5 heads", shapes, mesh))


def without_meeting(kind: type, method: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Returns what leaves out the meeting at the end of a method."""

    def harm(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = getattr(kind, method)

        def harmed(self: object, *given: object, **named: object) -> object:
            meet, self._meet = self._meet, lambda: None
            try:
                return whole(self, *given, **named)
            finally:
                self._meet = meet

        monkeypatch.setattr(kind, method, harmed)

    return harm


def without_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the last norm of a step where all others are."""
    norm = PeerSums.norm
    monkeypatch.setattr(PeerSums, "norm", lambda self, streams, lengths, last=False: norm(self, streams, lengths))


def without_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets products with the text go on before its norms have been heard of."""
    few(monkeypatch)
    multiply = CopiedSums.multiply

    def harmed(self: CopiedSums, *given: object, **named: object) -> object:
        self._notes.under_way = False
        return multiply(self, *given, **named)

    monkeypatch.setattr(CopiedSums, "multiply", harmed)


def without_receiving(method: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Returns what lets a method of `CopiedSums` go on before it has received anything."""

    def harm(monkeypatch: pytest.MonkeyPatch) -> None:
        few(monkeypatch)
        whole, receive = getattr(CopiedSums, method), Post.receive

        def harmed(self: CopiedSums, *given: object, **named: object) -> object:
            self._post.receive = lambda: None  # type: ignore[method-assign]
            try:
                return whole(self, *given, **named)
            finally:
                self._post.receive = lambda: receive(self._post)  # type: ignore[method-assign]

        monkeypatch.setattr(CopiedSums, method, harmed)

    return harm


def told_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ranks tell what they send before they send it."""
    few(monkeypatch)
    send = Post.send

    def harmed(self: Post, parts: list[tuple[paddle.Tensor, int]]) -> None:
        send(self, [])
        for x, address in parts:
            self._side.copy(x, address)

    monkeypatch.setattr(Post, "send", harmed)


def few_are_copied(harm: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Returns that harm where few tokens are as many as are copied."""

    def both(monkeypatch: pytest.MonkeyPatch) -> None:
        few(monkeypatch)
        harm(monkeypatch)

    return both


HARMS = {
    "copied norms": (without_receiving("multiply"), 2, 1),
    "copied norms, told too early": (told_too_early, 2, 1),
    "stored norms beside copied ones": (without_notes, 2, 1),
    "mixed tokens of rows": (few_are_copied(without_meeting(PeerMix, "by_rows")), 2, 1),
    "mixed tokens of tokens": (without_meeting(PeerMix, "by_tokens"), 3, 1),
    "parts, norms copied": (few_are_copied(without_meeting(CopiedSums, "add")), 2, 1),
    "last norm, norms copied": (few_are_copied(without_meeting(CopiedSums, "norm")), 2, 1),
    "heads": (without_meeting(PeerExchange, "project"), 1, 2),
    "mixed tokens": (without_meeting(PeerExchange, "attend"), 1, 2),
    "norms": (without_meeting(PeerSums, "norm"), 3, 1),
    "parts": (without_meeting(PeerSums, "add"), 3, 1),
    "last norm": (without_last, 3, 1),
    "parts on two": (without_meeting(PeerSums, "add"), 2, 1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("harm", HARMS)
def test_every_meeting_is_needed(harm: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change, mp, sp = HARMS[harm]
    change(monkeypatch)
    with pytest.raises(Race):
        Emulation(monkeypatch, mp, sp, seed).run(lambda mesh: run("5 heads", SHAPES[:1], mesh))

"""The peers' way on the CPU, in fp32: kernels store to the memory of other ranks, which are threads (tests/turns.py).

Two accesses to a number, one of them a store, of which no meeting says which comes first, are an error whatever the
order was this time. An address works on the rank alone that mapped it. Shared memory is NaN until someone stores to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import paddle
import pytest
from paddle import Tensor

from sd3par import cuda_driver, kernels, peer_memory
from sd3par.kernels import Copies, Product, Rectangle, Scattered, Stream
from sd3par.kernels.adaln import Outs, adaln_reference
from sd3par.kernels.adaln import _targets as adaln_targets
from sd3par.kernels.attention import attention_reference, check_segments, targets_of
from sd3par.kernels.gated_sum import gated_sum_reference
from sd3par.kernels.linear import linear_gelu_reference, linear_reference
from sd3par.kernels.qkv import split_heads_reference
from sd3par.mesh import Axis, Mesh
from tests.turns import Turns

READERS = ("gated_sum", "guidance_euler", "linear", "linear_gelu", "linears", "patch_embed")  # that store to no address
SPACE = 52  # bits: above them stands whose address it is, plus one
BEFORE = 256  # bytes between where an allocation begins and the tensor in it


class Race(AssertionError):
    """Two ranks touch a number, and nothing says who comes first."""


class Group:
    """Ranks that do collectives together."""

    def __init__(self, turns: Turns, ranks: list[int]) -> None:
        self._turns, self._ranks = turns, ranks
        self._counts = dict.fromkeys(ranks, 0)
        self._boxes: dict[int, dict[int, tuple[str, np.ndarray]]] = {}

    def exchange(self, kind: str, x: Tensor) -> list[np.ndarray]:
        """Returns x: [...] of every rank. It orders no stores: meetings alone must."""
        me = self._turns.me
        box = self._boxes.setdefault(self._counts[me], {})
        self._counts[me] += 1
        box[me] = (f"{kind} of {x.dtype} {x.shape}", x.numpy().copy())
        self._turns.pause(lambda: len(box) == len(self._ranks))
        kinds = {kind for kind, _ in box.values()}
        assert len(kinds) == 1, f"ranks {self._ranks} ask for {kinds} together"
        return [box[rank][1] for rank in self._ranks]


class Wire:
    """Stands for paddle.distributed.stream."""

    @staticmethod
    def all_gather(parts: Tensor, own: Tensor, group: Group, use_calc_stream: bool) -> None:
        _fill(parts, np.concatenate(group.exchange("all-gather", own)))

    @staticmethod
    def all_reduce(total: Tensor, group: Group, use_calc_stream: bool) -> None:
        _fill(total, np.sum(group.exchange("all-reduce", total), axis=0))


class Memory(NamedTuple):
    """Shared memory of a rank: bytes from start to end; who stored each last, and when each work read it last."""

    owner: int
    tensor: Tensor
    start: int
    end: int
    writer: np.ndarray  # [count], as `Turns` numbers works
    written: np.ndarray  # [count], by the writer's clock
    read: np.ndarray  # [2 n, count], by the reader's


class Side:
    """As `sd3par.side.Side`: what it is given happens at once, or as late as it may: when the other work waits for it.

    Either way nothing but `follow` and `join` orders it and the other work of its rank.
    """

    def __init__(self, emulation: Emulation, late: bool) -> None:
        self.handle = len(emulation.sides) + 1
        self.rank, self._emulation, self._turns, self._late = emulation.turns.me, emulation, emulation.turns, late
        self._waiting: list[Callable[[], object]] = []
        self.open = False  # whether it was given something since its rank waited for it
        emulation.sides[self.handle] = self

    def follow(self) -> None:
        known = self._turns.publish()
        self.do(lambda: self._turns.learn(known))

    def copy(self, x: Tensor, address: int) -> None:
        self.do(lambda: self._emulation.copy(x, address))

    def join(self) -> None:
        self.finish()
        self.open = False
        with self._turns.aside():
            known = self._turns.publish()
        self._turns.learn(known)

    def do(self, work: Callable[[], object]) -> None:
        """Does work(), now or later."""
        self._waiting.append(work)
        self.open = True
        if not self._late:
            self.finish()

    def finish(self) -> None:
        """Does what is left to do."""
        with self._turns.aside():
            while self._waiting:
                self._waiting.pop(0)()


class Emulation:
    """Peers of mp * sp ranks, in place of what only GPUs have; late: as `Side` has it."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, mp: int, sp: int, seed: int = 0, late: bool = False
    ) -> None:  # fmt: skip
        self.mp, self.sp, self.turns = mp, sp, Turns(mp * sp, seed)
        self.memories: list[Memory] = []
        self.meetings, self.copies = 0, 0
        self.sides: dict[int, Side] = {}
        self._signs: dict[int, np.ndarray] = {}  # by a flag's address: what had come before it was stored
        everyone = list(range(mp * sp))
        self._world = Group(self.turns, everyone)
        self._mp = [Group(self.turns, everyone[s * mp : (s + 1) * mp]) for s in range(sp)]
        self._sp = [Group(self.turns, everyone[m::mp]) for m in range(mp)]
        share, unshared = peer_memory.share, peer_memory.unshared
        monkeypatch.setattr("sd3par.mesh.stream", Wire)
        monkeypatch.setattr(peer_memory, "share", lambda *given: self._register(share(*given)))
        monkeypatch.setattr(peer_memory, "unshared", lambda *given: self._note(unshared(*given)))
        monkeypatch.setattr(cuda_driver, "export_memory", self._export)
        monkeypatch.setattr(cuda_driver, "import_memory", self._import)
        monkeypatch.setattr(kernels, "why_no_peers", lambda dtype: "")
        monkeypatch.setattr(peer_memory, "Side", lambda: Side(self, late))
        for name in ("meet", "tell", "hear", "linear_to", "linear_into", "attention", "adaln", "gated_sum_to",
                     "split_heads"):  # fmt: skip
            monkeypatch.setattr(kernels, name, getattr(self, f"_{name}"))
        for name in READERS:
            monkeypatch.setattr(kernels, name, self._reader(getattr(kernels, name)))

    def mesh(self, rank: int, transport: str = "peer") -> Mesh:
        """Returns the mesh as rank `rank` sees it."""
        s, m = divmod(rank, self.mp)
        return Mesh(
            sp=Axis(self.sp, s, self._sp[m]), mp=Axis(self.mp, m, self._mp[s]),
            world=Axis(self.mp * self.sp, rank, self._world), transport=transport,
        )  # fmt: skip

    def run(self, function: Callable[[Mesh], Any]) -> list[Any]:
        """Returns function(mesh) of each rank."""

        def work(rank: int) -> Any:
            with paddle.no_grad():
                found = function(self.mesh(rank))
            for side in [*self.sides.values()]:  # a copy that nobody has waited for is made all the same
                if side.rank == rank:
                    side.finish()
            return found

        return self.turns.run(work)

    # Memory of all ranks.

    def _register(self, shared: peer_memory.Shared) -> peer_memory.Shared:
        self._note(shared)
        self._world.exchange("share", paddle.zeros([0]))  # nobody stores before all have noted theirs
        return shared

    def _note(self, shared: peer_memory.Shared) -> peer_memory.Shared:
        own = shared.own
        count, start = own.shape[0], own.data_ptr()
        if own.dtype == paddle.float32:
            _numbers(start, count)[:] = np.nan
        ordered = np.full(count, -1), np.zeros(count, np.int64), np.zeros([self.turns.works, count], np.int64)
        self.memories.append(Memory(self.turns.me, own, start, start + 4 * count, *ordered))
        return shared

    def _export(self, index: int, address: int) -> tuple[bytes, int]:
        return (address - BEFORE).to_bytes(64, "little"), BEFORE

    def _import(self, index: int, handle: bytes) -> int:
        """Maps memory into the rank whose turn it is: at addresses of its own."""
        return ((self.turns.me + 1) << SPACE) + int.from_bytes(handle, "little")

    def _find(self, address: int) -> Memory | None:
        return next((one for one in self.memories if one.start <= address < one.end), None)

    def _place(self, address: int) -> tuple[Memory, int]:
        """Returns where the rank whose turn it is stores if it stores to `address`."""
        me, (space, real) = self.turns.me, divmod(address, 1 << SPACE)
        memory = self._find(real)
        assert memory is not None, f"rank {me} stores to memory that nobody shares"
        mapped = space == me + 1 and memory.owner != me
        assert mapped or (space == 0 and memory.owner == me), f"rank {me} stores to an address that is not its own"
        return memory, (real - memory.start) // 4

    def store(self, address: int, values: np.ndarray, stride: int) -> None:
        """Stores values: [rows, columns], rows `stride` numbers apart, as the rank whose turn it is."""
        memory, first = self._place(address)
        places = first + np.arange(values.shape[0])[:, None] * stride + np.arange(values.shape[1])
        assert places.max() < len(memory.writer), "a store behind the end of shared memory"
        me, work, clock = self.turns.me, self.turns.work, self.turns.clocks[self.turns.work]
        known = np.append(clock, 0)  # nobody's stores, -1, come first
        if (memory.written[places] > known[memory.writer[places]]).any():
            raise Race(f"rank {me} and another store to the same memory of rank {memory.owner}")
        late = [other for other in range(self.turns.works) if (memory.read[other][places] > clock[other]).any()]
        if late:
            reader = late[0] % self.turns.count
            raise Race(f"rank {me} stores to memory of rank {memory.owner} that rank {reader} still reads")
        memory.writer[places], memory.written[places] = work, clock[work]
        _numbers(memory.start, len(memory.writer))[places] = values

    def _reads(self, *given: Any) -> None:
        """Notes that the rank whose turn it is reads these tensors, where they lie in shared memory."""
        for x in _tensors(given):
            memory = self._find(x.data_ptr()) if 0 not in x.shape else None  # Tensor.size takes 5 us
            if memory is not None:
                self._read(memory, x)

    def _read(self, memory: Memory, x: Tensor) -> None:
        me, work, clock = self.turns.me, self.turns.work, self.turns.clocks[self.turns.work]
        assert memory.owner == me, f"rank {me} reads memory of rank {memory.owner}"
        places = np.full([], (x.data_ptr() - memory.start) // 4)
        for size, stride in zip(x.shape, x.strides, strict=True):
            places = places[..., None] + np.arange(size) * stride
        writers = memory.writer[places]
        if (memory.written[places] > np.append(clock, 0)[writers]).any():
            raise Race(f"rank {me} reads what another still stores")
        memory.read[work][places] = clock[work]

    # Kernels. Each pauses before it reads, and before each store.

    def _reader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def emulated(*given: Any, **named: Any) -> Any:
            self.turns.pause()
            self._reads(given, tuple(named.values()))
            return function(*given, **named)

        return emulated

    def _meet(self, flags: Tensor, targets: Tensor, trial: bool = False) -> None:
        """As kernels/meet.py: flags lie in the real memory of each rank."""
        self.meetings += 1
        memory, count = self._find(flags.data_ptr()), targets.shape[0]
        mine = np.frombuffer((ctypes.c_int32 * (count + 1)).from_address(memory.start), np.int32)
        turn = mine[count] = mine[count] + 1
        self._sign(targets, turn, self.turns.publish())
        self._await(memory, mine[:count], turn)

    def _tell(self, flags: Tensor, targets: Tensor, stream: int) -> None:
        """As kernels/meet.py."""
        memory, count = self._find(flags.data_ptr()), targets.shape[0]
        mine = np.frombuffer((ctypes.c_int32 * (count + 2)).from_address(memory.start), np.int32)

        def work() -> None:
            mine[count] += 1
            self._sign(targets, mine[count], self.turns.publish())

        self.sides[stream].do(work)

    def _hear(self, flags: Tensor) -> None:
        self.meetings += 1
        memory, count = self._find(flags.data_ptr()), flags.shape[0] - 2
        mine = np.frombuffer((ctypes.c_int32 * (count + 2)).from_address(memory.start), np.int32)
        turn = mine[count + 1] = mine[count + 1] + 1
        self._await(memory, mine[:count], turn)

    def _sign(self, targets: Tensor, turn: int, known: np.ndarray) -> None:
        """Stores a count to flags of all."""
        for target in targets.tolist():
            self.turns.pause()
            other, place = self._place(target)
            ctypes.c_int32.from_address(other.start + 4 * place).value = turn
            self._signs[other.start + 4 * place] = known

    def _await(self, memory: Memory, flags: np.ndarray, turn: int) -> None:
        self.turns.pause(lambda: (flags - turn >= 0).all())
        for place in range(len(flags)):
            self.turns.learn(self._signs[memory.start + 4 * place])

    def copy(self, x: Tensor, address: int) -> None:
        """Copies x: [...] to another rank. It lies in shared memory: all other may be given away before it is read."""
        self.copies += 1
        self.turns.pause()
        assert x.is_contiguous() and self._find(x.data_ptr()) is not None, "a copy of what may be gone by then"
        self._reads(x)
        self.store(address, _numbers(x.data_ptr(), x.size).copy()[None, :], 0)

    def _linear_into(self, product: Product, out: Tensor, gelu: bool = False) -> None:
        assert product.bias is not None and product.x.is_contiguous() and out.is_contiguous()
        self.turns.pause()
        self._reads(product)
        linear = linear_gelu_reference if gelu else linear_reference
        values = linear(*product).numpy().reshape([1, -1])
        assert out.size == values.size
        if self._find(out.data_ptr()) is None:
            _numbers(out.data_ptr(), out.size)[:] = values[0]
        else:
            self.store(out.data_ptr(), values, 0)

    def _linear_to(self, products: list[Product], rectangles: list[Rectangle]) -> None:
        for number, row, rows, column, columns, address, stride in rectangles:
            x, weight, bias = products[number]
            assert row + rows <= x.shape[0] and column + columns <= weight.shape[1] and columns <= stride
            if rows:
                self.turns.pause()
                self._reads(products)
                values = linear_reference(x[row : row + rows], weight, bias)[:, column : column + columns]
                self.store(address, values.numpy(), stride)

    def _attention(self, segments: list[Tensor], outs: list[Scattered] | None = None) -> list[Tensor]:
        check_segments(segments)
        targets_of(segments, outs)
        self.turns.pause()
        self._reads(segments)
        mixed = attention_reference(segments)
        if outs is None:
            return mixed
        for x, out in zip(mixed, outs, strict=True):
            self._scatter(x, out, segments)
        return []

    def _gated_sum_to(self, x: Tensor, gate: Tensor, x2: Tensor, gate2: Tensor, out: Scattered) -> None:
        self._scatter(gated_sum_reference(x, gate, x2, gate2), out, [x, x2])

    def _scatter(self, x: Tensor, out: Scattered, read: list[Tensor]) -> None:
        """Stores x: [R, T, width], computed from tensors that are being read meanwhile."""
        shards, values = out.addresses.tolist(), x.numpy()
        assert x.shape[1] <= len(shards) * out.size
        for shard, address in enumerate(shards):
            for row in range(x.shape[0]):
                part = values[row, shard * out.size : (shard + 1) * out.size]
                self.turns.pause()
                self._reads(read)
                if len(part):
                    self.store(address + 4 * row * out.row_stride, part, out.token_stride)

    def _adaln(self, streams: list[Stream], outs: Outs | None = None) -> list[tuple[Tensor, ...]]:
        adaln_targets(streams, outs)
        self.turns.pause()
        self._reads(streams)
        made = adaln_reference(streams)
        if outs is None:
            return made
        for (_, *norms), places in zip(made, outs, strict=True):
            for norm, out in zip(norms, places, strict=True):
                own = out if isinstance(out, Copies) else Copies(paddle.to_tensor([out.data_ptr()]), out.strides[0])
                self._copy(norm, own, streams)
        return [(x,) for x, *_ in made]

    def _copy(self, norm: Tensor, copies: Copies, read: list[Stream]) -> None:
        """Stores norm: [R, T, D] to each copy."""
        for address in copies.addresses.tolist():
            for row, values in enumerate(norm.numpy()):
                self.turns.pause()
                self._reads(read)
                if len(values):
                    self.store(address + 4 * row * copies.row_stride, values, values.shape[1])

    def _split_heads(self, packed: Tensor, head_dim: int, norm_q: Tensor | None, norm_k: Tensor | None) -> Tensor:
        """In place where there are norms, as on a GPU."""
        self.turns.pause()
        self._reads(packed)
        heads = split_heads_reference(packed, head_dim, norm_q, norm_k)
        if norm_q is None or self._find(packed.data_ptr()) is None:
            return heads
        for row, values in zip(packed, heads.flatten(2).numpy(), strict=True):
            self.store(row.data_ptr(), values, packed.strides[1])
        return packed.reshape(heads.shape)


def _fill(x: Tensor, values: np.ndarray) -> None:
    """Writes values: [...] into x (of an array, paddle.assign rounds whole numbers of 64 bits: 3.3.1)."""
    paddle.assign(paddle.to_tensor(values.astype(x.numpy().dtype)), x)


def _numbers(address: int, count: int) -> np.ndarray:
    """Returns what lies in memory, [count] fp32."""
    return np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)


def _tensors(given: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and tuples."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _tensors(one)

"""Too little memory on one process: found out before the others wait for it, and said by all.

A process that stops in the middle of a request leaves the others in a collective or a meeting, which nothing ends but
their own end. So each first goes through a part of the request by itself, sending nothing. What the part then takes
with the others has been had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import paddle

from sd3par.device import Device
from sd3par.errors import OutOfMemory, describe, is_out_of_memory
from sd3par.mesh import Mesh

T = TypeVar("T")
Rehearse = Callable[[str, Callable[[], object]], None]  # (what it is, what all will run), or OutOfMemory

SLACK_BYTES = 64 << 20  # less room than the last time by so much is as much room
_MOST_SHAPES = 256  # of which it is known that they had room
_ASKED = re.compile(r"Cannot allocate ([\d.]+)(\w?B) memory on (.+?), .*available memory is only ([\d.]+)(\w?B)")


class Rehearsals:
    """What a pipeline's processes go through by themselves first: requests of a shape that is new, or for which there
    is less room than the last time. Every process makes the same calls.

    Args:
        mesh: the processes.
        room: returns a number of bytes that falls when memory is taken, whoever takes it; None: nothing is rehearsed.
    """

    def __init__(self, mesh: Mesh, room: Callable[[], int] | None) -> None:
        self.mesh, self._room = mesh, room
        self._rooms: dict[Hashable, int] = {}  # by shape: how much there was

    @classmethod
    def choose(cls, device: Device, mesh: Mesh) -> Rehearsals:
        """Returns those of a pipeline on a device. One process waits for none, and on the CPU nothing is found out:
        Linux gives memory that it does not have, and kills."""
        if mesh.world.size == 1 or device.kind == "cpu":
            return cls(mesh, None)
        return cls(mesh, lambda: device.memory()[0] - int(paddle.device.memory_allocated(device.name)))

    def due(self, shape: Hashable) -> bool:
        """Returns whether this process wants to rehearse a request of a shape: all do where one does."""
        if self._room is None:
            return False
        return shape not in self._rooms or self._room() < self._rooms[shape] - SLACK_BYTES

    def run(self, shape: Hashable, due: bool, render: Callable[[Rehearse], T], give_back: Callable[[], object]) -> T:
        """Returns what `render` gives; what it gets rehearses each of its parts if that is due.

        give_back: frees what can be made again, as recordings.

        Raises:
            OutOfMemory: on all processes, where one cannot have what a part takes.
        """
        if self.mesh.world.size == 1:
            return self._by_itself(render, give_back)
        if self._room is None:
            return render(_nothing)
        known, start, tight = self._rooms.pop(shape, None), self._room(), False

        def rehearse(what: str, work: Callable[[], object]) -> None:
            nonlocal tight
            tight |= self._rehearse(what, work, give_back)

        rendered = render(rehearse if due else _nothing)
        if not tight:  # else recordings may be where the next request wants to compute
            if len(self._rooms) >= _MOST_SHAPES:
                self._rooms.clear()
            # What the request itself took is no reason to rehearse the next one: its recordings, first of all.
            self._rooms[shape] = (start if due or known is None else known) + self._room() - start
        return rendered

    def _rehearse(self, what: str, work: Callable[[], object], give_back: Callable[[], object]) -> bool:
        """Returns whether there was room only after what can be made again was given back."""
        reason = ""
        for second in (False, True):
            with self.mesh.rehearsing():
                _, reason = attempt(work)
            if not self.mesh.any(bool(reason)):
                return second
            give_back()
        raise OutOfMemory(_said(self.mesh, what, reason))

    def _by_itself(self, render: Callable[[Rehearse], T], give_back: Callable[[], object]) -> T:
        """The one process there is renders; it leaves the memory to the next request where there is too little."""
        rendered, reason = attempt(lambda: render(_nothing))
        if reason:
            give_back()
            raise OutOfMemory(_said(self.mesh, "rendering", reason))
        return cast(T, rendered)


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """Returns work() and "", or None and how memory did not suffice; no error holds on to what was made by then."""
    try:
        return work(), ""
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        return None, describe(error)


def agree(mesh: Mesh, what: str, reason: str) -> None:
    """A collective behind `attempt`: raises OutOfMemory on all processes where one has a reason to."""
    if mesh.any(bool(reason)):
        raise OutOfMemory(_said(mesh, what, reason))


def _nothing(what: str, work: Callable[[], object]) -> None:
    """Rehearses nothing."""


def _said(mesh: Mesh, what: str, reason: str) -> str:
    """Returns the error in words: which processes had too little, and what takes less; a collective."""
    lacking = []
    for rank, text in enumerate(mesh.texts(reason.rstrip("."))):
        found = _ASKED.search(text)
        if found:
            asked, unit, where, free, free_unit = found.groups()
            text = f"{float(asked):.1f} {unit} asked for on {where}, {float(free):.1f} {free_unit} free"
        lacking += [f"rank {rank}: {text}" if mesh.world.size > 1 else text] if text else []
    return (
        f"out of memory while {what}: {'; '.join(lacking)}. Smaller or fewer pictures take less, and so does each "
        "process of a larger mp_size or sp_size"
    )

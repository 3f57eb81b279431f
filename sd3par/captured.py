"""Functions of tensors as CUDA graphs: each recorded for the shapes that it is called with often, and replayed.

For the autoencoder and the text encoders, which are called once or twice a picture; `graph` does the denoising steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import paddle
from paddle import Tensor

from sd3par.device import CapturedGraph, Device, overwrite, why_no_graphs
from sd3par.mesh import Mesh
from sd3par.recordings import Recordings, given_up
from sd3par.rehearsal import attempt

T = TypeVar("T", bound="Tensor | tuple[Tensor, ...]")

MOST_GRAPHS = 16  # kept of all functions together: five for each shape, three of them for each length of text
MOST_BYTES = 8 << 30  # of all of them together; larger pictures keep the device busy without
# Calls of a shape that ask for the operators one by one. They compile, choose and warm up what the recording needs,
# and a process that makes one or two pictures is done sooner without any recording.
EAGER_CALLS = 2
_MOST_COUNTED = 256  # shapes, of which calls are counted
_NO_ROOM = 1 << 62  # bytes: what a recording takes that did not fit

Call = Callable[..., Any]  # (function, *tensors) -> what the function gives for them

log = logging.getLogger(__name__)


def directly(function: Callable[..., T], *inputs: Tensor) -> T:
    """Returns function(*inputs), as `Captured` does where nothing is recorded."""
    return function(*inputs)


def ways(captured: Captured | None) -> tuple[Call, Call]:
    """Returns by what to call functions that processes call each for itself, and those with collectives."""
    return (captured, captured.together) if captured else (directly, directly)


class _Recording:
    """A recorded call with memory of its own for its inputs."""

    def __init__(self, device: Device, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        self._inputs = held = tuple(x.clone() for x in inputs)
        # Of local names: a graph that held this object would wait for the garbage collector.
        self._graph = CapturedGraph(device, lambda: function(*held), warmups=0)
        self.bytes = self._graph.bytes  # on the process where it takes most, if several record together

    def __call__(self, *inputs: Tensor) -> Any:
        """Returns what the function gives for inputs of the recorded shapes, in memory that stays the caller's."""
        for value, into in zip(inputs, self._inputs, strict=True):
            overwrite(value, into)
        result = self._graph()
        return tuple(one.clone() for one in result) if isinstance(result, tuple) else result.clone()

    def reset(self) -> None:
        """Waits for the device and gives the memory of the recording back."""
        self._graph.reset()


class Captured:
    """Calls functions of tensors, by their recordings where there are any.

    A function may be a layer or a bound method; it takes tensors and returns one or a tuple of them, waits for nothing,
    and reads its weights from where they were when it was recorded: `clear` after giving them other memory.

    Of too many recordings, or too large ones, those that were not used for longest go.

    Args:
        device: the current device.
        must: whether a call that cannot be recorded is an error, or the operators are run one by one from then on.
        most: how many recordings are kept.
        most_bytes: how much memory they may take together.
        mesh: the processes of which all make the same calls in the same order: for functions that have collectives,
            which NCCL wants recorded by all processes or by none. So all keep and drop the same recordings, and one
            counts as many bytes as on the process where it takes most.

    `together` is what to call functions with collectives by; other functions may differ from one process to another.
    """

    def __init__(
        self, device: Device, must: bool, most: int = MOST_GRAPHS, most_bytes: int = MOST_BYTES,
        mesh: Mesh = Mesh.single(),
    ) -> None:  # fmt: skip
        self.device, self.must, self.most, self.most_bytes, self.mesh = device, must, most, most_bytes, mesh
        self.together = self
        self.off = ""  # why nothing is recorded any more
        self._recordings = Recordings(lambda recording: recording.bytes)
        self._calls: dict[Hashable, int] = {}  # without a recording

    @classmethod
    def choose(cls, engine: str, device: Device, mesh: Mesh = Mesh.single()) -> Captured | None:
        """Returns what an engine of `engine.ENGINES` has on a device, None for eager.

        On a mesh a failure to record collectives is an error: the others, which recorded, would wait for this process.
        """
        if engine == "eager" or why_no_graphs(device):
            return None
        made = cls(device, must=engine == "graph")
        if mesh.world.size > 1:
            made.together = cls(device, must=True, mesh=mesh)
        return made

    def __call__(self, function: Callable[..., T], *inputs: Tensor) -> T:
        """Returns function(*inputs) in memory that no later call writes to."""
        key = (function, *((tuple(x.shape), x.dtype) for x in inputs))
        recording = self._recordings.pop(key, None)
        if recording is None and self._is_due(key):
            recording = self._record(function, inputs)
        if recording is None:
            return function(*inputs)
        self._calls.pop(key, None)
        self._recordings.put(key, recording, self.most, self.most_bytes)
        result: T = recording(*inputs)
        return result

    def clear(self) -> None:
        """Gives all memory back."""
        self._recordings.clear()
        if self.together is not self:
            self.together.clear()

    def _is_due(self, key: Hashable) -> bool:
        """Counts a call without a recording; returns whether to make one."""
        if self.off:
            return False
        if len(self._calls) >= _MOST_COUNTED:
            self._calls.clear()
        self._calls[key] = count = self._calls.get(key, 0) + 1
        return count == EAGER_CALLS + 1  # and never again, if what was recorded then did not stay

    def _record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Recording | None:
        """Makes room first: a recording's memory is free only after its end."""
        self._recordings.make_room(self.most, self.most_bytes)
        try:
            recording, no_room = attempt(lambda: _Recording(self.device, function, inputs))
        except Exception as error:
            self.off = given_up(_name(function), error, self.must)
            return None
        most = self._largest(_NO_ROOM if recording is None else recording.bytes)
        if recording is not None:
            recording.bytes = most
            if most <= self.most_bytes:
                return recording
            recording.reset()
        log.info("%s as a CUDA graph takes too much memory: %s", _name(function), no_room or f"{most >> 20} MiB")
        return None

    def _largest(self, size: int) -> int:
        """Returns the largest of all processes' sizes."""
        if self.mesh.world.size == 1:
            return size
        return int(self.mesh.all_gather(self.mesh.world, paddle.to_tensor([size], dtype="int64")).numpy().max())


def _name(function: Callable[..., Any]) -> str:
    """Returns what a message calls a function."""
    return getattr(function, "__qualname__", type(function).__name__)

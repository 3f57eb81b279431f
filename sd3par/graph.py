"""One denoising step as a CUDA graph: recorded once for a shape, replayed at every step of every request of that shape.

Collectives are recorded with it. Each rank records when the others do, since all get the same requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import cast

import paddle
from paddle import Tensor

from sd3par.conditions import Conditions, Step
from sd3par.config import require
from sd3par.device import CapturedGraph, Device, overwrite, why_no_graphs
from sd3par.errors import OutOfMemory, is_out_of_memory
from sd3par.mesh import Mesh
from sd3par.recordings import Recordings, given_up
from sd3par.rehearsal import agree, attempt

WARM_UPS = 2  # in which kernels are compiled, libraries make their handles, and ranks connect
MOST_GRAPHS = 4  # held by a pipeline; each takes as much memory as a step does
MOST_SHARE = 0.25  # of the device's memory, of all of them together; the one in use stays, whatever it takes

log = logging.getLogger(__name__)


class StepGraph:
    """A recorded step with memory of its own for what it reads; each request of its shape is copied in.

    Args:
        device: the current device.
        step: what to record.
        tokens, conditions: of a request; what they hold is used to warm up.
        mesh: the processes that record with this one.

    `share` is the part of a device's memory that the recording takes, on the rank where it takes most: the same number
    on all, since a rank that drops another graph than the others would record where they replay.

    Raises:
        OutOfMemory: the recording does not fit on one of the processes, on all.
    """

    def __init__(self, device: Device, step: Step, tokens: Tensor, conditions: Conditions, mesh: Mesh) -> None:
        self.tokens = tokens = tokens.clone()
        self._conditions = conditions = conditions._replace(
            context=conditions.context.clone(),
            positions=conditions.positions.clone(),
            modulations=conditions.modulations[:1].clone(),
        )
        self._scale, self._delta = scale, delta = paddle.zeros([]), paddle.zeros([])

        # Of local names: a graph that held this object would wait for the garbage collector.
        def work() -> None:
            overwrite(step(tokens, conditions, scale, delta), tokens)

        for _ in range(WARM_UPS):
            work()
        self._graph = _recorded(device, work, mesh)
        mine = paddle.to_tensor([self._graph.bytes / device.total_memory()], dtype="float32")
        self.share = float(mesh.all_gather(mesh.world, mine).numpy().max())

    def begin(self, conditions: Conditions, guidance_scale: Tensor) -> None:
        """Takes over what is constant over the steps of a request; guidance_scale: [] fp32."""
        overwrite(conditions.context, self._conditions.context)
        overwrite(conditions.positions, self._conditions.positions)
        overwrite(guidance_scale, self._scale)

    def step(self, tokens: Tensor, modulations: Tensor, delta: Tensor) -> Tensor:
        """tokens: [B', ti, W], modulations: [1, R, k, D], delta: [] -> the tokens after the step, in `self.tokens`."""
        if tokens is not self.tokens:
            overwrite(tokens, self.tokens)
        overwrite(modulations, self._conditions.modulations)
        overwrite(delta, self._delta)
        self._graph()
        return self.tokens

    def reset(self) -> None:
        """Waits for the device and gives the memory of the recording back."""
        self._graph.reset()


class StepGraphs:
    """The recorded steps of a pipeline by shape; of too many or too large ones, those not used for longest go.

    Weights are read from where they were when the step was recorded: `clear` after giving them other memory.

    Args:
        device: the current device.
        must: whether a step that cannot be recorded is an error, or the operators are run one by one.
        most: how many are kept.
    """

    def __init__(self, device: Device, must: bool, most: int = MOST_GRAPHS) -> None:
        self.device, self.must, self.most = device, must, most
        self.off = ""  # why no step is recorded any more
        self._graphs = Recordings(lambda graph: graph.share)

    @classmethod
    def choose(cls, engine: str, device: Device, world: int) -> StepGraphs | None:
        """Returns what an engine of `engine.ENGINES` has on a device, None for eager.

        In a mesh a failure to record is always an error: the other ranks, which recorded, would wait for this one.

        Raises:
            ConfigError: "graph" where no graph is possible.
        """
        reason = why_no_graphs(device)
        require(engine != "graph" or not reason, "engine", engine, f"auto or eager: {reason}")
        return None if engine == "eager" or reason else cls(device, must=engine == "graph" or world > 1)

    @contextmanager
    def lend(
        self, shape: Hashable, step: Step, tokens: Tensor, conditions: Conditions, mesh: Mesh
    ) -> Iterator[StepGraph | None]:
        """Yields the graph of a shape, to no one else meanwhile (as a request that a callback makes), or None."""
        graph = self._graphs.pop(shape, None) or self._record(step, tokens, conditions, mesh)
        try:
            yield graph
        finally:
            if graph is not None:
                self._graphs.put(shape, graph, self.most, MOST_SHARE)

    def clear(self) -> None:
        """Gives all memory back."""
        self._graphs.clear()

    def _record(self, step: Step, tokens: Tensor, conditions: Conditions, mesh: Mesh) -> StepGraph | None:
        """Makes room first, a graph's memory is free only after its end, and again when it is known what it takes."""
        if self.off:
            return None
        try:
            self._graphs.make_room(self.most, MOST_SHARE)
            graph = self._fitting(step, tokens, conditions, mesh)
            self._graphs.make_room(self.most, MOST_SHARE, graph.share)
            return graph
        except OutOfMemory as error:  # for this recording: the operators have run, and a smaller one may have room
            if self.must:
                raise
            log.warning("no CUDA graph for this request, which is slow: %s", error)
            return None
        except Exception as error:
            if is_out_of_memory(error):  # for the operators, recorded or not
                raise
            self.off = given_up("the denoising step", error, self.must)
            return None

    def _fitting(self, step: Step, tokens: Tensor, conditions: Conditions, mesh: Mesh) -> StepGraph:
        """Records; where there is too little memory, again after the other graphs have given theirs back."""
        try:
            return StepGraph(self.device, step, tokens, conditions, mesh)
        except OutOfMemory:
            if not self._graphs:
                raise
        self.clear()
        return StepGraph(self.device, step, tokens, conditions, mesh)


def _recorded(device: Device, work: Callable[[], None], mesh: Mesh) -> CapturedGraph[None]:
    """Returns the recording of `work`, which each process makes by itself: nothing is sent while it is recorded."""
    graph, reason = attempt(lambda: CapturedGraph(device, work, warmups=0))
    try:
        agree(mesh, "recording a denoising step as a CUDA graph", reason)
    except OutOfMemory:
        if graph is not None:
            graph.reset()
        raise
    return cast("CapturedGraph[None]", graph)

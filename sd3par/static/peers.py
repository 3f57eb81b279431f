"""Memory that the mp ranks of an exported model store to: made by the loader, used by the operators of its programs."""

from __future__ import annotations

import paddle

from sd3par.config import require
from sd3par.errors import shorten
from sd3par.heartbeat import machine
from sd3par.kernels.static import library
from sd3par.mesh import Mesh
from sd3par.peer_memory import ALIGNED, Meeting, SharedPool
from sd3par.plan import tokens_for

_NORMS, _LAST, _PARTS, _MIXED = range(4)  # pools, as in kernels/static/src/peers.h


class PeerMemory:
    """As `PeerSums` has it, but for the layouts, which the operators make. Collective.

    Args:
        dim: D; dtype: of the model; dual: whether it has blocks that norm the image twice.

    Raises:
        ConfigError: these processes cannot store to each other's memory.
    """

    def __init__(self, mesh: Mesh, dim: int, dtype: str, dual: bool) -> None:
        self._mesh, self._axis, self._dim, self._dual = mesh, mesh.mp, dim, dual
        every = mesh.all_gather(mesh.mp, paddle.to_tensor([machine()], dtype="int64")).numpy()
        _refuse("the processes are on several machines" if mesh.any(bool((every != every[0]).any())) else "")
        try:
            self._meeting = Meeting(mesh, mesh.mp)
        except RuntimeError as error:  # on all ranks
            _refuse(shorten(str(error), 200))
        self._pools = [SharedPool(mesh, mesh.mp, dtype) for _ in range(4)]

    def prepare(self, rows: int, lengths: tuple[int, int]) -> None:
        """Sees to it that programs have room for `rows` rows of so many image and text tokens; collective.

        To be called before they run for them: what they use until the next call is where it is now.
        """
        norms = [rows * length * self._dim for length in lengths]
        sizes = [tokens_for(0, self._axis.size, length).size for length in lengths]
        mixed = [rows * size * self._dim for size in sizes]
        parts = [self._axis.size * count for count in mixed]
        meeting = (0, 0) if self._mesh.alone else tuple(one.data_ptr() for one in self._meeting.tensors)
        library.tell_peers(self._axis.rank, self._axis.size, *meeting)
        pools = {_NORMS: norms + norms[:1] * self._dual, _LAST: norms[:1], _PARTS: parts,
                 _MIXED: mixed + mixed[:1] * self._dual}  # fmt: skip
        for which, wanted in pools.items():
            room = sum(-(-count // ALIGNED) * ALIGNED for count in wanted)
            (shared,) = self._pools[which].tensors([[room]], [room])
            library.tell_pool(which, shared.addresses, room)


def _refuse(reason: str) -> None:
    require(not reason, "model", "an export whose ranks store to each other", f"one by collectives: {reason}")

"""How ranks of one model hand each other what they compute: by collectives, or by stores to each other's memory."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sd3par import peer_memory
from sd3par.attention import SequenceExchange
from sd3par.config import require
from sd3par.copied_sums import CopiedSums
from sd3par.mesh import Mesh
from sd3par.peer_exchange import PeerExchange
from sd3par.peer_sums import PeerSums
from sd3par.plan import WeightPlan
from sd3par.static.exchange import TracedExchange, TracedPeerSums, TracedSums
from sd3par.static.mesh import TracedMesh
from sd3par.sums import Sums

log = logging.getLogger(__name__)


class Routes(NamedTuple):
    """The exchange of tokens for heads over sp, and sums over mp."""

    exchange: SequenceExchange | PeerExchange | TracedExchange
    sums: Sums

    @property
    def whole_out(self) -> bool:
        """Returns whether each mp rank makes all of the product after attention, of its own tokens."""
        return self.sums.whole

    @property
    def transport(self) -> str:
        """Returns "peer" where a rank stores to another's memory, else "collective"."""
        peer = isinstance(self.exchange, PeerExchange) or isinstance(self.sums, PeerSums)
        return "peer" if peer else "collective"


def routes_for(mesh: Mesh, plan: WeightPlan, dtype: str) -> Routes:
    """Returns the ways of a model on a mesh: a collective of the whole mesh.

    Raises:
        ConfigError: `mesh.transport` is "peer" and these processes cannot.
    """
    if isinstance(mesh, TracedMesh):
        if mesh.transport != "peer":
            return Routes(TracedExchange(mesh, plan), TracedSums(mesh))
        traced = TracedPeerSums(mesh, plan)
        return Routes(TracedExchange(mesh, plan, traced.mix), traced)
    if mesh.transport == "collective" or mesh.sp.size * mesh.mp.size == 1:
        return _by_collectives(mesh, plan)
    reason = peer_memory.why_not(mesh, dtype)
    require(not reason or mesh.transport == "auto", "transport", mesh.transport, f"auto or collective: {reason}")
    if reason:
        log.info("collectives, no stores to peers: %s", reason)
        return _by_collectives(mesh, plan)
    if mesh.sp.size == 1:  # else the exchange makes the products with norms, and stores them to peers
        copied = CopiedSums(mesh, plan, dtype)
        return Routes(SequenceExchange(mesh, plan, copied.multiply, copied.mix), copied)
    sums = PeerSums(mesh, plan, dtype) if mesh.mp.size > 1 else Sums(mesh)
    return Routes(PeerExchange(mesh, plan, dtype), sums)


def _by_collectives(mesh: Mesh, plan: WeightPlan) -> Routes:
    sums = Sums(mesh)
    return Routes(SequenceExchange(mesh, plan, sums.multiply), sums)

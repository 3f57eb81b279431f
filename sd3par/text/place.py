"""Which processes run which text encoder.

T5-XXL has nine tenths of the text encoders' weights and work. It is split over all processes (heads, and the columns of
its feed forward, with two sums a layer), whatever the axes of the mesh are: start-up, memory and time all go down with
their number, and none waits while another encodes. The CLIPs, whose small layers would wait for sums longer than they
compute, run whole, each on another rank. Every different text of a request is encoded once in the world, and one sum
gives all states to all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd3par.mesh import Axis, Mesh
from sd3par.plan import clip_ranks


@dataclass(frozen=True)
class Place:
    """Where one encoder runs, as one process sees it.

    axis: the processes that split it among them. here: whether this is one of them, which hold its weights.
    gives: whether the states that all ranks get are this one's.
    """

    axis: Axis = Axis()
    here: bool = True
    gives: bool = True


def clip_places(mesh: Mesh) -> tuple[Place, Place]:
    """Returns where this mesh runs CLIP-L and CLIP-G."""
    clip_l, clip_g = clip_ranks(mesh.world.size)
    return _whole(mesh, clip_l), _whole(mesh, clip_g)


def t5_place(mesh: Mesh, heads: int) -> Place:
    """Returns where this mesh runs a T5 with so many heads: on all ranks, or on the first if some would have none."""
    if heads < mesh.world.size:
        return _whole(mesh, 0)
    return Place(mesh.world, True, mesh.world.rank == 0)


def _whole(mesh: Mesh, rank: int) -> Place:
    """Returns the place of an encoder that one rank runs."""
    return Place(Axis(), mesh.world.rank == rank, mesh.world.rank == rank)

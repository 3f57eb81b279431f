"""Tensor parallelism of a block's branches: each mp rank has a part of each, and the sum of all goes into a norm.

Where ranks get all heads' outputs of their own tokens (`PeerSums.whole`), those after attention are no parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import paddle
from paddle import Tensor

from sd3par import kernels
from sd3par.layers import Linear
from sd3par.mesh import Mesh


class Branch(NamedTuple):
    """A product that is still to be done, x: [R, t, K] by a layer: this mp rank's part of a sum, or all, [R, t, D]."""

    x: Tensor
    layer: Linear

    def product(self) -> kernels.Product:
        """Returns what is to be done."""
        return kernels.Product(self.x, self.layer.weight, self.layer.bias)

    def value(self) -> Tensor:
        """Returns the product, [R, t, D]."""
        return self.layer(self.x)

    @property
    def given(self) -> Tensor:
        """What it is computed from, [R, t, K]."""
        return self.x


class GatedBranches(NamedTuple):
    """Two of them, gated by [R, D] each and added: what the two attentions of a dual block leave."""

    first: Branch
    gate: Tensor
    second: Branch
    gate2: Tensor

    def value(self) -> Tensor:
        """Returns the sum, [R, t, D]."""
        return kernels.gated_sum(self.first.value(), self.gate, self.second.value(), self.gate2)

    def store(self, out: kernels.Scattered) -> None:
        """Stores the sum, [R, t, D], to `out`."""
        kernels.gated_sum_to(self.first.value(), self.gate, self.second.value(), self.gate2, out)

    def gated_of(self, rows: slice) -> GatedBranches:
        """Returns them with the gates of some of the R rows, those that their products are of."""
        return self._replace(gate=self.gate[rows], gate2=self.gate2[rows])

    @property
    def given(self) -> Tensor:
        """What the first is computed from, [R, t, K]; the second's is like it."""
        return self.first.x


class Sums:
    """Sums by all-reduce, both streams in one buffer; every rank norms all tokens of its sp rank.

    whole: whether a rank makes the whole product after attention, of its own tokens (`WeightPlan.whole_out`).
    """

    whole = False

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def held(self, streams: list[Tensor]) -> list[Tensor]:
        """[R, t, D] of image and text before the first block -> the tokens of them that this rank norms, here all."""
        return streams

    def norm(self, streams: list[kernels.Stream], lengths: list[int], last: bool = False) -> list[tuple[Tensor, ...]]:
        """Adds its branch to each stream and norms it: [R, held, D] -> the same, and norms of all tokens, [R, t, D].

        lengths: t of each stream. last: nothing follows that adds.
        """
        return kernels.adaln(streams)

    def multiply(self, products: list[kernels.Product], gelu: bool = False) -> list[Tensor]:
        """Products with norms, x: [R, t, K] each -> [R, t, N] each, or their GELU: this mp rank's columns."""
        return kernels.linears(products, gelu)

    def out(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the products after attention as `norm` takes them: their sums over mp."""
        return self.add(branches)

    def add(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """Returns the sum of each over mp, as `norm` takes it of the tokens that this rank holds."""
        values = self._values(branches)
        if self.mesh.mp.size == 1 or len(values) == 1:
            return [self.mesh.all_reduce(self.mesh.mp, value) for value in values]
        both = self.mesh.all_reduce(self.mesh.mp, paddle.concat(values, axis=1))
        first = values[0].shape[1]
        return [both[:, :first], both[:, first:]]  # views

    def _values(self, branches: Sequence[Branch | GatedBranches]) -> list[Tensor]:
        """The products of this mp rank, [R, t, D] each; plain ones together."""
        plain = iter(kernels.linears([branch.product() for branch in branches if isinstance(branch, Branch)]))
        return [next(plain) if isinstance(branch, Branch) else branch.value() for branch in branches]

"""What the shapes in a single file tell, where no config.json stands."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sd3par.errors import CheckpointError

NUMBER = "(0|[1-9][0-9]{0,3})"  # of a block, in a regular expression: one spelling each, and never a huge one


class Shapes:
    """Shapes of one part of a file, which complain by name about what is missing.

    Args:
        where: the file, for messages.
        shapes: name -> shape, names without the part's prefix.
    """

    def __init__(self, where: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.where, self._shapes = where, shapes

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def size(self, name: str, axis: int) -> int:
        """Returns the size of tensor `name` on `axis`.

        Raises:
            CheckpointError: no such tensor, or it has no such axis.
        """
        shape = self._shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{self.where}: {name}", "missing", "every tensor of the model")
        if axis >= len(shape):
            raise CheckpointError(f"{self.where}: {name}", f"shape {list(shape)}", f"at least {axis + 1} axes")
        return shape[axis]

    def quotient(self, name: str, axis: int, divisor: int) -> int:
        """Returns the size of tensor `name` on `axis`, divided by `divisor`.

        Raises:
            CheckpointError: it does not divide, or as `size` does.
        """
        size = self.size(name, axis)
        if divisor < 1 or size % divisor:
            raise CheckpointError(f"{self.where}: {name}", f"size {size} on axis {axis}", f"a multiple of {divisor}")
        return size // divisor

    def count(self, pattern: str) -> int:
        """Returns how many numbers stand in the one group of `pattern` over all names: 0, 1, ... without a gap.

        Raises:
            CheckpointError: none, or a number is left out.
        """
        found = sorted(self.numbers(pattern))
        if not found or found != list(range(len(found))):
            what = f"numbers {found[:8]}" if found else "none"
            raise CheckpointError(f"{self.where}: {pattern}", what, "blocks 0, 1, 2, ... without a gap")
        return len(found)

    def numbers(self, pattern: str) -> set[int]:
        """Returns the numbers that stand in the one group of `pattern`, which is matched from a name's start."""
        matches = (re.match(pattern, name) for name in self._shapes)
        return {int(match[1]) for match in matches if match}

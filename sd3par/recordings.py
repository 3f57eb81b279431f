"""What `graph` and `captured` have in common: which CUDA graphs are kept, and what becomes of an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from sd3par.errors import shorten

log = logging.getLogger(__name__)


class Recordings(dict[Hashable, Any]):
    """Recordings by key, the one used last at the end; of too many or too large ones, those not used for longest go.

    Args:
        size: returns what one takes of a device's memory, in any unit. Its `reset` gives that back.
    """

    def __init__(self, size: Callable[[Any], float]) -> None:
        super().__init__()
        self._size = size

    def put(self, key: Hashable, recording: Any, most: int, limit: float) -> None:
        """Takes a recording that was used last; another of its key goes, and those for which there is no room."""
        if key in self:
            self.pop(key).reset()
        self.make_room(most, limit, self._size(recording))
        self[key] = recording

    def make_room(self, most: int, limit: float, size: float = 0) -> None:
        """Drops what there is no room for beside one more of that size, of `most` recordings within the limit."""
        while self and (len(self) >= most or sum(map(self._size, self.values())) + size > limit):
            self._drop_oldest()

    def clear(self) -> None:
        """Gives all memory back."""
        while self:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.pop(next(iter(self))).reset()


def given_up(what: str, error: Exception, must: bool) -> str:
    """Returns why nothing is recorded any more, after an error for which `what` could not be; raises it if it must."""
    if must:
        log.error("%s could not be recorded as a CUDA graph; engine eager does without", what)
        raise error
    why = shorten(f"{type(error).__name__}: {error}", 300)
    log.warning("no CUDA graphs, which is slow: %s could not be recorded: %s", what, why)
    return why

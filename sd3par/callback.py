"""A caller's function that is called after each step: it may change the latents, and stop the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle
from paddle import Tensor

from sd3par.config import require
from sd3par.errors import Cancelled
from sd3par.mesh import Mesh

if TYPE_CHECKING:
    from sd3par.pipeline import SD3Pipeline

NAME = "callback_on_step_end"
StepCallback = Callable[["SD3Pipeline", int, float, dict[str, Tensor]], "dict[str, Tensor] | None"]


class Callback:
    """Calls the function on this rank, as `denoise.OnStep`.

    steps: how many have run.
    """

    def __init__(self, pipe: SD3Pipeline, function: StepCallback) -> None:
        self._pipe, self._function = pipe, function
        self.steps = 0

    def __call__(self, index: int, timestep: float, latents: Tensor) -> tuple[Tensor | None, bool]:
        """latents: [B, C, h, w] -> those to go on with, None for the same, and whether a rank asked to stop."""
        self.steps, mesh = index + 1, self._pipe.mesh
        with self._pipe.watchdog.alike(mesh, f"callback of step {index}"):
            changed, stop = self._called(index, timestep, latents)
            return changed, stopped(mesh, stop, changed is not None)

    def _called(self, index: int, timestep: float, latents: Tensor) -> tuple[Tensor | None, bool]:
        """The same of this rank alone."""
        stop = False
        try:
            returned = self._function(self._pipe, index, timestep, {"latents": latents})
        except Cancelled:
            returned, stop = None, True
        return _changed(returned, latents), stop or self._pipe.interrupt


def stopped(mesh: Mesh, stop: bool, changed: bool) -> bool:
    """Returns whether a rank asked to stop: all stop at the same step. A collective behind each step's callbacks.

    Raises:
        ConfigError: some have changed the latents, which are of the whole mesh, and others have not.
    """
    mine = paddle.full([1], 2.0 * changed + stop)  # neither full nor numpy holds the interpreter meanwhile
    every = mesh.all_gather(mesh.world, mine).numpy().reshape([-1])
    allowed = "the callbacks of all ranks, or of none, return latents"
    require(bool(((every >= 2) == changed).all()), NAME, "latents of some ranks only", allowed)
    return bool((every % 2 > 0).any())


def _changed(returned: Any, latents: Tensor) -> Tensor | None:
    """Returns the latents [B, C, h, w] that a callback returned, None if it returned none.

    Raises:
        ConfigError: something else than a dict, or latents that are not like `latents`.
    """
    require(returned is None or isinstance(returned, dict), NAME, type(returned).__name__, "a dict or None, returned")
    changed = (returned or {}).get("latents")
    like = changed is None or (isinstance(changed, Tensor) and changed.shape == latents.shape)
    found = f"{type(changed).__name__} {list(getattr(changed, 'shape', []))}"
    require(like, NAME, f"latents: {found}", f"a tensor of shape {list(latents.shape)}")
    return changed

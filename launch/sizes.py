"""`--dp_size auto`: the sizes of the mesh that the caller leaves to this command."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from sd3par.errors import shorten
from sd3par.launch.parser import whole

AXES = ("dp_size", "mp_size", "sp_size")
AUTO = "auto"


def size(text: str) -> int | str:
    """Returns a whole number, or "auto"."""
    try:
        return text if text == AUTO else whole(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: a whole number, or {AUTO}") from None


def with_sizes(options: Namespace, model: str, world: int | None) -> Namespace:
    """Returns the options with a number for each size: 1 where none was given, unless one is auto, which is for all.

    An exported model has a mesh, which stands for what was not given or is auto.

    Args:
        model: as `weights.open_model` takes it; read only where something is to be chosen.
        world: processes that were started; None where this command starts them.

    Raises:
        ConfigError, CheckpointError: no mesh is possible, or the model cannot be read.
    """
    given = {axis: getattr(options, axis) for axis in AXES}
    own = _exported(model)
    if own:
        chosen = [size if each in (None, AUTO) else each for each, size in zip(given.values(), own, strict=True)]
    elif AUTO in given.values():
        chosen = _chosen(options, model, world, [None if each == AUTO else each for each in given.values()])
    else:
        chosen = [1 if each is None else each for each in given.values()]
    return Namespace(**{**vars(options), **dict(zip(AXES, chosen, strict=True))})


def _exported(model: str) -> list[int]:
    """Returns dp, mp and sp of an exported model; nothing of another."""
    from sd3par.weights.manifest import Manifest, is_export  # without Paddle

    if not is_export(model):
        return []
    parallel = Manifest.read(Path(os.path.expanduser(model))).parallel
    return [parallel.dp, parallel.mp, parallel.sp]


def _chosen(options: Namespace, model: str, world: int | None, given: list[int | None]) -> list[int]:
    """Returns dp, mp and sp for the devices that there are."""
    from sd3par import device, weights
    from sd3par.auto import Sizes, auto_mesh, needs
    from sd3par.config import ModelConfig, ParallelConfig, parse_config

    wanted, target = Sizes(*given), device.choose(options.dtype, options.device)
    dp, mp, sp = (1 if each is None else each for each in given)
    ParallelConfig(dp, mp, sp)  # refuses what is out of range
    component = weights.open_model(model, text_encoders=False).transformer
    config = parse_config(ModelConfig, component.config, component.where)
    exact, cards = True, world
    if cards is None:
        exact = options.devices is not None
        # Processes on one CPU wait for each other's cores: there nothing is added to what the caller wants.
        free = wanted.cards if target.kind == "cpu" else max(device.count(target.kind), wanted.cards)
        cards = len(options.devices) if exact else free
    guidance = options.guidance_scale > 1.0
    mesh = auto_mesh(cards, options.num_images_per_prompt, guidance, *needs(config, target), wanted=wanted, exact=exact)
    return [mesh.dp, mesh.mp, mesh.sp]

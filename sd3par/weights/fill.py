"""From a checkpoint into a model: every tensor used exactly once or ignored by name, each rank reading its slices."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import paddle
from paddle import Tensor, nn

from sd3par.errors import CheckpointError
from sd3par.layers import Linear
from sd3par.plan import Source, Split, same_name


class Checkpoint(Protocol):
    """The tensors of one component under diffusers' (transformers') names, in torch's layout."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor; reads headers only."""
        ...

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Tensor:
        """Returns tensor `name`, or its part `index`, in the file's dtype; reads only these bytes.

        On the CPU, or on the current device where it was made there.

        Raises:
            CheckpointError: no such tensor, or values that are not finite.
        """
        ...


@dataclass(frozen=True)
class Component:
    """One part of a model: its config.json as read, where that stands, and its tensors."""

    config: Mapping[str, Any]
    where: str
    checkpoint: Checkpoint


def fill(
    model: nn.Layer,
    checkpoint: Checkpoint,
    source: Callable[[str], Source] = same_name,
    ignored: Iterable[str] = (),
    part: tuple[int, int] = (0, 1),
) -> None:
    """Fills every parameter of `model` from `checkpoint`.

    Args:
        source: parameter name -> checkpoint keys and how they are split.
        ignored: glob patterns of checkpoint tensors that may stand unused.
        part: (mp rank, mp size).

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite.
    """
    shapes = checkpoint.shapes()
    wanted = {name: source(name) for name, _ in model.named_parameters()}
    _check_keys(checkpoint.where, shapes, [key for one in wanted.values() for key in one.keys], tuple(ignored))
    for name, parameter, transposed in _parameters(model):
        _check_shape(checkpoint.where, shapes, wanted[name], parameter, transposed, part)
    # The largest first: what their copies leave free takes all that follow, and the memory of the process stays whole.
    for name, parameter, transposed in sorted(_parameters(model), key=lambda one: -math.prod(one[1].shape)):
        parameter.set_value(_value(checkpoint, shapes, wanted[name], parameter, transposed, part))


def _parameters(model: nn.Layer) -> Iterator[tuple[str, Tensor, bool]]:
    """Yields (name, parameter, whether it is stored transposed to the checkpoint's layout)."""
    for path, layer in model.named_sublayers(include_self=True):
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}".lstrip("."), parameter, isinstance(layer, Linear) and name == "weight"


def _check_keys(where: str, shapes: Mapping[str, Any], used: list[str], ignored: tuple[str, ...]) -> None:
    missing = [key for key in used if key not in shapes]
    if missing:
        raise CheckpointError(f"{where}: {missing[0]}", _count("missing", missing), "every tensor of the model")
    extra = sorted(set(shapes) - set(used))
    extra = [key for key in extra if not any(fnmatch.fnmatchcase(key, pattern) for pattern in ignored)]
    if extra:
        raise CheckpointError(f"{where}: {extra[0]}", _count("not a tensor of the model", extra), "no tensor besides")


def _count(what: str, names: list[str]) -> str:
    return what if len(names) == 1 else f"{what} (and {len(names) - 1} more)"


def _check_shape(
    where: str, shapes: Mapping[str, tuple[int, ...]], source: Source, parameter: Tensor, transposed: bool,
    part: tuple[int, int],
) -> None:  # fmt: skip
    """Checks the whole shape in the file against this rank's parameter."""
    want = list(reversed(parameter.shape)) if transposed else list(parameter.shape)
    want[0] = want[0] * (part[1] if source.split == "column" else 1) // len(source.keys)
    if source.split == "row":
        want[1] *= part[1]
    for key in source.keys:
        if list(shapes[key]) != want:
            raise CheckpointError(f"{where}: {key}", f"shape {list(shapes[key])}", f"shape {want}")


def _index(split: Split, shape: tuple[int, ...], part: tuple[int, int]) -> tuple[slice, ...]:
    """Returns this rank's part of a tensor of `shape` in torch's layout (outputs first)."""
    if split not in ("column", "row") or part[1] == 1:
        return ()
    axis = 0 if split == "column" else 1
    size = shape[axis] // part[1]
    return (slice(None),) * axis + (slice(part[0] * size, (part[0] + 1) * size),)


def _value(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], source: Source, parameter: Tensor, transposed: bool,
    part: tuple[int, int],
) -> Tensor:  # fmt: skip
    if source.split == "row_bias" and part[0] != 0:
        return paddle.zeros(parameter.shape, dtype=parameter.dtype)
    pieces = [_on_device(checkpoint.read(key, _index(source.split, shapes[key], part))) for key in source.keys]
    value = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=0)
    value = value.astype(parameter.dtype)
    return value.t().contiguous() if transposed else value


def _on_device(x: Tensor) -> Tensor:
    """Returns `x: [...]` on the current device, where joining, casting and transposing take no time worth naming."""
    place = paddle.framework._current_expected_place_()
    return x._copy_to(place, True) if x.place.is_cpu_place() and not place.is_cpu_place() else x

"""From a checkpoint into a model: every tensor used exactly once or ignored by name, each rank reading its slices."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import paddle
from paddle import Tensor, nn

from sd3par.device import on_device
from sd3par.errors import CheckpointError
from sd3par.plan import Share, Source, same_name, whole
from sd3par.weights.ahead import Ahead, beside_device
from sd3par.weights.file_part import Index

Pending = Callable[[], Tensor]


class Checkpoint(Protocol):
    """The tensors of one component under diffusers' (transformers') names, in torch's layout."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor; reads headers only."""
        ...

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what reads tensor `name`, or its part `index`, in the file's dtype; reads only these bytes.

        What it returns is to be called once, and raises CheckpointError for values that are not finite. The tensor is
        on the CPU, or on the current device where it was made there or read ahead.

        Args:
            ahead: reads it from now on; without, it is read when it is called for.

        Raises:
            CheckpointError: no such tensor.
        """
        ...

    def read(self, name: str, index: Index = ()) -> Tensor:
        """Returns tensor `name`, or its part `index`, at once.

        Raises:
            CheckpointError: no such tensor, or values that are not finite.
        """
        return self.begin(name, index)()


@dataclass(frozen=True)
class Component:
    """One part of a model: its config.json as read, where that stands, and its tensors."""

    config: Mapping[str, Any]
    where: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class _Target:
    """A parameter to fill, and which part of the checkpoint's it is: shares of its axes in torch's layout."""

    parameter: Tensor
    keys: tuple[str, ...]
    axes: tuple[Share, ...]
    factors: tuple[float, ...] = ()  # what each key's tensor is multiplied by
    transposed: bool = False  # stored transposed to torch's layout
    absent: bool = False  # a bias that another rank adds

    @property
    def shape(self) -> list[int]:
        """The shape of each key's tensor in the checkpoint."""
        first, *rest = (axis.total for axis in self.axes)
        return [first // len(self.keys), *rest]

    def parts(self) -> Iterator[tuple[int, Index]]:
        """Yields (number of a key, part of its tensor), to be joined on the first axis; nothing of what is absent."""
        if self.absent:
            return
        first, *rest = self.axes
        tail = [axis.pieces[0] for axis in rest]  # only outputs come in several pieces
        size = self.shape[0]
        for piece in first.pieces:
            for number in range(piece.start // size, -(-piece.stop // size)):
                held = range(max(piece.start - number * size, 0), min(piece.stop - number * size, size))
                yield number, _index(self.shape, (held, *tail))


def fill(
    model: nn.Layer,
    checkpoint: Checkpoint,
    source: Callable[[str], Source] = same_name,
    ignored: Iterable[str] = (),
) -> None:
    """Fills every parameter of `model` from `checkpoint`; of a linear, what its shares say.

    Args:
        source: parameter name -> checkpoint keys.
        ignored: glob patterns of checkpoint tensors that may stand unused.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite.
    """
    shapes, targets = checkpoint.shapes(), list(_targets(model, source))
    _check_keys(checkpoint.where, shapes, [key for target in targets for key in target.keys], tuple(ignored))
    for target in targets:
        _check_shape(checkpoint.where, shapes, target)
    # The largest first: what their copies leave free takes all that follow, and the memory of the process stays whole.
    targets.sort(key=lambda one: -math.prod(one.parameter.shape))
    with beside_device() as ahead:
        begun = [[_begun(target, *part, checkpoint, ahead) for part in target.parts()] for target in targets]
        for target, pieces in zip(targets, begun, strict=True):
            target.parameter.set_value(_value(target, pieces))


def _targets(model: nn.Layer, source: Callable[[str], Source]) -> Iterator[_Target]:
    from sd3par.layers import Linear  # and with it all kernels, which an exported model does without

    for path, layer in model.named_sublayers(include_self=True):
        for key, parameter in layer._parameters.items():
            if parameter is None:
                continue
            keys = source(f"{path}.{key}".lstrip(".")).keys
            if not isinstance(layer, Linear):
                yield _Target(parameter, keys, tuple(map(whole, parameter.shape)))
            elif key == "weight":
                yield _Target(parameter, keys, (layer.outputs, layer.inputs), layer.factors, transposed=True)
            else:
                yield _Target(parameter, keys, (layer.outputs,), layer.factors, absent=not layer.inputs.first)


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


def _check_shape(where: str, shapes: Mapping[str, tuple[int, ...]], target: _Target) -> None:
    """Checks the whole shapes in the file."""
    for key in target.keys:
        if list(shapes[key]) != target.shape:
            raise CheckpointError(f"{where}: {key}", f"shape {list(shapes[key])}", f"shape {target.shape}")


def _index(shape: list[int], held: tuple[range, ...]) -> Index:
    """Returns the slices that read these runs of a tensor of `shape`; none where that is all of it."""
    if list(map(len, held)) == shape:
        return ()
    return tuple(slice(run.start, run.stop) for run in held)


def _begun(target: _Target, number: int, index: Index, checkpoint: Checkpoint, ahead: Ahead | None) -> Pending:
    """Returns what reads a part of one key's tensor, to the device, and multiplies it by the key's factor."""
    pending = checkpoint.begin(target.keys[number], index, ahead)
    factor = target.factors[number] if target.factors else 1.0
    if factor == 1.0:
        return lambda: on_device(pending())
    return lambda: on_device(pending()).astype("float32") * factor  # rounded once, to the parameter's dtype


def _value(target: _Target, begun: list[Pending]) -> Tensor:
    parameter = target.parameter
    if target.absent:
        return paddle.zeros(parameter.shape, dtype=parameter.dtype)
    # On the device joining, casting and transposing take no time worth naming.
    pieces = [piece().astype(parameter.dtype) for piece in begun]
    value = pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=0)
    return value.t().contiguous() if target.transposed else value

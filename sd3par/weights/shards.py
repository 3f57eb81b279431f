"""A checkpoint in several files, which an index lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from sd3par.errors import CheckpointError, shorten
from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index
from sd3par.weights.fill import Checkpoint, Pending
from sd3par.weights.json_file import read_json
from sd3par.weights.safetensors_file import SafetensorsFile


class ShardedCheckpoint(Checkpoint):
    """A checkpoint (`weights.Checkpoint`) whose tensors are spread over files.

    Args:
        index: the `*.safetensors.index.json`; its shards stand beside it.

    Raises:
        CheckpointError: the index is malformed, names a file elsewhere, or disagrees with what the shards hold.
    """

    def __init__(self, index: Path) -> None:
        self.where = str(index)
        self._shard_of = _weight_map(index)
        self.files = {name: SafetensorsFile(index.parent / name) for name in sorted(set(self._shard_of.values()))}
        for name, file in self.files.items():
            _check_shard(file, {key for key, shard in self._shard_of.items() if shard == name}, self.where)
        self._shapes = {key: self.files[shard].shapes()[key] for key, shard in self._shard_of.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Returns name -> shape of every tensor of every shard."""
        return self._shapes

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Returns what reads tensor `name`, or its part `index`, as `SafetensorsFile.begin` does.

        Raises:
            CheckpointError: no such tensor, or a dtype that no weight has.
        """
        if name not in self._shard_of:
            raise CheckpointError(f"{self.where}: {name}", "missing", "a tensor of the index")
        return self.files[self._shard_of[name]].begin(name, index, ahead)


def _weight_map(index: Path) -> dict[str, str]:
    """Returns tensor -> shard. No name may lead out of the folder; a file may be a link: the Hub's cache has them."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map", "missing or empty", "an object {tensor: file name}")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name):
            raise CheckpointError(f"{index}: {key}", f"shard {shorten(name)}", "a .safetensors file of this folder")
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether `name` is a file name without any path, on every system."""
    plain = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return plain and name.endswith(".safetensors") and name.isprintable()


def _check_shard(file: SafetensorsFile, listed: set[str], index: str) -> None:
    held = set(file.shapes())
    for key in sorted(listed - held):
        raise CheckpointError(f"{file.where}: {key}", "missing", f"every tensor that {index} lists for it")
    for key in sorted(held - listed):
        raise CheckpointError(f"{file.where}: {key}", "not in the index", f"only tensors that {index} lists for it")

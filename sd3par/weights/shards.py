"""A checkpoint in several files, which an index lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sd3par.errors import CheckpointError
from sd3par.weights.ahead import Ahead
from sd3par.weights.choice import weight_map
from sd3par.weights.file_part import Index
from sd3par.weights.fill import Checkpoint, Pending
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
        self._shard_of = weight_map(index)
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


def _check_shard(file: SafetensorsFile, listed: set[str], index: str) -> None:
    held = set(file.shapes())
    for key in sorted(listed - held):
        raise CheckpointError(f"{file.where}: {key}", "missing", f"every tensor that {index} lists for it")
    for key in sorted(held - listed):
        raise CheckpointError(f"{file.where}: {key}", "not in the index", f"only tensors that {index} lists for it")

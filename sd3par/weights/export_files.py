"""An exported folder, opened: what it is for. Its programs are loaded by `sd3par.static`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import paddle

from sd3par.errors import CheckpointError
from sd3par.weights.ahead import Ahead
from sd3par.weights.file_part import Index
from sd3par.weights.fill import Checkpoint, Component, Pending
from sd3par.weights.manifest import EXPORT, MANIFEST, Manifest

if TYPE_CHECKING:
    from sd3par.static.reader import Reader

log = logging.getLogger(__name__)


class NoTensors(Checkpoint):
    """Stands in for a checkpoint: an export has parameters for its programs alone."""

    def __init__(self, where: str) -> None:
        self.where = where

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns that there are none."""
        return {}

    def begin(self, name: str, index: Index = (), ahead: Ahead | None = None) -> Pending:
        """Raises CheckpointError."""
        raise CheckpointError(f"{self.where}: {name}", "no such tensor", "a checkpoint: this is an export")


@dataclass(frozen=True)
class Export:
    """An exported folder whose files are all there. reader: what reads it already, for one model."""

    folder: Path
    manifest: Manifest
    reader: Reader | None = None

    @classmethod
    def open(cls, path: str | Path) -> Export:
        """Opens a folder; of the files only the manifest is read.

        Raises:
            CheckpointError: no manifest, another format, or a file is missing or of another size.
        """
        folder = Path(os.path.expanduser(path))
        manifest = Manifest.read(folder)
        manifest.check_present(folder)
        if manifest.paddle != paddle.__version__:
            log.warning("%s was exported with Paddle %s, this is %s", folder, manifest.paddle, paddle.__version__)
        return cls(folder, manifest)

    def read_by(self, reader: Reader | None) -> Export:
        """Returns it with a reader."""
        return replace(self, reader=reader)

    def component(self, name: str) -> Component:
        """Returns a part of the model: its config.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self.manifest.configs:
            raise CheckpointError(self.folder / MANIFEST, f"no config of the {name}", EXPORT)
        where = f"{self.folder} ({name})"
        return Component(self.manifest.configs[name], where, NoTensors(where))

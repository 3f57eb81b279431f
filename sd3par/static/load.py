"""The programs of one rank of an exported model."""

from __future__ import annotations

from sd3par.config import ModelConfig, parse_config
from sd3par.device import Device
from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.static import operators
from sd3par.static.peers import PeerMemory
from sd3par.static.program import Program
from sd3par.static.text import load_static_text
from sd3par.static.transformer import StaticTransformer
from sd3par.static.vae import StaticVAE
from sd3par.text import TextEncoders
from sd3par.vae.config import VAEConfig
from sd3par.weights import ModelFiles
from sd3par.weights.export_files import Export
from sd3par.weights.manifest import EXPORT, Digests

TRANSFORMER, VAE = ("prepare", "step"), ("decode", "encode")
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Programs:
    """The programs of one rank; loads them one after the other, while the digests of their parameters are compared.

    Args:
        export: for this mesh and device, which is the current one.
        rank: of this process.
        names: of programs that are wanted.

    Raises:
        CheckpointError: a program or an operator is not what was exported.
    """

    def __init__(self, export: Export, rank: int, names: tuple[str, ...]) -> None:
        self._export, manifest = export, export.manifest
        self._mine: dict[str, list[str] | None] = {
            name: manifest.programs[name][rank] for name in names if name in manifest.programs
        }
        pairs = [pair for pair in self._mine.values() if pair is not None]
        programs, parameters = ({pair[place] for pair in pairs} for place in (0, 1))
        Digests(export.folder, manifest, {*programs, *manifest.operators}).finish()  # before any of their code runs
        self._digests = Digests(export.folder, manifest, parameters)
        operators.load(export.folder, manifest.operators)

    def load(self, name: str) -> Program | None:
        """Returns a program, None where another rank runs it."""
        pair, folder = self._mine[name], self._export.folder
        return None if pair is None else Program(folder / pair[0], folder / pair[1])

    def must(self, name: str) -> Program:
        """Returns a program that every rank has.

        Raises:
            CheckpointError: the export has none.
        """
        found = self.load(name) if name in self._mine else None
        if found is None:
            raise CheckpointError(self._export.folder, f"no program {name} for this rank", EXPORT)
        return found

    def finish(self) -> None:
        """Raises CheckpointError where a file is not what was exported."""
        self._digests.finish()


def load_parts(
    files: ModelFiles, export: Export, device: Device, mesh: Mesh
) -> tuple[StaticTransformer, StaticVAE, TextEncoders | None]:
    """Returns transformer, autoencoder and text encoders of an export, each rank its own.

    Args:
        files: of the export, as `weights.open_model` gives them; a text encoder that is None there is not loaded.
        export: for this mesh and device (`Export.check`).

    Raises:
        CheckpointError: a file is not what was exported.
    """
    texts = [name for name in TEXT if getattr(files, name) is not None]
    programs = Programs(export, mesh.world.rank, (*TRANSFORMER, *VAE, *texts))
    try:
        loaded = _loaded(files, programs, device.dtype, mesh, export.manifest.transport)
    except Exception:
        programs.finish()  # which says why, if the reason is a changed file
        raise
    programs.finish()
    return loaded


def _loaded(
    files: ModelFiles, programs: Programs, dtype: str, mesh: Mesh, transport: str
) -> tuple[StaticTransformer, StaticVAE, TextEncoders | None]:
    config = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    vae = VAEConfig.parse(files.vae.config, files.vae.where)
    peers = PeerMemory(mesh, config.dim, dtype, bool(config.dual_attention_layers)) if transport == "peer" else None
    prepare, step = map(programs.must, TRANSFORMER)
    transformer = StaticTransformer(config, mesh, dtype, prepare, step, peers)
    text = load_static_text(files, programs.load, dtype, mesh)
    return transformer, StaticVAE(vae, mesh, *map(programs.must, VAE)), text

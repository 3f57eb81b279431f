"""The programs of one rank of an exported model."""

from __future__ import annotations

from contextlib import closing

from sd3par.config import ModelConfig, parse_config
from sd3par.device import Device
from sd3par.errors import CheckpointError
from sd3par.mesh import Mesh
from sd3par.static.parameters import Parameters
from sd3par.static.program import Program
from sd3par.static.reader import Reader, parameters_of
from sd3par.static.text import load_static_text
from sd3par.static.transformer import StaticTransformer
from sd3par.static.vae import StaticVAE
from sd3par.text import TextEncoders
from sd3par.vae.config import VAEConfig
from sd3par.weights import ModelFiles
from sd3par.weights.export_files import Export
from sd3par.weights.manifest import EXPORT, check

TRANSFORMER, VAE = ("prepare", "step"), ("decode", "encode")
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Programs that run once before their parameters are there, and with how many rows and tokens: on the CPU with none,
# which computes nothing; on a GPU, which loads its kernels so, with some.
_EARLY: dict[str, tuple[tuple[str, ...], int]] = {
    "cpu": (TRANSFORMER, 0),
    "cuda": ((*TRANSFORMER, *TEXT, "decode"), 2),
}


class Programs:
    """The programs of one rank; made ready to run while other threads read, compare and copy their parameters.

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
        self._loaded: dict[str, tuple[Program, str]] = {}  # with its file of parameters
        reader = export.reader
        if reader is None or reader.manifest != manifest:
            reader = Reader(export.folder, manifest, parameters_of(manifest, rank, names))
        self._reader = reader
        programs = {pair[0] for pair in self._mine.values() if pair is not None}
        try:
            check({*programs, *manifest.operators}, export.folder, manifest)  # before any of their code runs
            if manifest.operators:
                from sd3par.static import operators  # and with it all kernels, which there are none of on the CPU

                operators.load(export.folder, manifest.operators)
        except BaseException:
            self.close()
            raise

    @property
    def alone(self) -> bool:
        """Returns whether they meet no other rank's."""
        return self._export.manifest.parallel.world == 1

    def load(self, name: str) -> Program | None:
        """Returns a program, which `fill` completes; None where another rank runs it."""
        pair = self._mine[name]
        if pair is None:
            return None
        program = Program(self._export.folder / pair[0])
        self._loaded[name] = program, pair[1]
        return program

    def must(self, name: str) -> Program:
        """Returns a program that every rank has.

        Raises:
            CheckpointError: the export has none.
        """
        found = self.load(name) if name in self._mine else None
        if found is None:
            raise CheckpointError(self._export.folder, f"no program {name} for this rank", EXPORT)
        return found

    def fill(self) -> None:
        """Gives all loaded programs their parameters, and makes them ready to run while those are read and copied.

        Not sooner: while Paddle reads a program, all threads make values of programs, and no tensors.

        Raises:
            CheckpointError: a file is not what was exported.
        """
        with closing(Parameters(self._reader, [file for _, file in self._loaded.values()])) as parameters:
            self._get_ready()
            for program, file in self._loaded.values():
                program.fill(parameters.take(file))

    def _get_ready(self) -> None:
        """Runs those of `_EARLY` that are loaded, unless other ranks would have to as well."""
        names, length = _EARLY[self._export.manifest.target]
        for name, (program, _) in self._loaded.items() if self.alone else ():
            if name in names:
                program.get_ready(length)

    def close(self) -> None:
        """Ends what still reads."""
        self._reader.close()


def load_parts(
    files: ModelFiles, export: Export, device: Device, mesh: Mesh
) -> tuple[StaticTransformer, StaticVAE, TextEncoders | None]:
    """Returns transformer, autoencoder and text encoders of an export, each rank its own.

    Args:
        files: of the export, as `weights.open_model` gives them; a text encoder that is None there is not loaded.
        export: for this mesh and device (`engine.choose_device` and `choose_mesh` said so).

    Raises:
        CheckpointError: a file is not what was exported.
    """
    texts = [name for name in TEXT if getattr(files, name) is not None]
    programs = Programs(export, mesh.world.rank, (*TRANSFORMER, *texts, *VAE))
    with closing(programs):
        loaded = _loaded(files, programs, device.dtype, mesh, export.manifest.transport)
        programs.fill()
    return loaded


def _loaded(
    files: ModelFiles, programs: Programs, dtype: str, mesh: Mesh, transport: str
) -> tuple[StaticTransformer, StaticVAE, TextEncoders | None]:
    config = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    vae = VAEConfig.parse(files.vae.config, files.vae.where)
    peers = None
    if transport == "peer":
        from sd3par.static.peers import PeerMemory

        peers = PeerMemory(mesh, config.dim, dtype, bool(config.dual_attention_layers))
    prepare, step = map(programs.must, TRANSFORMER)
    transformer = StaticTransformer(config, mesh, dtype, prepare, step, peers)
    text = load_static_text(files, programs.load, dtype, mesh)
    return transformer, StaticVAE(vae, mesh, *map(programs.must, VAE)), text

"""From a checkpoint to a folder of programs: one process writes those of every rank, one role after the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import paddle
from paddle import nn

from sd3par import __version__
from sd3par.config import ModelConfig, ParallelConfig, parse_config, require
from sd3par.errors import ConfigError
from sd3par.mmdit import MMDiT
from sd3par.plan import axis_ranks, clip_ranks, ring
from sd3par.static import operators
from sd3par.static.folder import appearing
from sd3par.static.mesh import TracedMesh
from sd3par.static.parts import ClipText, Decode, Encode, Part, Prepare, Step, T5Text
from sd3par.static.write import PARAMETERS, PROGRAM, renumbered, write
from sd3par.text.clip import CLIPTextEncoder
from sd3par.text.t5 import T5Encoder
from sd3par.text.tokenize import CLIPTokenizer
from sd3par.vae import VAE
from sd3par.weights import Component, ModelFiles
from sd3par.weights.manifest import FORMAT, Limits, Manifest, described, fingerprint

M = TypeVar("M", bound=nn.Layer)
Say = Callable[[str], None]
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True)
class Target:
    """What an export is for.

    kind: "cpu" or "cuda". architectures: of GPUs, 90 for sm_90.
    """

    parallel: ParallelConfig
    dtype: str
    kind: str
    architectures: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        possible = ("float32",) if self.kind == "cpu" else ("float32", "bfloat16", "float16")
        require(self.dtype in possible, "dtype", self.dtype, f"{', '.join(possible)} for {self.kind}")
        if self.parallel.transport == "peer":
            hopper = self.kind == "cuda" and self.dtype != "float32" and set(self.architectures) == {90}
            fits = hopper and self.parallel.mp > 1 and self.parallel.sp == 1
            require(fits, "transport", "peer", "collective; peer for mp alone, in half precision, with --arch 90 alone")

    def tracing(self) -> AbstractContextManager[None]:
        """Returns what to trace within."""
        return operators.tracing(self.kind, self.dtype, self.architectures)

    def mesh(self, rank: int) -> TracedMesh:
        """Returns the mesh of a rank."""
        return TracedMesh.of(self.parallel, rank, self.kind == "cpu")


def export(
    files: ModelFiles, folder: str | Path, target: Target, limits: Limits, say: Say = lambda text: None,
    place: str = "cpu",
) -> Manifest:  # fmt: skip
    """Writes the programs and parameters of all ranks; returns what the folder says of itself.

    The folder appears when all of it is there; what an export to it that was killed left is removed. Nothing runs but
    the reading of weights.

    Args:
        files: of `weights.open_model`.
        folder: to be made.
        say: told what is done next.
        place: the device that weights are read on, where joining and transposing them takes time.

    Raises:
        ConfigError: the folder exists, or the model cannot be split or traced so.
        CheckpointError: the weights do not fit, or a program lost a collective.
    """
    out = Path(os.path.expanduser(folder))
    require(not os.path.lexists(out), "out", str(folder), "a folder that does not exist yet")
    reason = operators.why_not_traceable(target.kind, target.dtype)
    require(not reason, "dtype", target.dtype, f"float32 with this Paddle; {reason}")
    parse_config(ModelConfig, files.transformer.config, files.transformer.where).check_mesh(target.parallel)
    with appearing(out) as temporary, _on_the_cpu(), target.tracing():
        work = _Export(files, temporary, target, say, place)
        work.transformer()
        work.vae()
        if files.text_encoder is not None:
            work.text()
        return work.manifest(limits)


@dataclass
class _Export:
    files: ModelFiles
    folder: Path
    target: Target
    say: Say
    place: str
    programs: dict[str, list[list[str] | None]] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)

    @property
    def world(self) -> int:
        return self.target.parallel.world

    def transformer(self) -> None:
        """Those of each rank; ranks that differ in dp alone have the same parameters."""
        roles = self.target.parallel.mp * self.target.parallel.sp
        for rank in range(self.world):
            if rank < roles or self.target.kind == "cpu":
                self.say(f"transformer, {rank + 1} of {self.world} ranks")
                self._trace_transformer(rank, rank % roles)
            else:
                for name in ("prepare", "step"):
                    self._copy(name, rank % roles, rank)
        self.configs["transformer"] = dict(self.files.transformer.config)

    def _trace_transformer(self, rank: int, role: int) -> None:
        """Writes the programs of a rank, and the parameters of its role if it is the first one that has it."""
        mesh = self.target.mesh(rank)
        with paddle.utils.unique_name.guard():
            model = self._read(MMDiT.load, self.files.transformer, self.target.dtype, mesh)
            for name, part in (("prepare", Prepare(model)), ("step", Step(model))):
                self._write(part, name, rank, mesh)
                if rank != role:
                    (self.folder / f"{name}-{rank}{PARAMETERS}").unlink()
                    self.programs[name][rank] = [f"{name}-{rank}{PROGRAM}", f"{name}-{role}{PARAMETERS}"]

    def vae(self) -> None:
        """Of the autoencoder, the same for all ranks."""
        self.say("autoencoder")
        mesh = self.target.mesh(0)
        with paddle.utils.unique_name.guard():
            vae = self._read(VAE.load, self.files.vae, self.target.dtype)
            self._write(Decode(vae), "decode", None, mesh)
            self._write(Encode(vae), "encode", None, mesh)
        self.configs["vae"] = dict(self.files.vae.config)

    def text(self) -> None:
        """Of the text encoders: each CLIP on its rank, T5 on all ranks that split it."""
        for name, rank in zip(("text_encoder", "text_encoder_2"), clip_ranks(self.world), strict=True):
            self.say(name)
            component = _present(getattr(self.files, name), name)
            with paddle.utils.unique_name.guard():
                encoder = self._read(CLIPTextEncoder.load, component, self.target.dtype)
                self._write(ClipText(encoder, self._clip_length()), name, None, self.target.mesh(rank))
            only = self.programs[name][rank]
            self.programs[name] = [only if one == rank else None for one in range(self.world)]
            self.configs[name] = dict(component.config)
        if self.files.text_encoder_3 is not None:
            self._t5(self.files.text_encoder_3)
        for name in TOKENIZERS:
            if getattr(self.files, name) is not None:
                _copy_tokenizer(getattr(self.files, name), self.folder / name)

    def _t5(self, component: Component) -> None:
        for rank in range(self.world):
            self.say(f"text_encoder_3, {rank + 1} of {self.world} ranks")
            mesh = self.target.mesh(rank)
            with paddle.utils.unique_name.guard():
                encoder = self._read(T5Encoder.load, component, self.target.dtype, mesh)
                if encoder.place.here:
                    self._write(T5Text(encoder), "text_encoder_3", rank, mesh)
        self.configs["text_encoder_3"] = dict(component.config)

    def _read(self, load: Callable[..., M], *arguments: Any) -> M:
        """Returns load(*arguments), a layer: its weights are read on `place`, then lie on the CPU, to be traced."""
        paddle.set_device(self.place)
        try:
            model = load(*arguments)
        finally:
            paddle.set_device("cpu")
        if self.place != "cpu":
            model.to(device="cpu")
        return model

    def _clip_length(self) -> int:
        """Returns how many tokens both CLIPs read of a prompt, as `TextEncoders.clip_length` does."""
        configs = (_present(getattr(self.files, name), name).config for name in ("text_encoder", "text_encoder_2"))
        assert self.files.tokenizer is not None
        longest = CLIPTokenizer(self.files.tokenizer).max_length
        return min(longest, *(config.get("max_position_embeddings", longest) for config in configs))

    def _write(self, part: Part, name: str, rank: int | None, mesh: TracedMesh) -> None:
        """Writes a rank's program, or one for all ranks."""
        stem = name if rank is None else f"{name}-{rank}"
        write(part, self.folder, stem, mesh)
        ranks = range(self.world) if rank is None else (rank,)
        for one in ranks:
            self.programs.setdefault(name, [None] * self.world)[one] = [f"{stem}{PROGRAM}", f"{stem}{PARAMETERS}"]

    def _copy(self, name: str, rank: int, other: int) -> None:
        """Writes the program of another rank of the same role: the same but for the numbers of its groups."""
        source = self.folder / f"{name}-{rank}{PROGRAM}"
        text, parallel = source.read_text(encoding="utf-8"), self.target.parallel
        pairs = zip(axis_ranks(parallel, rank).values(), axis_ranks(parallel, other).values(), strict=True)
        changed = renumbered(text, {ring(old, self.world): ring(new, self.world) for old, new in pairs})
        program = f"{name}-{other}{PROGRAM}"
        (self.folder / program).write_text(changed, encoding="utf-8")
        self.programs[name][other] = [program, f"{name}-{rank}{PARAMETERS}"]

    def manifest(self, limits: Limits) -> Manifest:
        """Writes the operators and the manifest."""
        target, parallel = self.target, self.target.parallel
        made = operators.write(self.folder, target.kind, target.dtype, target.architectures, self.files, parallel)
        self.say("sha256")
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]
        listed = described(self.folder, names)
        manifest = Manifest(
            format=FORMAT, sd3par=__version__, paddle=paddle.__version__, triton=operators.triton_version(target.kind),
            model=self.files.name, dtype=target.dtype, target=target.kind, architectures=target.architectures,
            dp=parallel.dp, mp=parallel.mp, sp=parallel.sp, transport=target.mesh(0).transport, limits=asdict(limits),
            configs=self.configs, scheduler=dict(self.files.scheduler), programs=self.programs, operators=tuple(made),
            weights=fingerprint(listed, PARAMETERS), files=listed,
        )  # fmt: skip
        manifest.write(self.folder)
        return manifest


def _present(component: Component | None, name: str) -> Component:
    if component is None:
        raise ConfigError(name, None, "both CLIP text encoders, or none")
    return component


def _copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(path, target / path.name)


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Within it parameters lie on the CPU, whatever the program is for: so all machines write the same programs."""
    before = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(before)

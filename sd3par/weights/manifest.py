"""What an exported folder says of itself, and whether its files are what it says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sd3par.config import GenerationRequest, ParallelConfig, parse_config, require
from sd3par.errors import CheckpointError, ConfigError
from sd3par.weights.json_file import read_json

FORMAT = 2  # 2: ranks that store to each other hold all of the products after attention
BLOCK = 64 << 20  # bytes: one core hashes about 1.2 GB a second, and the parameters of SD3 are 4 GB
THREADS = min(8, len(os.sched_getaffinity(0)))
MANIFEST = "sd3par-export.json"
EXPORT = "an export that sd3par export wrote"


def is_export(path: object) -> bool:
    """Returns whether a caller who names `path` as the model names an exported folder."""
    return isinstance(path, (str, Path)) and os.path.isfile(Path(os.path.expanduser(path)) / MANIFEST)


@dataclass(frozen=True)
class Limits:
    """The largest shapes that an export takes; below them all are open.

    side: height and width in pixels. images: at once. text: tokens that T5 reads of a prompt.
    """

    side: int
    images: int
    text: int

    def check(self, request: GenerationRequest, images: int) -> None:
        """Raises ConfigError where a sized request is larger."""
        for name, value, most in (
            ("height", request.size[0], self.side),
            ("width", request.size[1], self.side),
            ("images", images, self.images),
            ("max_sequence_length", request.max_sequence_length, self.text),
        ):
            require(value <= most, name, value, f"at most {most}, for which this model was exported")


@dataclass(frozen=True)
class File:
    """Size of a file, and the SHA-256 of each `BLOCK` of it: small files have one, as sha256sum prints it."""

    bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """All that is known of an export before its programs are loaded.

    target: "cpu", or "cuda" for GPUs of `architectures` (90: sm_90), which have operators of their own in `operators`.
    programs: name -> of each rank its [program, parameters], or null where the rank has none.
    transport: "peer" where ranks of mp store to each other's memory, else "collective".
    configs: of the model's parts, as their checkpoints have them. weights: a fingerprint of all parameters.
    """

    format: int
    sd3par: str
    paddle: str
    triton: str | None
    model: str
    dtype: str
    target: str
    architectures: tuple[int, ...]
    dp: int
    mp: int
    sp: int
    transport: str
    limits: dict[str, Any]
    configs: dict[str, Any]
    scheduler: dict[str, Any]
    programs: dict[str, Any]
    operators: tuple[str, ...]
    weights: str
    files: dict[str, Any]

    def __post_init__(self) -> None:
        for name, file in self.files.items():
            require(_is_file(file), f"files: {name}", file, "its bytes, and the SHA-256 of each part")
        for name in self.operators:
            require(isinstance(name, str) and name in self.files, "operators", name, "one of the files")
        for name, ranks in self.programs.items():
            right = _all_of(ranks, lambda pair: pair is None or self._is_pair(pair))
            require(right and len(ranks) == self.parallel.world, f"programs: {name}", ranks,
                    "of each rank a program and its parameters, which are among the files, or null")  # fmt: skip
        for rank in range(self.parallel.world):
            own = [ranks[rank][1] for ranks in self.programs.values() if ranks[rank] is not None]
            right = len(own) == len({*own})
            require(right, "programs: parameters", own, "of each rank a file of its own for each program")
        for name, config in self.configs.items():
            right = isinstance(config, dict) and (name in ("transformer", "vae") or name in self.programs)
            require(right, f"configs: {name}", config, "a JSON object, of a part that has programs")
        names = [field.name for field in fields(Limits)]
        right = sorted(self.limits) == sorted(names) and _all_of(
            [*self.limits.values()], lambda most: type(most) is int
        )
        require(right, "limits", self.limits, f"whole numbers {', '.join(names)}")

    def _is_pair(self, pair: Any) -> bool:
        return _all_of(pair, lambda name: isinstance(name, str) and name in self.files) and len(pair) == 2

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Returns what stands in a folder.

        Raises:
            CheckpointError: another format, or no manifest that this version can read.
        """
        path = folder / MANIFEST
        values = read_json(path)
        found = values.get("format")
        if found != FORMAT:
            raise CheckpointError(path, f"format {found}", f"format {FORMAT}; sd3par export writes it anew")
        try:
            return parse_config(cls, values, str(path))
        except ConfigError as error:
            raise CheckpointError(path, f"{error.field}: {error.value}", error.allowed) from None

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")

    @property
    def parallel(self) -> ParallelConfig:
        """The mesh that it was exported for."""
        return ParallelConfig(self.dp, self.mp, self.sp)

    @property
    def most(self) -> Limits:
        """The largest shapes."""
        return Limits(**self.limits)

    def check_mesh(self, parallel: ParallelConfig) -> None:
        """Raises ConfigError unless the export is for a mesh, and its transport if ranks hand each other anything."""
        own = self.parallel
        same = (parallel.dp, parallel.mp, parallel.sp) == (own.dp, own.mp, own.sp)
        text = "--dp_size {0.dp} --mp_size {0.mp} --sp_size {0.sp}".format
        require(same, "dp_size, mp_size, sp_size", f"{parallel.dp}, {parallel.mp}, {parallel.sp}",
                f"{text(own)}, for which this model was exported")  # fmt: skip
        fits = own.mp * own.sp == 1 or parallel.transport in ("auto", self.transport)
        require(fits, "transport", parallel.transport, f"auto or {self.transport}, for which this model was exported")

    def check_device(self, kind: str, dtype: str) -> None:
        """Raises ConfigError unless the export is for a kind of device; dtype: what was asked for, or auto."""
        fits = (kind == "cpu") == (self.target == "cpu")
        own = "cpu" if self.target == "cpu" else "gpu or nvgpu"
        require(fits, "device", kind, f"{own}, for which this model was exported")
        require(
            dtype in ("auto", self.dtype), "dtype", dtype, f"auto or {self.dtype}, in which this model was exported"
        )

    def check_present(self, folder: Path) -> None:
        """Raises CheckpointError where a file is missing or of another size; does not read any."""
        for name, file in self.files.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(folder / MANIFEST, f"file {name}", "files of its own folder")
            if not path.is_file():
                raise CheckpointError(path, "no such file", EXPORT)
            size = path.stat().st_size
            if size != file["bytes"]:
                raise CheckpointError(path, f"{size} bytes", f"{file['bytes']} bytes, as exported")


def _all_of(found: Any, holds: Callable[[Any], bool]) -> bool:
    """Returns whether something is a JSON array, and each element of it is as it must be."""
    return isinstance(found, (list, tuple)) and all(map(holds, found))


def _is_file(found: Any) -> bool:
    """Returns whether something describes a file, as `File` does."""
    keys = isinstance(found, dict) and sorted(found) == sorted(field.name for field in fields(File))
    return keys and type(found["bytes"]) is int and _all_of(found["sha256"], lambda one: isinstance(one, str))


def check(names: Iterable[str], folder: Path, manifest: Manifest) -> None:
    """Compares files with a manifest, on several cores: hashlib leaves Python's lock alone.

    Raises:
        CheckpointError: a file is not what was exported.
    """
    blocks = [(folder / name, at, wanted) for name in names for at, wanted in enumerate(manifest.files[name]["sha256"])]
    try:
        with ThreadPoolExecutor(THREADS, "sd3par-sha256") as pool:
            for found, (path, _, wanted) in zip(pool.map(lambda one: _sha256(*one[:2]), blocks), blocks, strict=True):
                if found != wanted:
                    raise changed(path, wanted)
    except OSError as error:
        raise unreadable(Path(error.filename), error) from None


def changed(path: Path, wanted: str) -> CheckpointError:
    """Returns the error of a file whose digest is not `wanted`."""
    return CheckpointError(path, "changed since it was exported", f"sha256 {wanted}")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Returns the error of a file that cannot be read."""
    return CheckpointError(path, f"cannot be read ({error.strerror})", EXPORT)


def _sha256(path: Path, index: int) -> str:
    """Returns the digest of block `index` of a file in hexadecimal."""
    found, left = hashlib.sha256(), BLOCK
    with path.open("rb") as file:
        file.seek(index * BLOCK)
        while data := file.read(min(left, 1 << 20)):
            found.update(data)
            left -= len(data)
    return found.hexdigest()


def described(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Returns size and digests of each file, name -> {bytes, sha256}; names are relative to the folder."""
    names = sorted(names)
    sizes = {name: (folder / name).stat().st_size for name in names}
    blocks = [(name, index) for name in names for index in range(max(1, -(-sizes[name] // BLOCK)))]
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda block: _sha256(folder / block[0], block[1]), blocks)
        found: dict[str, list[str]] = {}
        for (name, _), digest in zip(blocks, digests, strict=True):
            found.setdefault(name, []).append(digest)
    return {name: asdict(File(sizes[name], tuple(found[name]))) for name in names}


def fingerprint(files: Mapping[str, Any], suffix: str) -> str:
    """Returns one digest of all files that end so."""
    lines = "".join(
        f"{name} {' '.join(file['sha256'])}\n" for name, file in sorted(files.items()) if name.endswith(suffix)
    )
    return hashlib.sha256(lines.encode()).hexdigest()

"""`--peers`: diffusers and xDiT beside us in one run, on the same weights, text states, noise, steps and sizes.

They run by the scripts of benchmarks/gpu in a checkout, in processes of their own, between ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sd3par.config import ParallelConfig, require
from sd3par.errors import ConfigError
from sd3par.launch.bench import metrics
from sd3par.launch.bench.case import Case, Group, mesh_of
from sd3par.launch.bench.runner import Machine, Result, run
from sd3par.launch.bench.sweep import PLAIN, Sweep

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
MODES = ("eager", "default", "reduce-overhead", "max-autotune")  # of diffusers: torch.compile's, or none
MODELS = ("sd3-medium", "sd3.5-medium", "sd3.5-large", "micro")  # of benchmarks/gpu/shapes.py
UNLIKE = 0.5  # two seeds' latents differ by about 1.4 of their norm, two roundings of the same ones by far less


@dataclass(frozen=True)
class Peer:
    """One of the others. name: a mode of diffusers; layout: xDiT's guidance split (dp) and Ulysses (sp), or None."""

    name: str
    layout: ParallelConfig | None = None

    @property
    def world(self) -> int:
        """How many GPUs it takes."""
        return 1 if self.layout is None else self.layout.world

    def command(self, model: str, folder: Path, cases: Sequence[Case], keep: Path) -> list[str]:
        """Returns the command that measures cases, alike in all but their size and number of images."""
        first = cases[0]
        shared = ["--sizes", *_once(case.height for case in cases), "--images", *_once(case.images for case in cases),
                  "--steps", str(first.steps), "--repeats", str(first.repeats), "--tokens", str(first.text_tokens),
                  "--guidance", str(first.guidance), "--keep", str(keep)]  # fmt: skip
        if self.layout is None:
            return [
                sys.executable,
                "-m",
                "benchmarks.gpu.peer_loop",
                model,
                str(folder),
                "--engine",
                self.name,
                *shared,
            ]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(self.world)]
        layout = ["--cfg", str(self.layout.dp), "--ulysses", str(self.layout.sp)]
        script = str(ROOT / "benchmarks" / "gpu" / "peer_xdit.py")
        return [sys.executable, *launcher, script, model, str(folder), *layout, *shared]


def _once(values: Iterator[int]) -> list[str]:
    return [str(value) for value in dict.fromkeys(values)]


def peer_of(text: str) -> Peer:
    """Returns the peer that "reduce-overhead" or "xdit:dp2,sp2" means.

    Raises:
        ConfigError: it means none.
    """
    name, _, layout = text.partition(":")
    if name in MODES and not layout:
        return Peer(name)
    mesh = mesh_of(layout) if name == "xdit" and layout else None
    fits = isinstance(mesh, ParallelConfig) and mesh.mp == 1 and mesh.dp <= 2
    require(fits, "peers", text, f"{', '.join(MODES)} (diffusers), xdit:dp2, xdit:sp2, xdit:dp2,sp2, ...")
    return Peer("xdit", mesh if isinstance(mesh, ParallelConfig) else None)


def beside(
    machine: Machine,
    sweeps: Sequence[Sweep],
    peers: Sequence[Peer],
    shared: Row,
    add: Callable[[Row], None],
    quiet: bool,
) -> tuple[list[Result], list[Row]]:
    """Measures our cases and the peers' in turn, ours on one device once more at the end; returns both."""
    pairs = [pair for sweep in sweeps for pair in sweep.pairs]
    names = {group.model.removeprefix("random:") for group, _ in pairs}
    whole = all(case.what == "pictures" for _, case in pairs)
    require(whole, "peers", "vae or text", "kinds that draw whole pictures")
    require(len(names) == 1, "peers", ", ".join(sorted(names)), "one model, of --random_weights")
    (name,), theirs, results = names, alike(pairs), list[Result]()
    rows: list[Row] = []
    with weights(name, machine.limit_s) as folder:
        pairs = [(replace(group, model=str(folder), name=name), case) for group, case in pairs]
        ours = _ours(machine, pairs, folder)
        groups = list(dict.fromkeys(group for group, _ in pairs))
        for index in range(max(len(groups), len(peers))):
            mine = [pair for pair in pairs if pair[0] in groups[index : index + 1]]
            results += run(machine, mine, shared, add, quiet)
            for cases in theirs if index < len(peers) else []:
                for row in measure(peers[index], name, folder, cases, ours, machine.limit_s):
                    rows.append({**shared, **row})
                    add(rows[-1])
        again = run(machine, [pair for pair in pairs if pair[0] == groups[0]], shared, lambda row: None, quiet)
        for *_, row in again:
            rows.append({**row, "again": True})
            add(rows[-1])
    return [one._replace(group=replace(one.group, model=f"random:{name}", name="")) for one in results], rows


def _ours(machine: Machine, pairs: Sequence[tuple[Group, Case]], folder: Path) -> Path:
    """Returns a file with our latents of seed 0 on one device for each size, by its pixels."""
    group = replace(pairs[0][0], parallel=ParallelConfig())
    cases = {case.height: replace(case, what="pictures kept", engine="eager", images=1, warm_ups=0, repeats=1,
                                  keep=str(folder / f"ours-{case.height}.npz")) for _, case in pairs}  # fmt: skip
    run(machine, [(group, case) for case in cases.values()], {}, lambda row: None, True)
    kept = {}
    for height, case in cases.items():
        if Path(case.keep).exists():
            with np.load(case.keep) as file:
                kept[str(height)] = file["latents"]
    np.savez(folder / "ours.npz", **kept)
    return folder / "ours.npz"


@contextmanager
def weights(name: str, limit_s: float) -> Iterator[Path]:
    """Yields a diffusers folder with weights that both sides load: made up, so that a wrong attention would show.

    Raises:
        ConfigError: another model, no checkout here, or no PyTorch and diffusers.
    """
    require(name in MODELS, "peers", f"beside {name}", f"--random_weights {' or '.join(MODELS[:-1])}")
    there = (ROOT / "benchmarks" / "gpu" / "peer.py").exists()
    require(there, "peers", "no benchmarks/gpu here", "a checkout of the repository, whose scripts measure them")
    with tempfile.TemporaryDirectory(prefix="sd3par-") as scratch:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.peer", name, scratch, "--no_parity"]
        done = _run(command, limit_s)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise ConfigError("peers", last, "PyTorch and diffusers beside Paddle: pip install 'sd3par[oracle]'")
        yield Path(scratch)


def alike(pairs: Sequence[tuple[Group, Case]]) -> list[list[Case]]:
    """Returns the cases that peers measure, in lists that differ in size and images alone.

    Raises:
        ConfigError: pictures that are not square, which the peers' scripts do not draw.
    """
    found: dict[Case, list[Case]] = {}
    for _, case in pairs:
        require(case.height == case.width, "size", f"{case.width}x{case.height}", "square pictures beside --peers")
        if case.engine != PLAIN:
            key = replace(case, height=0, width=0, images=0, engine="")
            found.setdefault(key, []).append(case)
    return [list(dict.fromkeys(cases)) for cases in found.values()]


def measure(peer: Peer, model: str, folder: Path, cases: Sequence[Case], ours: Path, limit_s: float) -> list[Row]:
    """Returns a peer's rows; each with how far its latents are from ours, which says whether it did the same work."""
    keep = ours.with_name(f"{peer.name}.npz")
    common = {"bench": cases[0].bench, "model": model, "dtype": "bfloat16", "world": peer.world,
              "steps": cases[0].steps, "guidance": cases[0].guidance, "text_tokens": cases[0].text_tokens}  # fmt: skip
    layout = peer.layout or ParallelConfig()
    common |= {"dp": layout.dp, "mp": 1, "sp": layout.sp}
    done = _run(peer.command(model, folder, cases, keep), limit_s)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = {(row["height"], row["images"]): row for row in rows}  # of two about a case the second holds the decoder too
    rows = [{**common, "images": 1, **row, "bench": common["bench"]} for row in last.values()]
    if done.returncode or not rows:
        why = " ".join(done.stderr.split())[-300:]
        who = {"who": "xdit" if peer.layout else "diffusers", "engine": peer.name}
        return [*rows, {**common, **cases[0].row(), **who, "failed": why}]
    return [row | checked(keep, ours, row) for row in rows]


def checked(keep: Path, ours: Path, row: Row) -> Row:
    """Returns the error of a row's kept latents beside ours, and that it failed where that is no rounding."""
    name = f"{row['height']}"
    with np.load(keep) as theirs, np.load(ours) as mine:
        if name not in theirs or name not in mine:
            return {}
        error = metrics.relative(theirs[name], mine[name])
    wrong = {} if error < UNLIKE else {"failed": f"its latents are others than ours: {error:.2f} of their norm"}
    return {"latents_error": error, "error": "latents against sd3par, one card", **wrong}


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a script of benchmarks in the checkout; one that takes too long has failed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
                              timeout=limit_s, stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return subprocess.CompletedProcess(command, 1, said, f"took longer than {limit_s:g} s")

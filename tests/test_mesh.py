"""Every (dp, mp, sp) of 2 and 4 processes gives the noise prediction and the pictures of one process, on every rank."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sd3par import device, mesh
from sd3par.config import ParallelConfig
from sd3par.errors import RankFailure
from sd3par.mesh import Mesh
from tests import ranks, tolerances

LARGEST_SHARE = {1: 1.0, 2: 0.52, 4: 0.27}  # of the block weights' bytes, at mp 1, 2 and 4


@pytest.mark.slow
@pytest.mark.parametrize(("world", "meshes"), [(2, 3), (4, 6)])
def test_every_mesh_equals_diffusers(world: int, meshes: int) -> None:
    for rank, printed in enumerate(ranks.run(world, "tests.mesh_worker")):
        results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT")]
        assert len(results) == meshes
        for result in results:
            wrong = {name: error for name, error in result["errors"].items() if not error < tolerances.MODULE}
            assert result["errors"] and not wrong, result["mesh"]
            assert result["blocks"] <= LARGEST_SHARE[result["mp"]], result["mesh"]
            assert "two-prompts" in result["levels"], result["mesh"]  # 2 images with guidance: dp 1, 2 and 4
            assert max(result["levels"].values()) <= tolerances.PIXEL_LEVELS, result["mesh"]
            uneven = "latents" if result["dp"] > 1 else "no error"
            assert result["refusals"] == ["ConfigError" if rank == 1 else "RankFailure", "request", "works", uneven], (
                result["mesh"]
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "nvgpu"])
@pytest.mark.parametrize("world", [2, 4])
def test_every_collective(kind: str, world: int) -> None:
    """gloo on the CPU, NCCL on as many GPUs."""
    if kind != "cpu" and device.count(kind) < world:
        pytest.skip(f"this machine has no {world} {kind} devices")
    for printed in ranks.run(world, "tests.collectives_worker", kind):
        assert "RIGHT" in printed


@pytest.mark.slow
def test_meshes_of_eight_equal_diffusers() -> None:
    """Those that SD3 has on 8 cards: dp 2 x sp 4, mp 8, sp 8 and all three axes."""
    for printed in ranks.run(8, "tests.eight_worker", timeout_s=200):
        results = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT")]
        assert len(results) == 4
        for result in results:
            wrong = {name: error for name, error in result["errors"].items() if not error < tolerances.MODULE}
            assert result["errors"] and not wrong, result["mesh"]


def test_a_first_process_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's own client would ask for ever."""
    (port,) = ranks.free_ports(1)
    launched = {"PADDLE_MASTER": f"127.0.0.1:{port}", "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "1",
                "PADDLE_DISTRI_BACKEND": "gloo"}  # fmt: skip
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mesh, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(
        RankFailure, match=f"^rank 1: the 2 processes could not connect: nobody listens at 127.*:{port}"
    ):
        Mesh.from_env(ParallelConfig(dp=2))


def test_a_connection_that_never_comes_up_ends_the_process() -> None:
    """Even one that holds Python's lock: ctypes.PyDLL does."""
    stuck = "import ctypes; from sd3par import mesh\nwith mesh._ended_after(0.5): ctypes.PyDLL(None).sleep(60)"
    done = subprocess.run([sys.executable, "-c", stuck], cwd=ranks.ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "Timeout" in done.stderr, done.stderr

"""Two launchers, as on two machines: one mesh, the picture of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd3par.launch import cli
from sd3par.launch.spawn import SCRIPT, worker_environment
from tests import tolerances
from tests.ranks import ROOT, free_ports

WORDS = ["--num_inference_steps=4", "--seed=2", "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [["--sp_size=2"]])
def test_same_picture_on_two_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (port,) = free_ports(1)
    hosts = []
    for rank in (0, 1):
        launch = [sys.executable, "-m", "paddle.distributed.launch", "--nnodes=2", "--nproc_per_node=1",
                  f"--master=127.0.0.1:{port}", f"--rank={rank}", f"--log_dir={tmp_path / f'log{rank}'}"]  # fmt: skip
        environment = {**worker_environment(2, "cpu"), "PYTHONPATH": str(ROOT)}
        hosts.append(
            subprocess.Popen([*launch, str(SCRIPT), *mesh, *WORDS, "--output=two.png"], env=environment,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )  # fmt: skip
    try:
        printed = [host.communicate(timeout=180)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(text[-2000:] for text in printed)
    assert cli.main(["generate", "a red circle on a blue background", *WORDS, "--output=one.png"]) == 0
    one, two = (np.asarray(Image.open(f"{name}.png")).astype(int) for name in ("one", "two"))
    assert abs(one - two).max() <= tolerances.PIXEL_LEVELS

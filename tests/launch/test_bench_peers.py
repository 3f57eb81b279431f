"""`sd3par bench --peers`: which peers there are, in which order all run, and whether they did the same work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sd3par import SD3Pipeline
from sd3par.config import ParallelConfig
from sd3par.errors import ConfigError
from sd3par.launch import cli, spawn
from sd3par.launch.bench import peers
from sd3par.launch.bench.rank import JOB, ROWS
from sd3par.launch.bench.states import states
from sd3par.launch.bench.timing import embeds

pytestmark = pytest.mark.usefixtures("folder")
WORDS = ["--random_weights", "tiny", "--size", "64", "--num_inference_steps", "4", "--repeats", "2", "--quiet"]


def test_names() -> None:
    assert peers.peer_of("reduce-overhead") == peers.Peer("reduce-overhead")
    assert peers.peer_of("xdit:dp2,sp2") == peers.Peer("xdit", ParallelConfig(2, 1, 2))
    for text in ("xdit", "xdit:mp2", "xdit:dp4", "eager:dp2", "fast", "xdit:auto", ""):
        with pytest.raises(ConfigError, match="^peers: "):
            peers.peer_of(text)


def latents(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 4, 8, 8), dtype=np.float32)


def test_the_same_work_is_told_from_other_work(folder: Path) -> None:
    np.savez(folder / "ours.npz", **{"64": latents(0)})
    np.savez(folder / "theirs.npz", **{"64": latents(0) + 0.1 * latents(1)})
    np.savez(folder / "others.npz", **{"64": latents(2)})
    right = peers.checked(folder / "theirs.npz", folder / "ours.npz", {"height": 64})
    assert right["latents_error"] == pytest.approx(0.1, rel=0.2) and "failed" not in right
    wrong = peers.checked(folder / "others.npz", folder / "ours.npz", {"height": 64})
    assert wrong["failed"].startswith("its latents are others than ours: 1.")
    assert peers.checked(folder / "others.npz", folder / "ours.npz", {"height": 32}) == {}


def test_states_are_those_that_peers_draw() -> None:
    """Image i's are the first one's, rolled along all axes: benchmarks/gpu/peer_loop.py does the same with torch."""
    pipe = SD3Pipeline.from_pretrained("tiny", device="cpu")
    config = pipe.transformer.config
    found, want = embeds(pipe, 3, 5, 7), states(7, 5, config.joint_attention_dim, config.pooled_projection_dim)
    assert found.prompt.shape == [3, 5, config.joint_attention_dim]
    np.testing.assert_array_equal(found.prompt[2].numpy(), np.roll(want.prompt, (2, 2), (0, 1)))
    np.testing.assert_array_equal(found.negative_pooled[1].numpy(), np.roll(want.negative_pooled, 1))


class All:
    """Stands in for our processes and the peers', and says in which order they ran."""

    def __init__(self) -> None:
        self.order: list[str] = []

    @contextmanager
    def weights(self, name: str, limit_s: float) -> Iterator[Path]:
        yield Path(".")

    @contextmanager
    def started(self, command: list[str], environment: dict[str, str], folder: Path) -> Iterator[Any]:
        job = json.loads((folder / JOB).read_text())
        rows: list[dict[str, Any]] = [{"load_s": 1.0}]
        for case in job["cases"]:
            self.order.append(f"{case['what']} dp{job['parallel']['dp']}")
            if case["keep"]:
                np.savez(case["keep"], latents=latents(0), pictures=np.zeros((1, 64, 64, 3), np.uint8))
            rows.append({"loop_s": 1.0, "image_s": 2.0, "spread": 0.0, "repeats": 2, "engine": "graph"})
        (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield SimpleNamespace(poll=lambda: 0)

    def run(self, command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        options = dict(zip(command, command[1:], strict=False))
        self.order.append(options.get("--engine", f"xdit {options.get('--cfg')}"))
        assert (options["--sizes"], options["--steps"], options["--tokens"]) == ("64", "4", "333")
        row = {"who": "diffusers", "engine": "x", "height": 64, "width": 64, "images": 1, "loop_s": 1.5, "repeats": 2}
        if "--cfg" in options:
            return subprocess.CompletedProcess(command, 1, "", "no GPU")
        np.savez(options["--keep"], **{"64": latents(0) * 1.01})
        lines = [json.dumps(row), json.dumps({**row, "image_s": 2.5})]
        return subprocess.CompletedProcess(command, 0, "\n".join(["noise", *lines]), "")


def test_ours_and_theirs_take_turns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = All()
    monkeypatch.setattr(spawn, "started", both.started)
    monkeypatch.setattr(peers, "weights", both.weights)
    monkeypatch.setattr(peers, "_run", both.run)
    words = ["--mesh", "one", "dp2", *WORDS, "--json", "rows.jsonl"]
    assert cli.main(["bench", "parallel", *words, "--peers", "reduce-overhead", "xdit:dp2"]) == 0
    assert both.order == [
        "pictures kept dp1",
        "pictures dp1",
        "reduce-overhead",
        "pictures dp2",
        "xdit 2",
        "pictures dp1",
    ]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    assert [(row["who"], row["world"], row["model"]) for row in rows] == [
        ("sd3par", 1, "tiny"), ("diffusers", 1, "tiny"), ("sd3par", 2, "tiny"), ("xdit", 2, "tiny"),
        ("sd3par", 1, "tiny"),
    ]  # fmt: skip
    assert rows[1]["image_s"] == 2.5 and rows[1]["latents_error"] == pytest.approx(0.01, rel=1e-4)
    assert rows[3]["failed"] == "no GPU" and rows[4]["again"] and len({row["run_id"] for row in rows}) == 1
    out = capsys.readouterr().out
    assert "diffusers" in out and "1.0e-02" in out and "failed: no GPU" in out and "again" in out


@pytest.mark.parametrize("words, message", [
    (["parallel", *WORDS, "--peers", "fast"], "peers: got fast"),
    (["resolution", "--random_weights", "tiny", "--peers", "eager"], "size: got 160x96"),
    (["vae", *WORDS, "--peers", "eager"], "peers: got vae or text"),
    (["parallel", "--mesh", "one", *WORDS, "--peers", "eager"], "peers: got beside tiny"),
    (["quality", "--peers", "eager"], "peers: got "),
])  # fmt: skip
def test_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    assert message in capsys.readouterr().err

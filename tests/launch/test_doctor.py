"""`sd3par doctor`: what it finds, and that it finds what is broken."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from sd3par.kernels.nvgpu import info
from sd3par.launch import cli, doctor, environment
from sd3par.weights import model_files


def test_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("sd3par", "paddlepaddle", "ok   cpu", "off  bfloat16", "gloo", "bundled model", "complete, 128 x 128"):
        assert text in out
    assert out.endswith("pictures can be drawn here\n")


def test_run_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] is True
    assert found["versions"]["sd3par"] == "0.1.0"
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["a picture"]["state"] == "ok"
    assert "one step took" in checks["a picture"]["detail"]


def test_broken_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_files, "_locate", lambda path: tmp_path)
    assert cli.main(["doctor", "--run"]) == 1
    out = capsys.readouterr().out
    assert "bad  bundled model" in out and "model_index.json" in out
    assert "-> install sd3par again" in out
    assert "a picture" not in out
    assert out.endswith("pictures cannot be drawn here: see what is bad\n")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "installed", lambda: {"sd3par": "0.1.0", "numpy": "2.0"})
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "bad  packages  safetensors, tokenizers, pillow, tqdm missing" in out
    assert "-> python -m pip install safetensors" in out


def test_both_wheels_of_paddle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {**doctor.installed(), "paddlepaddle": "3.3.1", "paddlepaddle-gpu": "3.3.1"}
    monkeypatch.setattr(doctor, "installed", lambda: found)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "bad  Paddle    paddlepaddle and paddlepaddle-gpu are both installed" in out
    assert "-> python -m pip uninstall --yes paddlepaddle paddlepaddle-gpu" in out


@pytest.mark.parametrize("amd, kernels", [(True, "MKL_DEBUG_CPU_TYPE 5 is in force"), (False, "is not set")])
def test_threads(amd: bool, kernels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE"):
        monkeypatch.setenv(name, "")  # so that both are put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "cores", lambda: 6)
    monkeypatch.setattr(environment, "_amd_with_avx2", lambda: amd)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "MKL_NUM_THREADS 6" in out and kernels in out and "OMP" not in out


def test_threads_that_the_caller_chose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    assert cli.main(["doctor"]) == 0
    assert "MKL_NUM_THREADS 3" in capsys.readouterr().out


def test_no_paddle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without_paddle(name: str, *arguments: object, **options: object) -> object:
        if name == "paddle":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_paddle)
    assert cli.main(["doctor"]) == 1
    assert "bad  Paddle    ImportError: libgomp.so.1" in capsys.readouterr().out


def test_launcher_and_empty_devices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(["doctor"]) == 0
    assert "-> unset CUDA_VISIBLE_DEVICES" in capsys.readouterr().out


def test_no_plugin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(info, "loaded", lambda: None)
    assert cli.main(["doctor", "--device", "nvgpu"]) == 1
    out = capsys.readouterr().out
    assert "bad  plug-in            not loaded by Paddle" in out
    assert "-> make nvgpu, or python -m sd3par.kernels.nvgpu build" in out
    assert "doctor --device nvgpu" not in out  # that is what was asked for

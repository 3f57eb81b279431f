"""Finding compilers and headers, installing, and the command line; none of it needs nvcc but the last."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sd3par.errors import ConfigError
from sd3par.kernels.nvgpu import __main__ as command
from sd3par.kernels.nvgpu import build, info, toolchain

ROOT = Path(__file__).resolve().parent.parent.parent


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def nvcc_saying(folder: Path, version: str) -> Path:
    return script(folder, "nvcc", f'echo "Cuda compilation tools, release {version}, V{version}.1"')


def test_nvcc_of_another_generation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvcc_saying(tmp_path / "12" / "bin", "12.6").parent))
    monkeypatch.setenv("CUDA_HOME", str(nvcc_saying(tmp_path / "13" / "bin", "13.1").parent.parent))
    assert toolchain.find_nvcc() == str(tmp_path / "13" / "bin" / "nvcc")
    monkeypatch.setattr(toolchain, "CUDA", 14)
    with pytest.raises(ConfigError, match=r"nvcc: got .*12/bin/nvcc of CUDA 12\.6; allowed: CUDA 14's nvcc on PATH"):
        toolchain.find_nvcc()


def test_missing_header_names_its_wheel(tmp_path: Path) -> None:
    never = toolchain.Library("no_such_header.h", "nccl/include", "nvidia-nccl-cu13")
    with pytest.raises(ConfigError, match=r"no_such_header\.h: got nothing; allowed: pip install nvidia-nccl-cu13"):
        toolchain._headers(never, None, tmp_path)


def test_header_of_a_given_folder_comes_before_the_toolkits(tmp_path: Path) -> None:
    for folder in (tmp_path / "nvidia" / "nccl" / "include", tmp_path / "cuda" / "include"):
        folder.mkdir(parents=True)
        (folder / "nccl.h").touch()
    found = toolchain._headers(toolchain.NCCL, tmp_path / "nvidia", tmp_path / "cuda")
    assert found == tmp_path / "nvidia" / "nccl" / "include"
    assert toolchain._headers(toolchain.NCCL, tmp_path / "none", tmp_path / "cuda") == tmp_path / "cuda" / "include"


def test_paddle_is_found_without_being_imported() -> None:
    code = "import sys; from sd3par.kernels.nvgpu import toolchain; print(toolchain.paddle_folder())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    folder = Path(done.stdout.strip())
    assert (folder / "base").is_dir(), done.stderr
    assert build.installed() == folder.parent / "paddle_custom_device" / build.NAME


def test_install_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    library = tmp_path / "built"
    for content in ("old", "new"):
        library.write_text(content, encoding="utf-8")
        target = build.install(library, tmp_path / "device")
    assert target.read_text(encoding="utf-8") == "new"
    assert list((tmp_path / "device").iterdir()) == [target]


def test_install_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"folder: got .*; allowed: a folder that can be written; --out FOLDER"):
        build.install(tmp_path / "file", tmp_path / "file" / "below")


def test_objects_go_to_build_in_a_checkout_and_else_to_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.cache_folder() == ROOT / "build" / "nvgpu"
    monkeypatch.setattr(build, "SOURCE", tmp_path / "site-packages" / "sd3par" / "kernels" / "nvgpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.cache_folder() == tmp_path / "cache" / "sd3par" / "nvgpu"


def test_where_and_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / build.NAME
    monkeypatch.setattr(build, "installed", lambda: file)
    assert command.main(["where"]) == 2
    assert capsys.readouterr().err == f"error: plug-in: got nothing; allowed: one at {file}: {COMMAND} build\n"
    file.touch()
    assert command.main(["where"]) == 0
    assert command.main(["remove"]) == 0
    assert capsys.readouterr().out == f"{file}\nremoved {file}\n"
    assert not file.exists()


COMMAND = "python -m sd3par.kernels.nvgpu"


def test_dry_plugin_is_never_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["build", "--dry"]) == 2
    assert "out: got nothing; allowed: a folder of your own" in capsys.readouterr().err


def test_info_without_the_plugin_says_how_to_get_it() -> None:
    if info.loaded():
        pytest.skip("the plug-in is loaded here")
    with pytest.raises(info.PluginError, match=r"not loaded: python -m sd3par\.kernels\.nvgpu build"):
        info.versions()


def test_every_function_of_nvidias_libraries_is_in_its_library() -> None:
    """lazy.h looks names up when they are first called: a wrong one would be found only then."""
    folders = [folder for root in toolchain.nvidia_folders() for folder in root.glob("*/lib")]
    files = {name: file for folder in folders for name, soname in SONAMES.items() for file in folder.glob(soname)}
    if not files or shutil.which("nm") is None:
        pytest.skip("NVIDIA's libraries are not installed")
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "kernels" / "nvgpu" / "src").rglob("*.cc")]
    called = {pair for text in sources for pair in re.findall(r"LAZY\((\w+),\s*(\w+)\)", text)}
    assert called
    exported = {name: _exported(file) for name, file in files.items()}
    assert [pair for pair in called if pair[0] in exported and pair[1] not in exported[pair[0]]] == []


SONAMES = {
    "Cublas": "libcublas.so.13", "CublasLt": "libcublasLt.so.13", "Cudnn": "libcudnn.so.9", "Nccl": "libnccl.so.2",
}  # fmt: skip


def _exported(library: Path) -> set[str]:
    listed = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}


def test_source_that_does_not_compile_is_one_line_after_the_compilers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        toolchain.find()
    except ConfigError as missing:
        pytest.skip(f"the plug-in is not built here: {missing}")
    (tmp_path / "Makefile").write_text("$(OUT)/libpaddle-nvgpu.so:\n\t@false\n", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCE", tmp_path)
    with pytest.raises(build.BuildError, match=r"libpaddle-nvgpu\.so was not built: see the compiler's messages above"):
        build.build(cache=tmp_path / "cache")

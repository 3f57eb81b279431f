"""Installed in each of four ways, `sd3par`, `sd3par.kernels` and `sd3par.launch` are there; importing is cheap."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("setuptools", "70.1", reason="building a wheel without the network needs setuptools >= 70.1")

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "sd3par", "kernels", "launch", "tests")

# Where a module is not called as what it is installed by.
DISTRIBUTIONS = {"PIL": "pillow", "paddle": "paddlepaddle"}
# Of launch/bench/plot.py, sd3par/text/spiece.py and kernels/, which do without or say so.
OPTIONAL = {"matplotlib", "sentencepiece", "google", "triton"}

# Run with -S and sd3par first, so that no other install of it can answer; Paddle then comes from this environment.
IMPORT = """
import importlib, site, sys
site.addsitedir(sys.argv[1])
import sd3par
sys.path += sys.argv[2:]
for name in ("sd3par", "sd3par.kernels", "sd3par.launch", "sd3par.launch.cli", "sd3par.text"):
    print(name, importlib.import_module(name).__file__)
"""


def python(code: str, *arguments: object, options: tuple[str, ...] = (), cwd: Path | None = None) -> str:
    """Returns what `code` prints in a Python of its own, in a folder that has no sd3par unless `cwd` says so."""
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd or "/", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """Builds a wheel ("build_wheel" or "build_editable") from `source` as pip does, and returns it unpacked."""
    folder.mkdir(parents=True)
    python(f"import sys; from setuptools import build_meta; build_meta.{kind}(sys.argv[1])", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def imported(site: Path) -> dict[str, Path]:
    """Imports our packages with `site` as their site-packages; returns name -> file."""
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = python(IMPORT, site, *others, options=("-I", "-S")).splitlines()
    return {name: Path(path) for name, path in (line.split(" ", 1) for line in lines)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout: setuptools writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    folder.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel, unpacked."""
    return build("build_wheel", source, source.parent / "wheel")


def assert_found_in(folder: Path, paths: dict[str, Path], installed: bool) -> None:
    below = folder / "sd3par" if installed else folder
    assert paths["sd3par"] == folder / "sd3par" / "__init__.py"
    assert paths["sd3par.text"] == folder / "sd3par" / "text" / "__init__.py"
    assert paths["sd3par.kernels"] == below / "kernels" / "__init__.py"
    assert paths["sd3par.launch"] == below / "launch" / "__init__.py"
    assert paths["sd3par.launch.cli"] == below / "launch" / "cli.py"


def test_wheel(wheel: Path) -> None:
    assert_found_in(wheel, imported(wheel), installed=True)


def test_editable(source: Path) -> None:
    assert_found_in(source, imported(build("build_editable", source, source.parent / "editable")), installed=False)


def test_legacy_develop(source: Path, tmp_path: Path) -> None:
    """`setup.py develop` of older setuptools: a .pth file that names the checkout, and nothing else."""
    (tmp_path / "easy-install.pth").write_text(f"{source}\n", encoding="utf-8")
    assert_found_in(source, imported(tmp_path), installed=False)


def test_every_public_name_is_there() -> None:
    named = python("import sd3par; print(*(getattr(sd3par, name).__name__ for name in sd3par.__all__))", cwd=ROOT)
    assert "OutOfMemory" in named.split()


def test_plain_checkout(source: Path) -> None:
    """A checkout on PYTHONPATH: `site` has no .pth file, only the packages themselves."""
    assert_found_in(source, imported(source), installed=False)


def test_wheel_has_the_model_and_the_type_marker(wheel: Path) -> None:
    for path in (ROOT / "sd3par").rglob("*"):
        packaged = path.suffix == ".py" or path.name == "py.typed" or ROOT / "sd3par" / "tiny" in path.parents
        if path.is_file() and packaged and "__pycache__" not in path.parts:
            assert (wheel / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert (wheel / "sd3par" / "py.typed").exists()
    assert (wheel / "sd3par" / "tiny" / "model_index.json").exists()


def test_wheel_has_nothing_else(wheel: Path) -> None:
    tops = {path.name for path in wheel.iterdir() if path.suffix not in (".whl", ".dist-info")}
    assert tops == {"sd3par"}
    assert not [path for path in wheel.rglob("*") if path.name in ("tests", "benchmarks", "setup.py")]


def test_wheel_has_the_command_and_every_module_of_it(wheel: Path) -> None:
    (info,) = wheel.glob("*.dist-info")
    assert "sd3par = sd3par.launch.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    for folder in ("kernels", "launch"):
        modules = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
        assert modules == {path.relative_to(wheel / "sd3par") for path in (wheel / "sd3par" / folder).rglob("*.py")}


def test_wheel_has_what_the_plugin_is_built_from(wheel: Path) -> None:
    folder = ROOT / "kernels" / "nvgpu"
    sources = [folder / "Makefile", *(path for part in ("src", "dry") for path in (folder / part).rglob("*"))]
    missing = [path for path in sources if not (wheel / "sd3par" / path.relative_to(ROOT)).exists()]
    assert missing == []


def test_wheel_has_what_operators_of_programs_are_built_from(wheel: Path) -> None:
    sources = list((ROOT / "kernels" / "static" / "src").iterdir())
    assert sources and [path for path in sources if not (wheel / "sd3par" / path.relative_to(ROOT)).exists()] == []


def declared(wheel: Path) -> set[str]:
    """Returns what the wheel depends on, without extras."""
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    return set(re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", text, re.MULTILINE))


def test_dependencies_are_what_is_imported(wheel: Path) -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (wheel / "sd3par").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"sd3par"} - OPTIONAL
    assert {DISTRIBUTIONS.get(name, name) for name in imported} == declared(wheel)


def test_readme_names_the_dependencies_beside_another_paddle(wheel: Path) -> None:
    (line,) = (line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "--no-deps" in line)
    listed = line.split("--no-deps", 1)[1]
    assert declared(wheel) - {"paddlepaddle"} <= set(re.findall(r"[\w-]+", listed))


def test_import_is_cheap() -> None:
    """No Paddle, no numpy, no file but its own; best of five, since other processes may hold the cores."""
    code = """
import sys, time
start = time.perf_counter()
import sd3par
print(time.perf_counter() - start, *{"paddle", "numpy", "PIL", "tokenizers"}.intersection(sys.modules))
"""
    runs = [python(code, cwd=ROOT).split() for _ in range(5)]
    assert all(len(run) == 1 for run in runs), f"imported: {runs[0][1:]}"
    assert min(float(run[0]) for run in runs) < 0.3


def test_version_is_the_wheels(wheel: Path) -> None:
    version = python("import sd3par; print(sd3par.__version__)", cwd=ROOT).strip()
    assert (wheel / f"sd3par-{version}.dist-info").is_dir()

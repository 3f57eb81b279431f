"""The project's rules about its own files (CONTRIBUTING.md), as tests."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tolerances

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
LIBRARY = ("sd3par", "kernels")
PRODUCT = (*LIBRARY, "launch")
CODE = (*PRODUCT, "benchmarks")

MAX_FUNCTION, MEDIAN_FUNCTION, MAX_FILE = 60, 10, 350  # lines
MAX_GOLDENS, MAX_MODEL = 1_000_000, 6_000_000  # bytes

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """A function, method or class, where it stands, and whether a user of its module may call it."""

    where: str
    node: Function | ast.ClassDef
    public: bool


def sources(folders: tuple[str, ...]) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def definitions(folders: tuple[str, ...]) -> list[Definition]:
    """Returns every function, method and class in `folders`; public: it and what encloses it are named so."""
    return [found for path in sources(folders) for found in _within(path, ast.parse(path.read_text("utf-8")), True)]


def _within(path: Path, parent: ast.AST, public: bool) -> Iterator[Definition]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function | ast.ClassDef):
            shown = public and not node.name.startswith("_") and not isinstance(parent, Function)
            yield Definition(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node, shown)
            yield from _within(path, node, shown)
        else:
            yield from _within(path, node, public)


def functions(folders: tuple[str, ...]) -> list[Definition]:
    return [found for found in definitions(folders) if not isinstance(found.node, ast.ClassDef)]


def length(node: Function, docstring: bool) -> int:
    """Returns the lines of a function from `def` to the last one, without decorators, with or without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    counted = docstring or ast.get_docstring(node) is None
    return lines if counted else lines - (first.end_lineno - first.lineno + 1)


def matches(pattern: str, folders: tuple[str, ...], exempt: tuple[str, ...] = ()) -> list[str]:
    """Returns "file:line text" of every line of code in `folders` that `pattern` is found in."""
    found = []
    for path in sources(folders):
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if name not in exempt and re.search(pattern, line):
                found.append(f"{name}:{number} {line.strip()}")
    return found


def committed() -> list[Path]:
    """Returns the files that git has or would add; none outside a git checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file()]


def test_only_mesh_talks_to_other_processes() -> None:
    """A message may name the launcher's command line, `-m paddle.distributed.launch`."""
    module = r"paddle\.distributed(?!\.launch\b)|import distributed|\bfleet\b"
    operation = r"_C_ops\.(all_|c_|mp_|reduce_scatter|broadcast)"
    assert matches(rf"{module}|{operation}", CODE, exempt=("sd3par/mesh.py",)) == []


def test_nothing_executes_what_it_reads() -> None:
    unpickling = r"^\s*(import|from) (_?pickle|cloudpickle|dill|joblib|marshal|shelve)\b|\bpickle\.|allow_pickle=True"
    running = r"(?<![\w.])(eval|exec)\(|os\.(system|popen)\(|shell=True"
    assert matches(rf"{unpickling}|{running}|paddle\.load\(|yaml\.load\(", CODE) == []


def test_library_does_not_print() -> None:
    assert matches(r"(?<![\w.])print\(", LIBRARY) == []


def test_functions_are_short() -> None:
    assert [found.where for found in functions(CODE) if length(found.node, docstring=True) > MAX_FUNCTION] == []


def test_functions_are_short_on_the_whole() -> None:
    lengths = [length(found.node, docstring=False) for found in functions(PRODUCT)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_files_are_short() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in sources(CODE)}
    assert [f"{path.relative_to(ROOT)}: {count} lines" for path, count in lines.items() if count > MAX_FILE] == []


def test_what_is_public_has_a_docstring() -> None:
    shown = [found for found in definitions(CODE) if found.public]
    assert [found.where for found in shown if ast.get_docstring(found.node) is None] == []
    files = [path for path in sources(CODE) if ast.get_docstring(ast.parse(path.read_text("utf-8"))) is None]
    assert [str(path.relative_to(ROOT)) for path in files] == []


def test_what_is_public_has_types() -> None:
    assert [f"{found.where}({name})" for found in functions(CODE) if found.public for name in untyped(found.node)] == []


def untyped(node: Function) -> list[str]:
    """Returns the arguments of a function that have no annotation, and "return" where that has none."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    bare = [one.arg for one in named if one and one.annotation is None and one.arg not in ("self", "cls")]
    return bare + (["return"] if node.returns is None else [])


def test_no_path_of_a_developers_machine() -> None:
    path = re.compile(rb"(?<![\w.])/(?:root|work|farm|Users|home/\w+)/")
    texts = [file for file in committed() if file.suffix not in (".npz", ".safetensors", ".png")]
    assert [str(file.relative_to(ROOT)) for file in texts if path.search(file.read_bytes())] == []


def test_goldens_are_small_and_each_has_its_script() -> None:
    """The docstring of the script names the file, as `name.npz`, `name_*.npz` or `tests/golden/folder/`."""
    files = {path.relative_to(GOLDEN): path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()}
    assert files
    assert sum(files.values()) <= MAX_GOLDENS
    named = [name for script in (ROOT / "tests" / "make").glob("golden_*.py") for name in written_by(script)]
    assert [str(file) for file in files if not any(fnmatch(str(file), name) for name in named)] == []


def written_by(script: Path) -> list[str]:
    text = ast.get_docstring(ast.parse(script.read_text("utf-8"))) or ""
    return re.findall(r"[\w*]+\.(?:npz|json)", text) + [
        f"{name}/*" for name in re.findall(r"tests/golden/(\w+)/", text)
    ]


def test_bundled_model_is_small() -> None:
    files = [path for path in (ROOT / "sd3par" / "tiny").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= MAX_MODEL


def test_contributing_has_the_table_of_tolerances() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    )
    table = {name: value for name, value in vars(tolerances).items() if name.isupper()}
    assert {name: float(limit) for name, limit in rows.items()} == table


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_documents_name_files_that_exist(file: str) -> None:
    """Links between the project's own files; an address on the web is not looked up."""
    text = (ROOT / file).read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text) + re.findall(r'src="(?!https?:)([^"]+)"', text)
    assert [link for link in links if not (ROOT / link).exists()] == []

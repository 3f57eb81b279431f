"""From a layer to files: a program in Paddle's intermediate representation, and its parameters."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import paddle

from sd3par.errors import CheckpointError
from sd3par.static.mesh import COLLECTIVES, TracedMesh
from sd3par.static.parts import Part

PROGRAM, PARAMETERS = ".json", ".pdiparams"
_OPERATOR = re.compile(r'"#":"(?:1\.|\d+\.sd3par_)(' + "|".join(COLLECTIVES) + r')(?:_|_2)?"')  # Paddle's, or ours
# Which layer an operator came from, for debugging: counted over all layers of a process, so another one each time.
_NAME = r'\{"AT":\{"#":"0\.a_str","D":"[^"]*"\},"N":"struct_name"\}'
_LAYER = re.compile(f",{_NAME}|{_NAME},?")
_RING = re.compile(r'"D":(\d+)\},"N":"(ring|ring_id)"')


@paddle.no_grad()
def write(part: Part, folder: Path, name: str, mesh: TracedMesh) -> None:
    """Traces a part and writes `name.json` and `name.pdiparams`: the same bytes every time.

    Raises:
        CheckpointError: the program lacks a collective that was asked for.
    """
    mesh.written.clear()
    part.eval()
    traced = paddle.jit.to_static(part, input_spec=[part.inputs], full_graph=True)
    with _without_stacks():
        paddle.jit.save(traced, str(folder / name))
    program = folder / f"{name}{PROGRAM}"
    program.write_text(_LAYER.sub("", program.read_text(encoding="utf-8")), encoding="utf-8")
    check_collectives(program, mesh.written - part.unread)


@contextmanager
def _without_stacks() -> Iterator[None]:
    """Within it Paddle notes no lines of Python with each operator: half of its time, and no file has them."""
    kept = traceback.extract_stack
    traceback.extract_stack = lambda *_, **__: traceback.StackSummary()
    try:
        yield
    finally:
        traceback.extract_stack = kept


def collectives(path: Path) -> Counter[str]:
    """Returns how many collectives of each kind a written program has."""
    return Counter(_OPERATOR.findall(path.read_text(encoding="utf-8")))


def check_collectives(path: Path, wanted: Mapping[str, int]) -> None:
    """Raises CheckpointError unless a written program has as many collectives as were asked for."""
    found = collectives(path)
    if found != Counter(wanted):
        asked = ", ".join(f"{count} {name}" for name, count in sorted(wanted.items())) or "none"
        have = ", ".join(f"{count} {name}" for name, count in sorted(found.items())) or "none"
        raise CheckpointError(path, f"a program with {have} of its collectives", f"{asked}: Paddle lost some")


def renumbered(text: str, rings: Mapping[int, int]) -> str:
    """Returns a program for another rank that does the same in other groups; rings: old number -> new one."""
    return _RING.sub(lambda match: f'"D":{rings[int(match[1])]}}},"N":"{match[2]}"', text)

"""`sd3par show`: how a picture was made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from sd3par.errors import shorten
from sd3par.launch import endings
from sd3par.launch.parser import Parser
from sd3par.launch.report import table


def main(argv: Sequence[str]) -> int:
    """Prints the metadata in a PNG file; returns the exit code."""
    parser = Parser(prog="sd3par show", description="Prints how a picture was made, as sd3par wrote it into the file.")
    parser.add_argument("file", metavar="FILE", help="a PNG file")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse(argv)
    from sd3par.images import read_metadata

    values = read_metadata(options.file)
    sys.stdout.write(f"{json.dumps(values, indent=2) if options.json else aligned(values)}\n")
    return endings.DONE


def aligned(values: dict[str, Any]) -> str:
    """Returns one line a field that has a value.

    The file may hold anything, but no control sequence in it reaches the terminal.
    """
    rows = [(shorten(name, 40), printable(value)) for name, value in values.items() if value is not None]
    return table(rows) if rows else "nothing"


def printable(value: object) -> str:
    """Returns a value on one line, with what a terminal could act on escaped."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

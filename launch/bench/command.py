"""`sd3par bench`: measures this machine. Each kind of measurement is named on the command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

from sd3par.errors import ConfigError
from sd3par.launch import endings
from sd3par.launch.bench.kinds import KINDS, measure
from sd3par.launch.bench.plot import plot
from sd3par.launch.bench.results import tables

STANDARD = "parallel"


def help_text() -> str:
    """Returns what `sd3par bench` alone prints."""
    lines = [f"  {name:11} {kind.about}" for name, kind in KINDS.items()]
    lines += [f"  {name:11} {about}" for name, (about, _) in OTHERS.items()]
    return "\n".join(["usage: sd3par bench KIND [options]", "",
        "Measures this machine: a table on the terminal; with --results FOLDER also JSON lines and CSV, each row with",
        "machine, versions, command, commit and the id of its run.", "", "kinds:", *lines, "",
        "sd3par bench KIND --help says more. Without a KIND but with flags it is parallel, as in",
        "  sd3par bench --mesh auto --random_weights sd3-medium",
        "  sd3par bench all --smoke                     does all of it run here?"])  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs the measurement that `argv` names; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{help_text()}\n")
        return endings.DONE
    named = not argv[0].startswith("-")
    name, words = (argv[0], argv[1:]) if named else (STANDARD, argv)
    if name in OTHERS:
        return OTHERS[name][1](words)
    if name not in KINDS:
        raise ConfigError("bench", name, ", ".join([*KINDS, *OTHERS]))
    return measure(KINDS[name], words, f"sd3par bench {shlex.join(argv)}")


def everything(argv: Sequence[str]) -> int:
    """Runs every kind of sweep with the same flags; returns the exit code of the first that failed."""
    codes = []
    for name, kind in KINDS.items():
        sys.stdout.write(f"\n{name}: {kind.about}\n")
        codes.append(measure(kind, argv, f"sd3par bench all {shlex.join(argv)}".rstrip()))
    return next((code for code in codes if code), endings.DONE)


OTHERS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "tables": ("the tables of results that were kept, again", tables),
    "plot": ("plots of results that were kept, as PNG and SVG", plot),
    "all": ("every kind above, one after the other", everything),
}

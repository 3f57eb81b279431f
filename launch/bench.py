"""`sd3par bench`: measures this machine. Each kind of measurement is a module, found by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from sd3par.errors import ConfigError
from sd3par.launch import endings

HELP = """\
usage: sd3par bench [KIND] [options]

Measures this machine and prints a table; with --json or --results JSON lines, too.

kinds:
  mesh    which dp x mp x sp is fastest for a model, a size and a number of devices (the default)

sd3par bench KIND --help says more. As in
  sd3par bench --mesh auto --random_weights sd3-medium"""
STANDARD = "mesh"


def main(argv: Sequence[str]) -> int:
    """Runs the measurement that `argv` names, else the standard one; returns the exit code."""
    named = bool(argv) and not argv[0].startswith("-")
    if list(argv[:1]) in (["-h"], ["--help"]):
        sys.stdout.write(f"{HELP}\n")
        return endings.DONE
    kind, words = (argv[0], argv[1:]) if named else (STANDARD, argv)
    if kind not in KINDS:
        raise ConfigError("bench", kind, ", ".join(KINDS))
    return KINDS[kind](words)


def mesh(argv: Sequence[str]) -> int:
    """Compares meshes."""
    from sd3par.launch.bench_mesh import main as compare

    return compare(argv)


KINDS: dict[str, Callable[[Sequence[str]], int]] = {"mesh": mesh}

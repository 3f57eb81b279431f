"""`sd3par bench`: measures this machine. Each kind of measurement is named on the command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sd3par.config import require
from sd3par.errors import ConfigError
from sd3par.launch import endings
from sd3par.launch.bench.compare import compare
from sd3par.launch.bench.kinds import KINDS, measure, parser_of
from sd3par.launch.bench.plot import plot
from sd3par.launch.bench.profile import kernels
from sd3par.launch.bench.quality import quality
from sd3par.launch.bench.results import tables
from sd3par.launch.bench.startup import startup
from sd3par.launch.parser import Parser

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
    return measure([(name, words)], f"sd3par bench {shlex.join(argv)}")


def everything(argv: Sequence[str]) -> int:
    """Measures every kind with the same flags, or the lines of a plan; returns the exit code."""
    about = (
        f"Measures every kind of sweep ({', '.join(KINDS)}) in one run, then a step's kernels; takes the sweeps' flags."
    )
    parser = Parser(prog="sd3par bench all", usage="sd3par bench all [--plan FILE] [flags of kinds]", description=about)
    parser.add_argument("--plan", metavar="FILE", help="a text with a kind and its flags a line, instead of all kinds; "
                        "lines that begin with # are skipped; flags of the command count for all lines")  # fmt: skip
    options, words = parser.parse_known_args(list(argv))
    lines = [(name, list[str]()) for name in KINDS] if options.plan is None else plan(options.plan)
    command = shlex.join(["sd3par", "bench", "all", *argv])
    code = measure([(name, [*flags, *words]) for name, flags in lines], command)
    return code if options.plan is not None else max(code, kernels(_of_one(words)))


def _of_one(words: Sequence[str]) -> list[str]:
    """Returns of a sweep's flags those that `kernels` has, too."""
    found = parser_of(KINDS[STANDARD]).parse(words)
    values = {"model": (found.model or [None])[0], "random_weights": (found.random_weights or [None])[0],
              "dtype": found.dtype[0], "device": found.device, "results": found.results, "json": found.json,
              "commit": found.commit, "steps": 2 if found.smoke else None}  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def plan(path: str) -> list[tuple[str, list[str]]]:
    """Returns the kinds and flags in a file.

    Raises:
        ConfigError: a line that does not begin with a kind, or none.
    """
    try:
        found = [shlex.split(line, comments=True) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError("plan", path, f"a text with a kind and its flags a line ({error})") from None
    lines = [words for words in found if words]
    for words in lines:
        require(words[0] in KINDS, "plan", words[0], ", ".join(KINDS))
    require(bool(lines), "plan", path, "a file with lines")
    return [(words[0], words[1:]) for words in lines]


OTHERS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "kernels": ("where a step's time goes, kernel by kernel; --profile writes a trace", kernels),
    "quality": ("how far pictures are from those of one device: PSNR, SSIM, accuracy", quality),
    "startup": ("from the shell to a picture's file", startup),
    "all": ("every sweep above in one run, or a plan of them", everything),
    "tables": ("the tables of results that were kept, again", tables),
    "compare": ("whether two runs of the same cases agree", compare),
    "plot": ("plots of results that were kept, as PNG and SVG", plot),
}

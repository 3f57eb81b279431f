"""The `sd3par` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from sd3par import __version__
from sd3par.errors import ConfigError
from sd3par.launch import endings
from sd3par.launch.endings import Place
from sd3par.launch.environment import importing, prepare_process

HELP = """\
usage: sd3par COMMAND ...

Stable Diffusion 3 on PaddlePaddle: one picture on many devices, the same picture whatever their number.

commands:
  generate PROMPT  draws pictures, on one device or on several
  export           writes a model as static graphs, for deployment
  bench KIND       measures this machine: meshes, batch, size, steps, ... and draws plots
  doctor           says what works on this machine, and what to do about the rest
  show FILE        prints how a picture was made

sd3par COMMAND --help says more; sd3par --version prints the version."""

GENERATE = """\
Draws pictures with Stable Diffusion 3; on several devices it starts Paddle's launcher itself.

  sd3par generate "a red circle on a blue background"
  sd3par generate "a red circle on a blue background" --mp_size 2 --dp_size 2
  sd3par generate "a red circle on a blue background" --dp_size auto --devices 2,3"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return endings.run(lambda: _main(words), Place(), "--debug" in words)


def _main(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        sys.stdout.write(f"{HELP}\n")
        return endings.DONE
    if name == "--version":
        sys.stdout.write(f"sd3par {__version__}\n")
        return endings.DONE
    if name not in COMMANDS:
        raise ConfigError("command", name, ", ".join(COMMANDS))
    try:
        os.getcwd()  # Paddle's import asks for it
    except OSError:
        raise ConfigError("current folder", "one that was removed", "a folder that exists: cd to one") from None
    return COMMANDS[name](words[1:])


def generate(argv: Sequence[str]) -> int:
    """Draws pictures in this process, or in new ones."""
    from sd3par.launch.flags import render_parser

    options = render_parser("sd3par generate", GENERATE, prompt_flag=False).parse(argv)
    prepare_process(1)
    from sd3par.launch.job import Job
    from sd3par.launch.worker import work

    job = Job.of(options)
    if job.parallel.world == 1 and options.devices is None:
        return work(job, Place())
    with importing():
        job.check(writes=True)
    endings.prepare(Place())
    from sd3par.launch.spawn import spawn

    return spawn(job)


def export(argv: Sequence[str]) -> int:
    """Writes a model as static graphs."""
    from sd3par.launch.export import main as write

    return write(argv)


def bench(argv: Sequence[str]) -> int:
    """Measures this machine."""
    from sd3par.launch.bench.command import main as measure

    return measure(argv)


def doctor(argv: Sequence[str]) -> int:
    """Says what works on this machine."""
    from sd3par.launch.doctor import main as examine

    return examine(argv)


def show(argv: Sequence[str]) -> int:
    """Prints how a picture was made."""
    from sd3par.launch.show import main as print_metadata

    return print_metadata(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "generate": generate, "export": export, "bench": bench, "doctor": doctor, "show": show,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())

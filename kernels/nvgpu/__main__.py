"""`python -m sd3par.kernels.nvgpu build | where | remove`."""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from sd3par.config import require
from sd3par.errors import ConfigError, Sd3parError
from sd3par.kernels.nvgpu import build

EXAMPLES = """\
examples:
  python -m sd3par.kernels.nvgpu build                    for Hopper, installed where Paddle finds it
  python -m sd3par.kernels.nvgpu build --arch 80,90,100   also for Ampere and Blackwell
  python -m sd3par.kernels.nvgpu build --out FOLDER       to use with CUSTOM_DEVICE_ROOT=FOLDER

It needs make, g++, CUDA 13's nvcc and the headers of NVIDIA's libraries (pip install 'sd3par[nvgpu]'), and no GPU. If a
plug-in of another Paddle breaks `import paddle`, write CUSTOM_DEVICE_ROOT= before the command."""


def main(argv: Sequence[str]) -> int:
    """Runs the command that `argv` names; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        said = COMMANDS[options.command](options)
    except Sd3parError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(f"{said}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m sd3par.kernels.nvgpu",
        description="Paddle's CPU wheel on NVIDIA GPUs: builds the plug-in.",
        epilog=EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("build", help="compiles and installs it", epilog=EXAMPLES, formatter_class=formatter)
    add.add_argument("--arch", default=",".join(build.DEFAULT_ARCHITECTURES), metavar="LIST", help=_ARCH)
    add.add_argument("--out", type=Path, metavar="FOLDER", help="put the library there instead of where Paddle looks")
    add.add_argument("--no-install", action="store_true", help="leave the library beside its objects, and say where")
    add.add_argument("--dry", action="store_true", help="the one for tests: runs without a GPU, computes nothing")
    add.add_argument("--jobs", type=int, metavar="N", help="compilers at once (default: as many as cores)")
    add.add_argument("--nvidia", type=Path, metavar="FOLDER", help="the folder `nvidia` of NVIDIA's unpacked wheels")
    commands.add_parser("where", help="prints the installed file")
    commands.add_parser("remove", help="removes the installed file")
    return parser


_ARCH = "compute capabilities, as 80,90,100 (default: %(default)s)"


def _build(options: Namespace) -> str:
    if options.dry:
        need = "a folder of your own: the dry plug-in computes nothing and is never installed for Paddle"
        require(options.out is not None or options.no_install, "out", "nothing", need)
    library = build.build(options.arch.split(","), dry=options.dry, nvidia=options.nvidia, jobs=options.jobs)
    return str(library if options.no_install else build.install(library, options.out))


def _where(options: Namespace) -> str:
    file = build.installed()
    require(file.exists(), "plug-in", "nothing", f"one at {file}: python -m sd3par.kernels.nvgpu build")
    return str(file)


def _remove(options: Namespace) -> str:
    removed = build.uninstall()
    return f"removed {removed}" if removed else f"nothing to remove at {build.installed()}"


COMMANDS = {"build": _build, "where": _where, "remove": _remove}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Counts the ops that Paddle runs on the CPU because the plug-in has no kernel for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Paddle 3.3.1 says so in kernel_factory.cc at level 3. (A level for that file alone, GLOG_vmodule, makes Paddle crash
# when it exits, with "double free or corruption"; seen on its CPU build without any plug-in.)
LEVEL = {"GLOG_v": "3", "GLOG_logtostderr": "1", "GLOG_minloglevel": "0"}
_MISSING = re.compile(r"missing nvgpu kernel: (\S+), expected_kernel_key:\(nvgpu, [^,]*, (\w+)\), fallbacking to CPU")
_LOGGED = re.compile(r"[IWEF]\d{4} ")  # how a line of glog begins


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit code, "op dtype" -> times on the CPU, and its last lines, with what of Paddle's log
    is not marked as such."""

    code: int
    fallbacks: dict[str, int]
    tail: str


def count(arguments: Sequence[str], variables: Mapping[str, str] | None = None, tail_lines: int = 40) -> Run:
    """Runs a Python command and counts.

    Args:
        arguments: of the interpreter: ["-m", "module", ...], ["-c", "code"] or ["file.py", ...].
        variables: of the environment, beside this process's.
        tail_lines: how many lines of what it wrote to keep.
    """
    environment = {**os.environ, **LEVEL, **(variables or {})}
    command = [sys.executable, *arguments]
    found: Counter[str] = Counter()
    tail: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if missing := _MISSING.search(line):
                found[" ".join(missing.groups())] += 1
            elif not _LOGGED.match(line):
                tail = [*tail[1 - tail_lines :], line]
    return Run(process.returncode, dict(found), "".join(tail))

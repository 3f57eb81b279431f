"""Runs a sweep: each model and mesh on processes of its own, which measure one case after the other."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3par.launch import endings, record
from sd3par.launch.bench.case import Case, Group, name_of
from sd3par.launch.bench.rank import JOB, ROWS
from sd3par.launch.bench.sweep import PLAIN, Sweep

SCRIPT = Path(__file__).parent.with_name("measure.py")
Row = dict[str, Any]
SKIPPED = "not run: another case that needs no more ran out of memory"


@dataclass(frozen=True)
class Ending:
    """Why processes ended before all cases were measured. loaded: whether the model was there; oom: out of memory."""

    reason: str
    loaded: bool
    oom: bool = False


def run(sweep: Sweep, shared: Row, add: Callable[[Row], None], quiet: bool) -> list[Row]:
    """Measures all cases; returns a row for each, those that failed too, and hands each to `add` as it comes.

    shared: what the rows of a run have in common.
    """
    from tqdm import tqdm

    rows = []
    with tqdm(total=sweep.cases, unit="case", disable=quiet) as bar:
        for group in sweep.groups:
            bar.set_description(f"{group.model} {name_of(group.parallel)}")
            with closing(measured(sweep, group)) as results:
                for case, found in results:
                    rows.append({**shared, "who": _who(case), **group.row(), **case.row(), **_limits(sweep), **found})
                    add(rows[-1])
                    bar.update()
    return rows


def _who(case: Case) -> str:
    return "paddle-eager" if case.engine == PLAIN else "sd3par"


def _limits(sweep: Sweep) -> Row:
    memory = sweep.options.memory_gib
    return {} if memory is None else {"memory_gib": memory}


def measured(sweep: Sweep, group: Group) -> Generator[tuple[Case, Row], None, None]:
    """Yields each case with what was measured, or with why it failed.

    A case that fails ends its processes; others go on with the next one, unless the model could not be loaded. What
    needs no less memory than a case that had not enough is not tried.
    """
    todo, large = list(group.cases), list[Case]()
    while todo:
        ending = yield from _processes(sweep, group, todo)
        if ending is None:
            return
        failed = todo if not ending.loaded else todo[:1]
        for case in failed:
            yield case, {"failed": ending.reason} | ({"oom": True} if ending.oom else {})
        large += failed if ending.oom else []
        rest = todo[len(failed) :]
        for case in [case for case in rest if any(case.needs_no_less(other) for other in large)]:
            yield case, {"failed": SKIPPED}
        todo = [case for case in rest if not any(case.needs_no_less(other) for other in large)]


def _processes(sweep: Sweep, group: Group, todo: list[Case]) -> Generator[tuple[Case, Row], None, Ending | None]:
    """Yields cases as they are measured, and takes them off `todo`; returns why that ended early, or None."""
    from sd3par.launch import spawn

    folder = Path(tempfile.mkdtemp(prefix="sd3par-"))
    options = sweep.options
    job = group.job(
        tuple(todo), device=sweep.kind, memory_gib=options.memory_gib, rank_timeout_s=options.rank_timeout_s
    )
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    words = [*start(sweep, group, folder), str(SCRIPT), f"--run_dir={folder}", *(["--debug"] if options.debug else [])]
    environment = spawn.worker_environment(group.parallel.world, sweep.kind)
    news, reason = News(folder / ROWS, options.limit_s), None
    try:
        with spawn.started(words, environment, folder) as launcher:
            while (code := launcher.poll()) is None:
                yield from _pairs(news, todo)
                news.check()
                time.sleep(spawn.POLL_S)
        yield from _pairs(news, todo)
    except TimeoutError as error:
        return Ending(str(error), news.loaded)
    if code:
        reason = spawn.failure(code, folder)["reason"]
    elif todo:
        reason = "its processes ended without a result"
    if reason is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return Ending(f"{reason}; logs: {folder}", news.loaded, endings.is_out_of_memory(reason))


def start(sweep: Sweep, group: Group, folder: Path) -> list[str]:
    """Returns the command that starts a group's processes, without the script: one alone needs no launcher."""
    from sd3par.launch import spawn

    world, wanted = group.parallel.world, sweep.options.devices
    if world == 1 and wanted is None:
        return [sys.executable]
    devices = spawn.choose_devices(sweep.kind, sweep.count, world, None if wanted is None else wanted[:world])
    return spawn.launcher_words(folder, world, None if devices is None else spawn.labels(sweep.kind, devices))


def _pairs(news: News, todo: list[Case]) -> Iterator[tuple[Case, Row]]:
    for row in news.read():
        yield todo.pop(0), row


class News:
    """What processes wrote to a file of JSON lines since it was last looked at.

    limit_s: how long they may be silent.
    """

    def __init__(self, file: Path, limit_s: float) -> None:
        self._file, self._limit_s = file, limit_s
        self._at, self._last = 0, time.monotonic()
        self._load_s: float | None = None

    @property
    def loaded(self) -> bool:
        """Whether the model was loaded."""
        return self._load_s is not None

    def read(self) -> list[Row]:
        """Returns the new rows of measured cases, each with the seconds that loading took."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]  # a line may be half written
        if new:
            self._at, self._last = self._at + len(new), time.monotonic()
        rows = [json.loads(line) for line in new.splitlines()]
        if rows and not self.loaded:
            self._load_s = rows.pop(0)["load_s"]
        return [{**row, "load_s": self._load_s} for row in rows]

    def check(self) -> None:
        """Raises TimeoutError where nothing came for too long."""
        if time.monotonic() - self._last > self._limit_s:
            raise TimeoutError(f"took longer than {self._limit_s:g} s")


class Files:
    """Where rows are kept: JSON lines and CSV in a folder, JSON lines in a file; each row as soon as it is there."""

    def __init__(self, kind: str, results: str | None, file: str | None) -> None:
        folder = None if results is None else Path(results)
        self._json = [folder / f"{kind}.jsonl"] if folder else []
        self._json += [] if file is None else [Path(file)]
        self._csv = folder / f"{kind}.csv" if folder else None
        for each in self._json + ([self._csv] if self._csv else []):
            record.make(each)

    def add(self, row: Row) -> None:
        """Appends a row to all."""
        for file in self._json:
            record.append(file, row)
        if self._csv is not None:
            record.append_csv(self._csv, row)

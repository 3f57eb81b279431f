"""Runs a sweep: each model and mesh on processes of its own, which measure one case after the other."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sd3par.errors import is_out_of_memory
from sd3par.launch import record
from sd3par.launch.bench.case import Case, Group, name_of
from sd3par.launch.bench.rank import JOB, ROWS
from sd3par.launch.bench.sweep import PLAIN

SCRIPT = Path(__file__).parent.with_name("measure.py")
Row = dict[str, Any]
SKIPPED = "not run: another case that needs no more ran out of memory"


class Result(NamedTuple):
    """A case, on what it was measured, and its row."""

    group: Group
    case: Case
    row: Row


@dataclass(frozen=True)
class Ending:
    """Why processes ended before all cases were measured. loaded: whether the model was there; oom: out of memory."""

    reason: str
    loaded: bool
    oom: bool = False


@dataclass(frozen=True)
class Machine:
    """Where cases are measured, and how long that may take.

    kind: of the devices; count: how many there are; devices: which of them, None for the first ones; limit_s: for one
    case; budget_s: for all together, None for no end; begin: when they began, by time.time().
    """

    kind: str
    count: int
    devices: tuple[int, ...] | None
    rank_timeout_s: float
    limit_s: float
    budget_s: float | None
    begin: float
    debug: bool

    @classmethod
    def of(cls, options: Namespace) -> Machine:
        """Returns what flags ask for."""
        from sd3par import device
        from sd3par.launch.spawn import device_count

        kind = device.choose(options.dtype[0], options.device).kind
        return cls(kind, device_count(kind), options.devices, options.rank_timeout_s, options.limit_s, options.budget_s,
                   time.time(), options.debug)  # fmt: skip

    @property
    def gpu(self) -> str:
        """The devices in words; "" on the CPU."""
        from sd3par import device

        return "" if self.kind == "cpu" else f"{self.count} x {device.choose('auto', self.kind).description()}"

    @property
    def end(self) -> float | None:
        """When no further case begins, by time.time()."""
        return None if self.budget_s is None else self.begin + self.budget_s


def run(
    machine: Machine, pairs: Sequence[tuple[Group, Case]], shared: Row, add: Callable[[Row], None], quiet: bool
) -> list[Result]:
    """Measures cases; returns a result for each, failed ones too, and hands each row to `add` as it comes.

    Cases of one group are measured by the same processes, whatever kind they are of: the model is loaded once.

    shared: what the rows of a run have in common.
    """
    from tqdm import tqdm

    groups: dict[Group, list[Case]] = {}
    for group, case in pairs:
        groups.setdefault(group, []).append(case)
    done = []
    with tqdm(total=len(pairs), unit="case", disable=quiet) as bar:
        for group, cases in groups.items():
            bar.set_description(f"{group.model} {name_of(group.parallel)}")
            with closing(measured(machine, group, cases)) as results:
                for case, found in results:
                    who = "paddle-eager" if case.engine == PLAIN else "sd3par"
                    done.append(Result(group, case, {**shared, "who": who, **group.row(), **case.row(), **found}))
                    add(done[-1].row)
                    bar.update()
    return done


def measured(machine: Machine, group: Group, cases: Sequence[Case]) -> Generator[tuple[Case, Row], None, None]:
    """Yields each case with what was measured, or with why it failed.

    A case that fails ends its processes; others go on with the next one, unless the model could not be loaded. What
    needs no less memory than a case that had not enough is not tried.
    """
    todo, large = list(cases), list[Case]()
    while todo:
        if machine.end is not None and time.time() > machine.end:
            ending: Ending | None = Ending(f"not run: the budget of {machine.budget_s:g} s was used up", loaded=False)
        else:
            ending = yield from _processes(machine, group, todo)
        if ending is None:
            return
        failed = todo[:1] if ending.loaded else todo
        for case in failed:
            yield case, {"failed": ending.reason} | ({"oom": True} if ending.oom else {})
        large += failed if ending.oom else []
        rest = todo[len(failed) :]
        for case in [case for case in rest if any(case.needs_no_less(other) for other in large)]:
            yield case, {"failed": SKIPPED}
        todo = [case for case in rest if not any(case.needs_no_less(other) for other in large)]


def _processes(
    machine: Machine, group: Group, todo: list[Case]
) -> Generator[tuple[Case, Row], None, Ending | None]:  # fmt: skip
    """Yields cases as they are measured, and takes them off `todo`; returns why that ended early, or None."""
    from sd3par.launch import spawn

    folder = Path(tempfile.mkdtemp(prefix="sd3par-"))
    job = group.job(todo, device=machine.kind, rank_timeout_s=machine.rank_timeout_s, end=machine.end)
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    words = [
        *start(machine, group, folder),
        str(SCRIPT),
        f"--run_dir={folder}",
        *(["--debug"] if machine.debug else []),
    ]
    environment = spawn.worker_environment(group.parallel.world, machine.kind)
    news, reason = News(folder / ROWS, machine.limit_s), None
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
    return Ending(f"{reason}; logs: {folder}", news.loaded, is_out_of_memory(reason))


def start(machine: Machine, group: Group, folder: Path) -> list[str]:
    """Returns the command that starts a group's processes, without the script: one alone needs no launcher."""
    from sd3par.launch import spawn

    world, wanted = group.parallel.world, machine.devices
    if world == 1 and wanted is None:
        return [sys.executable]
    devices = spawn.choose_devices(machine.kind, machine.count, world, None if wanted is None else wanted[:world])
    return spawn.launcher_words(folder, world, None if devices is None else spawn.labels(machine.kind, devices))


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
    """Where rows are kept, each as soon as it is there: BENCH.jsonl and BENCH.csv in a folder, JSON lines in a file."""

    def __init__(self, kinds: Iterable[str], results: str | None, file: str | None) -> None:
        self._folder = None if results is None else Path(results)
        self._file = None if file is None else Path(file)
        files = [] if self._file is None else [self._file]
        if self._folder is not None:
            files += [self._folder / f"{kind}.{suffix}" for kind in kinds for suffix in ("jsonl", "csv")]
        for each in files:
            record.make(each)

    def add(self, row: Row) -> None:
        """Appends a row."""
        if self._file:
            record.append(self._file, row)
        if self._folder:
            record.append(self._folder / f"{row['bench']}.jsonl", row)
            record.append_csv(self._folder / f"{row['bench']}.csv", row)

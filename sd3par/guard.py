"""A process beside each rank, for the time when the rank can neither hear nor speak.

A call that waits for the device with Python's lock held stops all threads of a process, the watchdog's too. Paddle's
`CUDAGraph.replay`, `to_tensor` and `item` do (3.3.1), and a replay waits where others fill the device's queue: on H200
a rank whose peer was killed in the loop still stood there a minute later. The guard hears nothing from its rank then,
listens in its place, and ends it.

A rank that a signal ends cannot say so, and one that aborts cannot say why: where gloo loses a rank in the middle of an
exported program, Paddle ends the process with an exception that nothing catches (3.3.1). Their guards say it. What is
left of a process is how it ended, until its parent has asked; so one that aborts, which others' ends may cause, also
has faulthandler write to its guard.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sd3par.heartbeat import Kind, Line, Process
from sd3par.watch import BEAT_S, News, Peer, Watch

DEAF = 0.25  # of the time for which a rank may be silent: after so long without a sign the guard takes its place
NEWS_S = 2.0  # how long the guard of a rank that aborted looks for the reason
END_S = 15.0  # at most, for the end of a rank, which waits for ever for a device that does
_BEAT, _REST, _END = b".", b"-", b"!"

log = logging.getLogger(__name__)


class Guard:
    """A rank's side of it.

    Args:
        watch: what the rank's watchdog has.
        rank: whose guard it is.
    """

    def __init__(self, watch: Watch, rank: int) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        line = watch.line
        if line is None:
            return
        try:
            self._process = _started(line)
        except OSError as error:
            log.warning("no guard beside this process: %s", error)
            return
        peers = [[peer.rank, peer.address, peer.pid, peer.born] for peer in watch.peers]
        cries = not faulthandler.is_enabled()  # else it writes where somebody else wants it
        about = {"rank": rank, "pid": os.getpid(), "timeout_s": watch.timeout_s, "peers": peers, "line": line.number,
                 "key": line.key.hex(), "cries": cries}  # fmt: skip
        self._write(json.dumps(about).encode() + b"\n")
        signs: Any = self._process.stdin
        os.set_blocking(signs.fileno(), False)
        if cries:
            faulthandler.enable(signs, all_threads=False)

    def beat(self) -> None:
        """Says that the rank hears what happens."""
        self._write(_BEAT)

    def rest(self) -> None:
        """Says that the rank needs no one to hear for it any more."""
        self._write(_REST)

    def end(self) -> None:
        """Says that the rank is to end within seconds, in whatever state its device is."""
        self._write(_END)

    def _write(self, data: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):
                os.write(self._process.stdin.fileno(), data)


def _started(line: Line) -> subprocess.Popen[bytes]:
    """Starts the process, in a Python that reads nothing but its own library and this package; not as a rank."""
    start = "import sys; sys.path.append(sys.argv[1]); from sd3par.guard import main; main()"
    packages = str(Path(__file__).resolve().parent.parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE")}
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", start, packages], stdin=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, pass_fds=[line.number], env=environment)  # fmt: skip


class _Ward:
    """The guard's side: the rank's process, what it last said, and when.

    cries: whether faulthandler lets it say how it ends where it ends itself.
    """

    def __init__(self, pid: int, signs: int, timeout_s: float, cries: bool) -> None:
        self.pid, self._signs, self.cries, self._cry = pid, signs, cries, b""
        self._deaf_s, self._end_s = DEAF * timeout_s, min(timeout_s, END_S)
        self._last, self._heard = _BEAT, time.monotonic()

    def listen(self, wait: bool) -> bool:
        """Reads, or waits for, a sign; returns whether the process is there. Time in which this one was stopped does
        not count."""
        wait_s = self._deaf_s / 4 if wait else 0.0
        begin = time.monotonic()
        if select.select([self._signs], [], [], wait_s)[0]:
            signs = os.read(self._signs, 4096)
            if self._cry or signs.strip(_BEAT + _REST + _END):
                self._cry += signs
            self._last, self._heard = signs[-1:] if signs and not self._cry else self._last, time.monotonic()
            return bool(signs)
        late_s, process = time.monotonic() - begin - wait_s, Process.look(self.pid)
        if late_s > self._deaf_s or process.stopped:  # the others see that it is stopped
            self._heard = time.monotonic()
        return not process.dead

    def ended(self) -> Process | None:
        """Returns the process that has ended, None where it had said before that it would.

        Its files are closed before it is dead: a little, or for ever where its last act waits for the device.
        """
        deadline = self._heard + self._end_s if self._last == _END else time.monotonic() + 1.0
        while not (process := Process.look(self.pid)).dead and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.stuck:
            self.kill()
        return process if self._last == _BEAT else None

    @property
    def aborted(self) -> bool:
        """Whether it has cried that it aborts, and not that it breaks down in another way."""
        return b"Aborted" in self._cry

    @property
    def deaf(self) -> bool:
        """Whether it hears nothing, and should."""
        return self._last == _BEAT and time.monotonic() - self._heard > self._deaf_s

    @property
    def stuck(self) -> bool:
        """Whether it does not come to its end."""
        return self._last == _END and time.monotonic() - self._heard > self._end_s

    def kill(self) -> None:
        """Ends it."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)


def guard(signs: int) -> str:
    """Guards the rank that writes to `signs`, until it has ended; returns why, "" if it could say so itself."""
    about = json.loads(_first_line(signs))
    line = Line.of(about["line"], about["rank"], bytes.fromhex(about["key"]))
    ward = _Ward(about["pid"], signs, about["timeout_s"], about["cries"])
    while ward.listen(wait=True):
        if ward.stuck:
            ward.kill()
        if ward.deaf:
            news = _look_out(ward, _watch(about, line))
            if news is not None:
                ward.kill()
                return f"[rank {about['rank']}] {news.reason}"
    process = ward.ended()
    news = None if process is None else _last_words(about["rank"], process, ward, _watch(about, line))
    return "" if news is None else f"[rank {about['rank']}] {news.reason}"


def _watch(about: dict[str, Any], line: Line) -> Watch:
    """Returns what a guard watches the other ranks with; the time of silence begins now."""
    now = time.monotonic()
    peers = [Peer(rank, tuple(address), pid, born, now) for rank, address, pid, born in about["peers"]]
    return Watch(line, peers, about["timeout_s"])


def _last_words(rank: int, process: Process, ward: _Ward, watch: Watch) -> News | None:
    """Returns why a rank ended in the middle of its work, None where that is not known; tells the others."""
    own = News(f"rank {rank} (pid {process.pid}) {process.how_it_ended()}")
    if process.aborted or ward.aborted or not (process.state or ward.cries):  # perhaps because of another rank
        news = _news(watch, NEWS_S)
    elif process.state:
        news = own if process.killed_by else None
    else:  # its parent was here first; it did not abort, unless faulthandler got another file later
        news = _news(watch, 0.0)
        news = own if news is None or news.doubt else news
    if news is None or news.doubt == 2:  # of two that aborted nobody knows which was the first
        return None
    watch.spread(news)
    return news


def _news(watch: Watch, within_s: float) -> News | None:
    """Returns what is known within a time of why all end, without a doubt if somebody says so."""
    deadline, news = time.monotonic() + within_s, watch.look()
    while time.monotonic() < deadline and (news is None or news.doubt):
        news = watch.look()
    return news


def _look_out(ward: _Ward, watch: Watch) -> News | None:
    """Watches and beats in the place of a deaf rank; returns what brings all down, None once it hears again or ends.

    It beats no longer than it takes to find out who is lost: the others end a rank that is held for ever.
    """
    begin, next_beat = time.monotonic(), 0.0
    while ward.listen(wait=False) and ward.deaf:
        now = time.monotonic()
        if now >= next_beat and now < begin + 2 * watch.timeout_s:
            watch.tell(Kind.BEAT)
            next_beat = now + BEAT_S
        news = watch.look()
        if news is not None:
            watch.spread(news)
            return news
    return None


def _first_line(number: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        data += os.read(number, 1) or b"\n"
    return data


def main() -> None:
    """Guards the rank that started this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the rank's business: it ends, and the guard then
        signal.signal(number, signal.SIG_IGN)
    with suppress(ValueError):  # the rank ended before it had said anything
        reason = guard(sys.stdin.fileno())
        if reason:
            sys.stderr.write(f"sd3par: error: {reason}\n")

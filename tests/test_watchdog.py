"""A dead, stopped or failing rank ends the others, with the reason; ranks that finish alarm nobody."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sd3par.errors import ConfigError, RankFailure, describe
from sd3par.guard import _Ward
from sd3par.heartbeat import REASON_BYTES, Kind, Line, Message, Process, machine
from sd3par.mesh import Mesh
from sd3par.watch import Peer, Watch
from sd3par.watchdog import ALIKE_S, EXIT_CODE, Watchdog
from tests.ranks import ROOT
from tests.watchdog_ranks import GUARDED_S, SCENES, TIMEOUT_S, WORLD

KEY = bytes(range(32))
pytestmark = pytest.mark.xdist_group("watchdog")  # the scenes are played once


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every scene has been played."""
    folder = tmp_path_factory.mktemp("scenes")
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.watchdog_ranks", str(folder)], cwd=ROOT, timeout=60,
                   check=True)  # fmt: skip
    return folder


def endings(folder: Path, scene: str) -> list[dict]:
    return [json.loads((folder / scene / f"{rank}.json").read_text()) for rank in range(WORLD)]


def said(folder: Path, scene: str, rank: int) -> str:
    return (folder / scene / f"{rank}.log").read_text()


def test_killed_rank(played: Path) -> None:
    ends = endings(played, "killed")
    assert [end["code"] for end in ends] == [EXIT_CODE, -signal.SIGKILL, EXIT_CODE]
    assert all(end["seconds"] < TIMEOUT_S + 1 for end in ends)  # seen at once, not after the silence
    for rank in (0, 2):
        # Who reaps it before the others look takes the signal's number away.
        how = r"(was killed by SIGKILL \(out of memory\?\)|ended without a word)"
        assert re.match(rf"rank 1 \(pid {ends[1]['pid']}\) {how}\n", said(played, "killed", rank))
        assert len(said(played, "killed", rank).splitlines()) == 1


def test_stopped_rank_is_killed(played: Path) -> None:
    ends = endings(played, "stopped")
    assert [end["code"] for end in ends] == [EXIT_CODE, -signal.SIGKILL, EXIT_CODE]
    assert all(TIMEOUT_S <= end["seconds"] < TIMEOUT_S + 6 for end in ends)
    texts = [said(played, "stopped", rank) for rank in (0, 2)]
    assert all(f"rank 1 (pid {ends[1]['pid']}) has not answered for {TIMEOUT_S:g} s" in text for text in texts)
    assert any("it is stopped" in text for text in texts)


def test_error_of_one_rank_is_told(played: Path) -> None:
    assert [end["code"] for end in endings(played, "raised")] == [EXIT_CODE, 1, EXIT_CODE]
    for rank in (0, 2):
        assert said(played, "raised", rank) == "rank 1: ValueError: the cat ate it\n"
    assert said(played, "raised", 1).startswith("raised ValueError: the cat ate it")


def test_error_that_is_not_of_all_is_told_a_little_later(played: Path) -> None:
    ends = endings(played, "unlike")
    assert [end["code"] for end in ends] == [EXIT_CODE, 1, EXIT_CODE]
    assert all(ALIKE_S < end["seconds"] < ALIKE_S + 4 for end in ends)
    for rank in (0, 2):
        assert said(played, "unlike", rank) == "rank 1: KeyError: 'no cat'\n"
    assert said(played, "unlike", 1).startswith("raised KeyError: 'no cat'")


def test_error_of_all_with_devices_that_wait_for_ever(played: Path) -> None:
    ends = endings(played, "unheard")
    assert [end["code"] for end in ends] == [EXIT_CODE] * WORLD
    assert all(2 * ALIKE_S < end["seconds"] < 2 * ALIKE_S + 6 for end in ends)
    for rank in range(WORLD):
        assert re.fullmatch(r"rank \d: KeyError: 'no cat'\n", said(played, "unheard", rank))


def test_failed_collective_names_the_dead_rank(played: Path) -> None:
    assert [end["code"] for end in endings(played, "reset")] == [EXIT_CODE, -signal.SIGKILL, EXIT_CODE]
    for rank in (0, 2):
        assert said(played, "reset", rank).startswith("rank 1 (pid ")


def test_failed_collective_without_a_dead_rank(played: Path) -> None:
    assert [end["code"] for end in endings(played, "lost")] == [EXIT_CODE, 1, EXIT_CODE]
    assert said(played, "lost", 1).startswith("raised RankFailure: rank 1: RuntimeError: [pair.cc:584] Timed out")
    assert said(played, "lost", 0).startswith("rank 1: RuntimeError: [pair.cc:584] Timed out")


def test_a_rank_that_finished_is_not_waited_for(played: Path) -> None:
    ends = endings(played, "left_behind")
    assert [end["code"] for end in ends] == [EXIT_CODE, 0, EXIT_CODE]
    assert all(end["seconds"] < TIMEOUT_S + 6 for end in ends)
    texts = {said(played, "left_behind", rank) for rank in (0, 2)}
    reason = (
        rf"rank 1 \(pid {ends[1]['pid']}\) has finished, and rank [02] waits for it: all ranks make the same calls\n"
    )
    assert all(re.fullmatch(reason, text) for text in texts)


@pytest.mark.parametrize("scene", ["agreed", "alike", "finished", "late", "busy", "suspended", "deaf_for_long"])
def test_no_false_alarm(played: Path, scene: str) -> None:
    ends = endings(played, scene)
    assert [end["code"] for end in ends] == [0] * WORLD
    assert [said(played, scene, rank) for rank in range(WORLD)] == [""] * WORLD
    assert ends[0]["seconds"] > 2 * TIMEOUT_S


@pytest.mark.parametrize("scene", ["deaf_killed", "deaf_stopped"])
def test_the_guard_of_a_rank_that_hears_nothing(played: Path, scene: str) -> None:
    """Both others are held in a call that lets no thread run."""
    ends = endings(played, scene)
    assert [end["code"] for end in ends] == 3 * [-signal.SIGKILL]
    assert all(end["seconds"] < 2 * GUARDED_S + 6 for end in ends)
    how = {"deaf_killed": r"(was killed by SIGKILL \(out of memory\?\)|ended without a word)",
           "deaf_stopped": rf"has not answered for {GUARDED_S:g} s(: it is stopped)?"}[scene]  # fmt: skip
    for rank in (0, 2):
        pattern = rf"sd3par: error: \[rank {rank}\] rank 1 \(pid {ends[1]['pid']}\) {how}\n"
        assert re.fullmatch(pattern, said(played, scene, rank))


def test_the_guard_hears_an_error_of_another_rank(played: Path) -> None:
    assert [end["code"] for end in endings(played, "deaf_raised")] == [-signal.SIGKILL, 1, -signal.SIGKILL]
    for rank in (0, 2):
        assert said(played, "deaf_raised", rank) == f"sd3par: error: [rank {rank}] rank 1: ValueError: the cat ate it\n"


def test_the_guards_of_ranks_that_abort(played: Path) -> None:
    """Each says which rank was the first, that rank's own guard included."""
    ends = endings(played, "aborted")
    assert [end["code"] for end in ends] == [-signal.SIGABRT, -signal.SIGKILL, -signal.SIGABRT]
    for rank in range(WORLD):
        said_last = said(played, "aborted", rank).splitlines()[-1]
        reason = f"rank 1 (pid {ends[1]['pid']}) was killed by SIGKILL (out of memory?)"
        assert said_last == f"sd3par: error: [rank {rank}] {reason}"


def test_the_guards_of_ranks_that_abort_and_are_gone(played: Path) -> None:
    """Nothing is left of them that says how they ended, but that the first has not cried."""
    ends = endings(played, "aborted_unseen")
    assert [end["code"] for end in ends] == [-signal.SIGABRT, -signal.SIGKILL, -signal.SIGABRT]
    for rank in range(WORLD):
        wait_for(lambda rank=rank: "error" in said(played, "aborted_unseen", rank))
        said_last = said(played, "aborted_unseen", rank).splitlines()[-1]
        assert said_last == f"sd3par: error: [rank {rank}] rank 1 (pid {ends[1]['pid']}) ended without a word"


@pytest.mark.parametrize(("how", "aborted"), [("Aborted", True), ("Segmentation fault", False)])
def test_only_who_aborts_may_do_so_because_of_others(how: str, aborted: bool) -> None:
    signs, rank = os.pipe()
    ward = _Ward(os.getpid(), signs, TIMEOUT_S, cries=True)
    for piece in ("..", "Fatal Python error: ", how, "\n\n", "."):
        os.write(rank, piece.encode())
        assert ward.listen(wait=False)
    os.close(rank)
    assert not ward.listen(wait=False) and ward.aborted == aborted
    os.close(signs)


@pytest.mark.parametrize("scene", ["stuck", "stuck_at_last"])
def test_an_end_that_waits_for_ever(played: Path, scene: str) -> None:
    assert [end["code"] for end in endings(played, scene)] == [0, -signal.SIGKILL, 0]
    assert [said(played, scene, rank) for rank in range(WORLD)] == [""] * WORLD


def test_vanished_launcher(played: Path) -> None:
    pids = [int((played / "orphaned" / f"{rank}.pid").read_text()) for rank in range(WORLD)]
    deadline = time.monotonic() + 5
    while not all(Process.look(pid).dead for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(Process.look(pid).dead for pid in pids)
    assert "the launcher (pid " in said(played, "orphaned", 2)


def test_every_scene_is_tested() -> None:
    assert all(f'"{scene}"' in Path(__file__).read_text(encoding="utf-8") for scene in SCENES)


def test_message_round_trip() -> None:
    message = Message(Kind.FAILED, 3, 77, "rank 3: out of memory")
    assert Message.open(message.seal(KEY), KEY) == message


def test_message_of_another_run_is_dropped() -> None:
    data = Message(Kind.FAILED, 3, 77, "reason").seal(KEY)
    assert Message.open(data, bytes(32)) is None
    assert Message.open(data[:-1], KEY) is None
    assert Message.open(data + b"\0", KEY) is None
    assert Message.open(b"", KEY) is None
    for index in range(len(data)):
        assert Message.open(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :], KEY) is None


def test_reason_is_one_printable_line() -> None:
    data = Message(Kind.FAILED, 0, 1, "grün\n\x1b[2J" + "x" * 1000).seal(KEY)
    message = Message.open(data, KEY)
    assert message is not None
    assert message.reason.isprintable()
    assert len(message.reason) <= 2 * REASON_BYTES


def test_repeated_message_does_not_count() -> None:
    """A datagram that someone recorded cannot keep a dead rank alive."""
    peer = Peer(1, ("127.0.0.1", 0), 0, 0, heard=0.0)
    watch = Watch(None, [peer], TIMEOUT_S)
    watch._take(Message(Kind.BEAT, 1, 5))
    first = peer.heard
    assert first > 0
    watch._take(Message(Kind.BEAT, 1, 5))
    watch._take(Message(Kind.BEAT, 2, 9))
    assert peer.heard == first


def test_who_speaks_later_has_the_higher_number() -> None:
    """A rank and its guard speak through one line, by turns."""
    rank, other = Line.open("127.0.0.1", 0), Line.open("127.0.0.1", 1)
    guard = Line.of(os.dup(rank.number), 0, KEY)
    for line in (rank, other):
        line.use_key(KEY)
    for line in (rank, rank, guard, rank, guard, guard):
        line.tell([other.address], Kind.BEAT)
    numbers = [message.sequence for message in other.hear(0.5)]
    assert len(numbers) == 6 and numbers == sorted(set(numbers))
    for line in (rank, other, guard):
        line.close()


def test_line_drops_strangers_and_a_flood_ends() -> None:
    first, second = Line.open("127.0.0.1", 0), Line.open("127.0.0.1", 1)
    second.use_key(KEY)
    for _ in range(100):
        first.tell([second.address], Kind.FAILED, "forged")
    assert second.hear(0.1) == []
    first.use_key(KEY)
    for _ in range(100):
        first.tell([second.address], Kind.BEAT)
    assert len(second.hear(0.1)) <= 64
    first.close()
    second.close()


def test_process_states() -> None:
    own = Process.look(os.getpid())
    assert own.state == "R" and own.born > 0 and not own.dead
    assert Process.look(2**22 + 1).dead
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: Process.look(child.pid).stopped)
        child.send_signal(signal.SIGKILL)
        wait_for(lambda: Process.look(child.pid).dead)
        assert Process.look(child.pid).how_it_ended() == "was killed by SIGKILL (out of memory?)"
        assert (Process.look(child.pid).killed_by, Process.look(child.pid).aborted) == (signal.SIGKILL, False)
    assert Process.look(child.pid).how_it_ended() == "ended without a word"


def test_every_signal_has_a_name() -> None:
    """Real-time signals among them, of which Python names the first and the last only."""
    ways = [Process(1, 1, "Z", number).how_it_ended() for number in range(1, signal.NSIG)]
    assert ways[signal.SIGTERM - 1] == "was killed by SIGTERM"
    assert ways[39] == "was killed by signal 40"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_machine_is_the_same_for_all_processes_of_one() -> None:
    command = [sys.executable, "-c", "from sd3par.heartbeat import machine; print(machine())"]
    assert int(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout) == machine()


def test_one_process_needs_no_watchdog() -> None:
    dog = Watchdog.start(Mesh.single())
    with pytest.raises(RuntimeError, match="^gloo$"), dog.told_of_errors():
        raise RuntimeError("gloo")
    dog.fail("nobody hears it")
    dog.stop()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1.9, 4000.0, float("nan"), float("inf"), "20", None])
def test_timeout_is_checked(timeout_s: object) -> None:
    with pytest.raises(ConfigError, match="rank_timeout_s"):
        Watchdog.start(Mesh.single(), timeout_s)


def test_describe() -> None:
    stack = "\n----\nC++ Traceback:\n----\n0 paddle::f()\n\n----\nError Message Summary:\n----\n"
    assert describe(ValueError(f"{stack}InvalidArgumentError: shapes differ\n [Hint]")) == (
        "InvalidArgumentError: shapes differ"
    )
    assert describe(MemoryError(f"{stack}ResourceExhaustedError: \n\nOut of memory\n")) == (
        "ResourceExhaustedError: Out of memory"
    )
    assert describe(ValueError("one\ntwo")) == "ValueError: one"
    assert describe(MemoryError()) == "MemoryError"
    assert describe(KeyboardInterrupt()) == "interrupted"
    assert describe(RankFailure("rank 1 is gone")) == "rank 1 is gone"
    assert len(describe(ValueError("x" * 9999))) <= 220

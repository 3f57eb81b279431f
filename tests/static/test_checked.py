"""Files that were compared once are not hashed again; whatever changed them, they are refused as before."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest

from sd3par.errors import CheckpointError
from sd3par.static import checked, parameters, reader
from sd3par.static.parameters import Parameters, tensors
from sd3par.static.reader import Reader
from sd3par.weights.ahead import Ahead
from tests.ranks import ROOT

pytestmark = pytest.mark.usefixtures("on_the_cpu")

TARGETS = ("cpu", "cuda")
SIZES = (3, 70, 0, 41)  # numbers in each tensor: fp32 at places that 4 does not divide
REFUSED = "changed since it was exported"
TICK_S = 0.02  # of a file's times: 10 ms at most on Linux's own file systems


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, blocks of 64 bytes, and files that are as old as they must be at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "BLOCK", 64)
    monkeypatch.setattr(checked, "SETTLED_NS", 0)
    return tmp_path / "cache" / "sd3par" / "checked"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of tensors, as Paddle writes it."""
    data = b""
    for index, size in enumerate(SIZES):
        described = bytes([8, 5, 16, size])  # fp32 [size]
        numbers = np.arange(size, dtype=np.float32) + index
        data += bytes(16) + len(described).to_bytes(4, "little") + described + numbers.tobytes()
    (tmp_path / "x.pdiparams").write_bytes(data)
    return tmp_path / "x.pdiparams"


class Hashing:
    """Stands in for hashlib; counts bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def sha256(self) -> Any:
        """Returns what hashes and counts."""
        found = hashlib.sha256()

        def update(data: memoryview) -> None:
            self.bytes += len(data)
            found.update(data)

        return SimpleNamespace(update=update, hexdigest=found.hexdigest)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Hashing:
    """What the reader hashes by."""
    found = Hashing()
    monkeypatch.setattr(reader, "hashlib", found)
    return found


def digests(path: Path) -> list[str]:
    data = path.read_bytes()
    return [hashlib.sha256(data[at : at + 64]).hexdigest() for at in range(0, len(data), 64)]


def opened(path: Path, wanted: list[str], target: str = "cpu") -> Reader:
    manifest: Any = SimpleNamespace(files={path.name: {"sha256": wanted}}, target=target)
    return Reader(path.parent, manifest, [path.name])


def read(path: Path, wanted: list[str], target: str = "cpu") -> None:
    """Reads a file, and compares what is found with what the fixture wrote."""
    with closing(opened(path, wanted, target)) as found, Ahead(1 << 10, 2) as ahead:
        read_all = list(tensors(found, path.name, ahead))
    assert [one.shape for one in read_all] == [[size] for size in SIZES]
    for index, (one, size) in enumerate(zip(read_all, SIZES, strict=True)):
        assert bool((one == paddle.arange(size, dtype="float32") + index).all())


def another(data: bytes) -> bytes:
    """Returns as many bytes, when the clock of files has gone on."""
    time.sleep(TICK_S)
    return data[:-1] + b"?"


@pytest.mark.parametrize("target", TARGETS)
def test_compared_once(path: Path, cache: Path, hashing: Hashing, target: str) -> None:
    wanted = digests(path)
    read(path, wanted, target)
    assert hashing.bytes == path.stat().st_size
    assert [one.stat().st_size for one in cache.iterdir()] == [0]
    for other in TARGETS:
        read(path, wanted, other)
    assert hashing.bytes == path.stat().st_size


def test_files_reach_a_device(path: Path, cache: Path, dry_plugin: Path) -> None:
    """From places in a file that no dtype divides; the first start compares, the second one reads ahead."""
    code = """if True:
        import sys
        from pathlib import Path
        import paddle
        from sd3par.static import checked, parameters, reader
        from tests.static import test_checked
        reader.BLOCK, checked.SETTLED_NS = 64, 0
        paddle.set_device("nvgpu:0")
        path = Path(sys.argv[1])
        for known in (False, True):
            found = test_checked.opened(path, test_checked.digests(path), "cuda")
            assert found.files[path.name].direct == known
            copies = parameters.Parameters(found, [path.name])
            tensors = copies.take(path.name)
            copies.close()
            assert all(one.place.is_custom_place() for one in tensors)
            print([one.numpy().tolist() for one in tensors])
    """
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(dry_plugin), "GLOG_minloglevel": "2"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path)], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == 2 * [str([[float(index + at) for at in range(size)] for index, size in
                                                 enumerate(SIZES)])]  # fmt: skip


@pytest.mark.parametrize("known", [False, True])
def test_who_gives_up_reads_no_further(path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Nor leaves a thread, or a file that is open."""
    monkeypatch.setattr(parameters, "beside_device", lambda: Ahead(1 << 10, 2))
    wanted = digests(path)
    if known:
        read(path, wanted)
    copies = Parameters(opened(path, wanted, "cuda"), [path.name])
    copies.close()
    assert not [one.name for one in threading.enumerate() if one.name.startswith("sd3par")]
    assert str(path) not in [os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")]


def test_everything_is_compared_again_without_the_cache(path: Path, cache: Path, hashing: Hashing) -> None:
    for _ in range(2):
        read(path, digests(path))
        for one in cache.iterdir():
            one.unlink()
        cache.rmdir()
    assert hashing.bytes == 2 * path.stat().st_size


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(another(path.read_bytes()))


def by_rename(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(another(path.read_bytes()))
    other.rename(path)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("change", [in_place, by_rename])
def test_a_changed_file_of_the_same_size_and_time(path: Path, change: Callable[[Path], None], target: str) -> None:
    wanted, before = digests(path), path.stat()
    read(path, wanted, target)
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=REFUSED):
            read(path, wanted, target)


def test_the_record_of_another_file(path: Path, cache: Path, hashing: Hashing) -> None:
    """The same bytes elsewhere are another file, and other digests of the same file another claim."""
    wanted, other = digests(path), path.with_name("other.pdiparams")
    read(path, wanted)
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    hashing.bytes = 0
    read(other, wanted)
    assert hashing.bytes == other.stat().st_size and len(list(cache.iterdir())) == 2
    with pytest.raises(CheckpointError, match=REFUSED):
        read(path, wanted[:-1] + wanted[:1])


def test_every_part_of_a_files_state_counts(path: Path) -> None:
    with path.open("rb") as file:
        state = checked._State.of(file)
    others = [state._replace(**{name: value + 1}) for name, value in state._asdict().items()]
    assert len({checked._path(one, digests(path)) for one in (state, *others)}) == 6


@pytest.mark.parametrize("of", ["mtime", "ctime"])
def test_a_file_that_may_change_unseen_is_compared_again(
    path: Path, hashing: Hashing, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """Within 2 s after a change another one may leave the same times."""
    monkeypatch.setattr(checked, "SETTLED_NS", 2 * 10**9)
    wanted, now = digests(path), path.stat().st_ctime_ns
    if of == "mtime":
        now += 10**10
        os.utime(path, ns=(now, now))
    for age, times in ((0, 1), (2 * 10**9 - 1, 2), (2 * 10**9, 3), (2 * 10**9, 3), (10**15, 3), (-(10**10), 4)):
        with monkeypatch.context() as patched:
            patched.setattr(checked.time, "time_ns", lambda age=age: max(now, path.stat().st_ctime_ns) + age)
            read(path, wanted)
        assert hashing.bytes == times * path.stat().st_size


def test_no_record_of_what_changed_while_it_was_read(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = reader.read_into

    def change_behind(view: memoryview, file: int, at: int) -> int:
        found = fill(view, file, at)
        time.sleep(TICK_S)
        os.utime(path)
        return found

    monkeypatch.setattr(reader, "read_into", change_behind)
    read(path, digests(path))
    assert not cache.exists()


def test_what_changes_while_it_is_read_unhashed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was found to be the same as it was, and before it is in memory."""
    wanted, fill = digests(path), reader.read_into
    read(path, wanted)

    def changed_before(view: memoryview, file: int, at: int) -> int:
        in_place(path)
        return fill(view, file, at)

    monkeypatch.setattr(reader, "read_into", changed_before)
    with pytest.raises(CheckpointError, match=REFUSED):
        read(path, wanted)


def test_what_changes_while_it_is_copied_to_a_gpu(path: Path) -> None:
    wanted = digests(path)
    read(path, wanted)
    with (
        closing(opened(path, wanted, "cuda")) as found,
        Ahead(1 << 10, 2) as ahead,
        pytest.raises(CheckpointError, match=REFUSED),
    ):
        for _ in tensors(found, path.name, ahead):
            in_place(path)


def test_a_file_that_is_cut_before_it_is_copied_to_a_gpu(path: Path) -> None:
    """An error, not a signal."""
    wanted = digests(path)
    read(path, wanted)
    with closing(opened(path, wanted, "cuda")) as found, Ahead(1 << 10, 2) as ahead:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=REFUSED):
            list(tensors(found, path.name, ahead))


def test_what_is_read_for_a_cpu_stays_when_the_file_changes(path: Path) -> None:
    wanted = digests(path)
    read(path, wanted)
    with closing(opened(path, wanted)) as found:
        held = list(tensors(found, path.name))
        before = [one.numpy().copy() for one in held]
        path.write_bytes(bytes(path.stat().st_size))
        assert all(bool((one.numpy() == old).all()) for one, old in zip(held, before, strict=True))


@pytest.mark.parametrize("what", ["another start of the machine", "no name of a start", "another file system"])
def test_where_nothing_is_remembered(
    path: Path, tmp_path: Path, hashing: Hashing, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    read(path, digests(path))
    if what == "another file system":
        monkeypatch.setattr(checked, "LOCAL", frozenset({0x6969}))  # NFS
    else:
        monkeypatch.setattr(checked, "_BOOT", tmp_path / "boot")
    if what == "another start of the machine":
        (tmp_path / "boot").write_text("another\n", encoding="ascii")
    read(path, digests(path))
    assert hashing.bytes == 2 * path.stat().st_size


def test_a_cache_that_cannot_be_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder", encoding="ascii")
    read(path, digests(path))
    monkeypatch.setenv("XDG_CACHE_HOME", f"/proc/{tmp_path.name}")
    read(path, digests(path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError("no home"))))
    assert checked.folder() is None
    read(path, digests(path))


def test_what_others_leave_in_the_cache(path: Path, cache: Path, hashing: Hashing) -> None:
    read(path, digests(path))
    (record,) = cache.iterdir()
    record.unlink()
    record.mkdir()
    (cache / "notes.txt").write_text("not ours", encoding="ascii")
    read(path, digests(path))
    assert hashing.bytes == 2 * path.stat().st_size
    record.rmdir()
    record.write_bytes(b"anything")  # who can write here is trusted: SECURITY.md
    read(path, digests(path))
    assert hashing.bytes == 2 * path.stat().st_size


def test_no_more_records_than_so_many(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MOST", 4)
    cache.mkdir(parents=True)
    (cache / "notes.txt").touch()
    for index in range(11):
        (tmp_path / str(index)).write_bytes(b"x")
        with (tmp_path / str(index)).open("rb") as file:
            checked.Record(file, ["0"]).keep()
            assert checked.Record(file, ["0"]).known
        assert len(list(cache.glob("?" * 64))) <= 4
    assert (cache / "notes.txt").exists()


def test_processes_that_keep_records_at_once(tmp_path: Path) -> None:
    """All read the same files, and each one of its own."""
    code = """if True:
        import sys
        from sd3par.static import checked
        checked.SETTLED_NS = 0
        files = [open(name, "rb") for name in sys.argv[1:]]
        sys.stdin.read()
        for file in files:
            checked.Record(file, ["0"]).keep()
    """
    names = [tmp_path / str(index) for index in range(40)]
    for name in names:
        name.write_bytes(b"x")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *names[:30], *names[30 + rank :: 4]], cwd=ROOT, stdin=subprocess.PIPE
        )  # fmt: skip
        for rank in range(4)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0, 0, 0]
    for name in names:
        with name.open("rb") as file:
            assert checked.Record(file, ["0"]).known

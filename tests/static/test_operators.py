"""Operators of programs for GPUs: what is traced, what they launch, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from paddle.jit.dy2static import convert_call_func

from sd3par import ConfigError, ParallelConfig
from sd3par.kernels import linear_hopper_tiles as tiles
from sd3par.kernels import runtime, static
from sd3par.kernels.attention_hopper_split import planned, programs_of
from sd3par.kernels.linear_hopper import SHAPES
from sd3par.kernels.linear_hopper_tiles import Rectangle, choose
from sd3par.kernels.static import build, library, stand_ins, table
from sd3par.static.export import Target
from tests.static.operator_cases import CASES, MAPS, MODEL, save, untranslated

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=f"needs Triton {runtime.TESTED}"),
    pytest.mark.timeout(600),  # what is built is kept, the first time takes a minute
]
slow = pytest.mark.slow
NAME = re.compile(r'"#":"\d+\.(sd3par_[a-z_0-9]+)"')


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dry device's driver."""
    folder = tmp_path_factory.mktemp("driver")
    source = str(Path(__file__).parent / "dry_cuda.cc")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", str(folder / "libcuda.so.1")], check=True)
    return folder


def run(module: str, plugin: Path, driver: Path, folder: Path, **variables: str) -> dict:
    """What a module prints on the dry device."""
    environment = {
        **os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "LD_LIBRARY_PATH": str(driver), "GLOG_minloglevel": "2",
        "DRY_LAUNCHES": str(folder / "launches"), "FLAGS_enable_api_kernel_fallback": "0", **variables,
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-m", f"tests.static.{module}", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@slow
def test_programs_launch_what_eager_code_does(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    """The same kernels with the same constants, grids and values, inputs and results at the same places."""
    found = run("launched", dry_plugin, driver, tmp_path)
    assert found["wrong"] == {}
    assert found["checked"] == 2 * len(CASES)
    assert [name for name, count in found["launches"].items() if count == 0] == ["linear"]  # cuBLASLt's


@slow
def test_a_recorded_step_is_eager_codes_in_memory_of_its_own(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    """The same launches; no tensor made later lies where the recording works."""
    found = run("recorded", dry_plugin, driver, tmp_path)
    assert found["launches"] == found["eager"] > 8
    assert found["taken"] == 0 and found["addresses"] > 8
    assert found["alike"]


@slow
def test_ranks_store_to_peers_as_eager_ones_do(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    """A step of both ranks of two: the same launches, tables and addresses; a meeting behind each exchange."""
    found = run("stored", dry_plugin, driver, tmp_path)
    assert found["wrong"] == {"0": "", "1": ""}
    assert found["launches"] == {"0": [38, 17], "1": [38, 17]}


@slow
def test_collectives_of_programs_run_and_are_recorded(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    """In bfloat16, by a group that the process made; one that is not there is an error in words."""
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(dry_plugin), "LD_LIBRARY_PATH": str(driver),
                   "GLOG_minloglevel": "2", "NVGPU_DRY_DEVICES": "2"}  # fmt: skip
    script = [str(Path(__file__).parent / "sent.py"), str(tmp_path)]
    command = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch", "--devices", "0,1"]
    done = subprocess.run(
        [*command, "--log_dir", str(tmp_path), *script], cwd=ROOT, env=environment, capture_output=True
    )
    said = [(tmp_path / f"workerlog.{rank}").read_text(encoding="utf-8") for rank in range(2)]
    assert done.returncode == 0, said
    size = "paddle.Size"
    for text in said:
        ran, recorded, missing = text.splitlines()[-3:]
        assert ran == f"[({size}([2, 3, 8]), True), ({size}([3, 8]), True)]"
        assert recorded == f"[{size}([2, 3, 8]), {size}([3, 8])]"
        assert "sd3par operators: no group of ranks has the number 4711" in missing


@slow
def test_an_export_comes_to_a_gpu(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    """Bit by bit, whether its files are compared or, the second time, read ahead; all that a picture needs is ready."""
    cache = str(tmp_path / "cache")
    made = run("ready", dry_plugin, driver, tmp_path, XDG_CACHE_HOME=cache)
    ready = ["prepare-0", "step-0", "text_encoder", "text_encoder_2", "text_encoder_3-0", "decode"]
    first, second = made["found"]
    count = first["parameters"]
    assert first == {"ready": ready, "parameters": count, "wrong": 0, "ahead": 0, "pinned": 0, "unpinned": 0}
    assert second == {"ready": ready, "parameters": count, "wrong": 0, "ahead": count, "pinned": 1, "unpinned": 1}
    assert count > 300 and made["latents"] == [1, 16, 8, 8]


@slow
def test_a_gpu_without_kernels_is_refused(dry_plugin: Path, driver: Path, tmp_path: Path) -> None:
    static.write_operators(tmp_path, "bfloat16", [90], MODEL, maps=MAPS)
    code = f"""
from pathlib import Path
import paddle
from sd3par import ConfigError
from sd3par.kernels import static
paddle.set_device("nvgpu:0")
try:
    static.load_operators(Path({str(tmp_path)!r}))
except ConfigError as error:
    print(error)
"""
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(dry_plugin), "LD_LIBRARY_PATH": str(driver),
                   "GLOG_minloglevel": "2", "DRY_ARCHITECTURE": "86"}  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "GPU: got sm_86; allowed: an architecture that the export has kernels for\n"


def test_plans_are_those_of_eager_code() -> None:
    library.register(build.library())
    numbers = random.Random(0)
    for _ in range(5000):
        tiles, blocks, programs = numbers.randint(1, 4000), numbers.randint(1, 130), numbers.choice((78, 114, 132))
        plan = planned(tiles, blocks, programs)
        wanted = (*plan, programs_of(plan, tiles, programs))
        assert library.planned(tiles, blocks, programs) == wanted, (tiles, blocks, programs)


@pytest.mark.parametrize("cuts", [1, 2, 4, 8])
def test_tiles_of_two_products_are_those_of_eager_code(cuts: int) -> None:
    """Each product's results whole, or its rows cut among peers."""
    library.register(build.library())
    numbers = random.Random(cuts)
    for _ in range(30):
        rows, programs = [numbers.randint(8, 2600), numbers.randint(8, 700)], numbers.choice((78, 114, 132))
        terms, columns = 64 * numbers.randint(1, 96), 64 * numbers.choice((1, 3, 24, 36, 72, 96))
        streams = [
            [one._replace(stream=i) for one in split(count, cuts, columns, numbers)] for i, count in enumerate(rows)
        ]
        shape = choose([one for stream in streams for one in stream], terms // 64, SHAPES, programs)
        wanted = tiles.table([one for stream in streams for one in stream], terms // 64, columns, shape, programs)
        given = [[(one.row, one.rows, one.address) for one in stream] for stream in streams]
        found = library.tiles(given, terms, columns, programs)
        assert found == wanted.flatten().tolist(), (rows, terms, columns, programs)


def split(rows: int, parts: int, columns: int, numbers: random.Random) -> list[Rectangle]:
    """A stream's rectangles, relative to the first."""
    size = -(-rows // parts)
    edges = [min(i * size, rows) for i in range(parts + 1)]
    addresses = [0, *(16 * numbers.randint(-(1 << 40), 1 << 40) for _ in range(parts - 1))]
    return [
        Rectangle(0, a, b - a, 0, columns, address, columns)
        for a, b, address in zip(edges, edges[1:], addresses, strict=False)
        if b > a
    ]


@pytest.fixture
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle keeps what is not to be translated for the whole process, where other tests need it."""
    monkeypatch.setattr(convert_call_func, "BUILTIN_LIKELY_MODULES", [*convert_call_func.BUILTIN_LIKELY_MODULES])
    untranslated()


@pytest.mark.usefixtures("as_they_are")
def test_programs_hold_operators_and_nothing_of_the_copies_that_views_would_be(tmp_path: Path) -> None:
    """Lengths stay open; slices, their parts and reshapes are looked through."""
    with static.tracing("bfloat16", [90]):
        for number, case in enumerate(CASES):
            save(case, tmp_path / str(number), "bfloat16")
    texts = [(tmp_path / f"{number}.json").read_text() for number in range(len(CASES))]
    found = {case.name: NAME.findall(text) for case, text in zip(CASES, texts, strict=True)}
    assert found["norms"] == ["sd3par_adaln_2"] and found["two norms of sums"] == ["sd3par_adaln_5"]
    assert found["attention"] == ["sd3par_attention_2"]
    assert found["convolutions"] == ["sd3par_conv3x3"] * 2
    assert found.pop("linear") == [] and all(found.values())
    copies = [case.name for case, text in zip(CASES, texts, strict=True) if re.search(r"\.(slice|unbind)\"", text)]
    assert copies == [] and not any('.reshape"' in text for text in texts[:8])


def test_references_are_traced_outside(tmp_path: Path) -> None:
    save(CASES[2], tmp_path / "program", "float32")
    assert NAME.findall((tmp_path / "program.json").read_text()) == []


@pytest.mark.parametrize(("dtype", "architectures"), [("int8", [90]), ("bfloat16", [75]), ("bfloat16", [])])
def test_what_there_are_no_kernels_for_is_refused(dtype: str, architectures: list[int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        static.write_operators(tmp_path, dtype, architectures, MODEL)
    with pytest.raises(ConfigError), static.tracing(dtype, architectures):
        pass


def test_products_are_compiled_for_addresses_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python lies low in memory its own are 32 bits wide, and the kernels took no address of a GPU."""
    seen: list[Rectangle] = []
    monkeypatch.setattr(stand_ins, "linear_hopper", lambda products, rectangles, *more: seen.extend(rectangles))
    stand_ins._call_pairs(stand_ins.Order("float32", (90,), MODEL, (MODEL.num_attention_heads,), None, 2), paddle.zeros)
    assert seen and all(one.address >= 1 << 32 and one.address % 16 == 0 for one in seen)


@pytest.mark.parametrize(
    ("sizes", "dtype", "architectures"),
    [({"mp": 2}, "float32", (90,)), ({"mp": 2}, "bfloat16", (90, 100)), ({"dp": 2}, "bfloat16", (90,)),
     ({"mp": 2, "sp": 2}, "bfloat16", (90,))],
)  # fmt: skip
def test_stores_to_peers_are_refused_where_nothing_can(
    sizes: dict[str, int], dtype: str, architectures: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="got peer; allowed: collective; peer for mp alone, .* with --arch 90"):
        Target(ParallelConfig(**sizes, transport="peer"), dtype, "cuda", architectures)
    assert Target(ParallelConfig(mp=2, transport="peer"), "bfloat16", "cuda", (90,)).mesh(1).transport == "peer"


def test_files_that_are_missing_or_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=build.LIBRARY):
        static.load_operators(tmp_path)
    shutil.copyfile(build.library(), tmp_path / build.LIBRARY)
    (tmp_path / build.KERNELS).write_text(f"{table.MAGIC} {table.VERSION + 1} 0\n")
    with pytest.raises(
        ConfigError, match=f"{build.KERNELS} is of version {table.VERSION + 1}; this library reads {table.VERSION}"
    ):
        static.load_operators(tmp_path)


def test_a_program_for_a_gpu_says_so_on_the_cpu() -> None:
    library.register(build.library())
    x = paddle.zeros([1, 3, 64])
    with pytest.raises(RuntimeError, match="exported for a GPU, and its tensors are on"):
        paddle._C_ops._run_custom_op("sd3par_gated_sum", x, x, [x[:, 0]], [0, 0, 0, 0])

"""The plug-in without a GPU: it loads with 0 devices, and its dry twin runs every op but the arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd3par.kernels.nvgpu import fallbacks
from sd3par.launch import doctor_nvgpu

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first of them builds


def python(plugin: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the plug-in in `plugin`."""
    environment = {**os.environ, "CUSTOM_DEVICE_ROOT": str(plugin), "GLOG_minloglevel": "2", **variables}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


def output(plugin: Path, code: str, **variables: str) -> str:
    """Returns what `code` prints; it must end well, and say nothing else."""
    done = python(plugin, ["-c", code], **variables)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    return done.stdout.strip()


def test_every_case_runs_without_a_fallback(dry_plugin: Path) -> None:
    """A fallback is an error here. Shapes and dtypes are the CPU's."""
    done = python(dry_plugin, ["-m", "tests.nvgpu.dry_worker"], FLAGS_enable_api_kernel_fallback="0")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["calls"] > 0
    assert report["wrong"] == {}, json.dumps(report["wrong"], indent=1)


def test_real_plugin_without_gpu_leaves_all_to_the_cpu(real_plugin: Path) -> None:
    code = "import paddle; print(paddle.device.get_available_custom_device(), (paddle.ones([2]) + 1).place)"
    said = output(real_plugin, code)
    if not said.startswith("[]"):
        pytest.skip("this machine has a GPU")
    assert said == "[] Place(cpu)"


def test_real_plugin_says_what_a_missing_library_needs(real_plugin: Path) -> None:
    code = """
import paddle
from sd3par.kernels.nvgpu import info
print(info.loaded(), info.versions()[0] >= 13000)
for name in info.LIBRARIES:
    library = info.library(name)
    print(bool(library.version) != ("pip install nvidia-" in library.error))
"""
    lines = output(real_plugin, code).splitlines()
    assert lines == [f"{real_plugin / 'libpaddle-nvgpu.so'} True", *["True"] * 4]


def test_fallbacks_are_counted(dry_plugin: Path) -> None:
    code = """
import paddle
paddle.set_device("nvgpu:0")
paddle.erfinv(paddle.erfinv(paddle.ones([2])))  # no model needs it, so it has no kernel
print("end")
"""
    variables = {"CUSTOM_DEVICE_ROOT": str(dry_plugin)}
    run = fallbacks.count(["-W", "ignore", "-c", code], variables)
    assert (run.code, run.fallbacks) == (0, {"erfinv float32": 2})
    assert run.tail.endswith("\nend\n")


def test_out_of_memory_frees_what_lies_idle_and_then_says_so(dry_plugin: Path) -> None:
    code = """
import paddle
paddle.set_device("nvgpu:0")
x = paddle.empty([40 << 20], "uint8")
del x
y = paddle.empty([60 << 20], "uint8")  # fits only where x was
try:
    paddle.empty([60 << 20], "uint8")
except MemoryError as error:
    print("Out of memory error on nvgpu:0" in str(error))
print(paddle.device.memory_allocated() >> 20, paddle.device.max_memory_allocated() >> 20)
"""
    assert output(dry_plugin, code, NVGPU_DRY_MEMORY=str(64 << 20)).splitlines() == ["True", "60 60"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_picture_without_a_fallback(dry_plugin: Path, dtype: str) -> None:
    """Text encoders, transformer, autoencoder: every op of the bundled model has its kernel."""
    code = doctor_nvgpu.PICTURE.format(dtype=dtype)
    run = fallbacks.count(["-W", "ignore", "-c", code], {"CUSTOM_DEVICE_ROOT": str(dry_plugin)})
    assert (run.code, run.fallbacks) == (0, {}), run.tail


def test_tensors_are_read_ahead_onto_the_device(dry_plugin: Path, tmp_path: Path) -> None:
    """Through memory for a few of them; of views, those that need no kernel are compared."""
    code = f"""
import paddle
from pathlib import Path
from sd3par.weights.ahead import Ahead, beside_device
from sd3par.weights.single_file import SingleFile
from sd3par.weights.views import Swapped
from tests.weights.test_single_file import whole_file

def load(checkpoint, ahead):
    begun = {{name: checkpoint.begin(name, (), ahead) for name in checkpoint.shapes()}}
    return {{name: tensor() for name, tensor in begun.items()}}

file = SingleFile(whole_file(Path({str(tmp_path)!r})))
for checkpoint in (file.transformer().checkpoint, file.vae().checkpoint):
    paddle.set_device("cpu")
    want = load(checkpoint, None)
    paddle.set_device("nvgpu:0")
    with Ahead(100_000, 2) as small, beside_device() as usual:
        for got in (load(checkpoint, small), load(checkpoint, usual)):
            assert all(tensor.place.is_custom_place() for tensor in got.values())
            assert all(tensor.shape == want[name].shape for name, tensor in got.items())
            plain = [name for name in want if not isinstance(checkpoint._views[name], Swapped)]
            print(len(plain) > 20, [name for name in plain if (got[name].numpy() != want[name].numpy()).any()])
"""
    assert output(dry_plugin, code, FLAGS_enable_api_kernel_fallback="0").splitlines() == ["True []"] * 4


def test_doctor_reads_the_plugin(dry_plugin: Path) -> None:
    """The dry device has no driver, and the doctor says so."""
    done = python(dry_plugin, ["-m", "sd3par", "doctor", "--device", "nvgpu"])
    assert done.returncode == 1
    for text in (f"ok   plug-in            {dry_plugin}", "nothing in the driver", "install NVIDIA's driver"):
        assert text in done.stdout, done.stdout


def test_graph_is_captured_and_a_wait_inside_is_refused(dry_plugin: Path) -> None:
    code = """
import paddle
from paddle.device.cuda.graphs import CUDAGraph
paddle.set_device("nvgpu:0")
x = paddle.ones([8, 8])
graph = CUDAGraph()
graph.capture_begin()
y = paddle.matmul(x, x)
graph.capture_end()
graph.replay()
paddle.device.synchronize()
print(y.shape)
graph = CUDAGraph()
graph.capture_begin()
try:
    y.numpy()
except OSError:
    print("refused")
graph.capture_end()
"""
    done = python(dry_plugin, ["-c", code])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["paddle.Size([8, 8])", "refused"]
    assert "a wait inside a capture" in done.stderr


# Dry collectives wait for nobody: the first process, whose store the others ask, has to stay until all are here.
COLLECTIVES = """
import time
from pathlib import Path
import paddle
import paddle.distributed as dist
from paddle.device.cuda.graphs import CUDAGraph
dist.init_parallel_env()
x, y, gathered = paddle.ones([8]), paddle.zeros([4]), []
group = dist.new_group([0, 1])
dist.all_gather(gathered, x, group=group)
dist.reduce_scatter(y, x)
dist.alltoall_single(paddle.zeros([8]), x)
dist.broadcast(x, 0)
graph = CUDAGraph()
graph.capture_begin()
dist.all_reduce(x, group=group)
graph.capture_end()
graph.replay()
print(paddle.get_device(), len(gathered), flush=True)
here, end = Path(__file__).parent, time.monotonic() + 60
(here / f"done{dist.get_rank()}").touch()
while len(list(here.glob("done*"))) < 2 and time.monotonic() < end:
    time.sleep(0.05)
"""


def test_launcher_gives_each_process_its_device(dry_plugin: Path, tmp_path: Path) -> None:
    """And they end although a captured graph holds a communicator."""
    (tmp_path / "ranks.py").write_text(COLLECTIVES, encoding="utf-8")
    arguments = ["-m", "paddle.distributed.launch", "--devices", "0,1", "--log_dir", str(tmp_path)]
    done = python(dry_plugin, [*arguments, str(tmp_path / "ranks.py")], NVGPU_DRY_DEVICES="2")
    said = [(tmp_path / f"workerlog.{rank}").read_text(encoding="utf-8") for rank in range(2)]
    assert done.returncode == 0, said
    assert [text.splitlines()[-1] for text in said] == ["nvgpu:0 2", "nvgpu:1 2"]

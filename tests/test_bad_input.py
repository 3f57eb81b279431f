"""What cannot be drawn is refused at the door: one line that says what, where and what is allowed; exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from sd3par.launch import cli, worker
from tests.ranks import ROOT

TINY = ROOT / "sd3par" / "tiny"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LIMIT_S = 10.0

# name: (arguments after the prompt, what the line must say)
FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "height 0": (["--height", "0"], ["height: got 0", "from 1 to 65536"]),
    "height negative": (["--height", "-1"], ["height: got -1", "from 1 to 65536"]),
    "height not of the patch": (["--height", "100"], ["height: got 100", "multiples of 16"]),
    "height beyond the table": (["--height=4096"], ["height: got 4096", "multiples of 16 from 16 to"]),
    "height huge": (["--height", "1000000000"], ["height: got 1000000000"]),
    "height exponent": (["--height", "1e9"], ["height: got 1e9", "a whole number"]),
    "width of two": (["--width", "512x512"], ["width: got 512x512", "a whole number"]),
    "width words": (["--width", "axb"], ["width: got axb", "a whole number"]),
    "steps 0": (["--num-inference-steps", "0"], ["num_inference_steps: got 0", "1 to 1000"]),
    "steps 1001": (["--num-inference-steps", "1001"], ["num_inference_steps: got 1001", "1 to 1000"]),
    "steps fraction": (["--num_inference_steps", "1.5"], ["num_inference_steps: got 1.5", "a whole number"]),
    "seed negative": (["--seed", "-1"], ["seed: got -1", "from 0 to 9223372036854775807"]),
    "seed 2**64": (["--seed", str(2**64)], [f"seed: got {2**64}", "from 0 to"]),
    "seed of 5000 digits": (["--seed", "9" * 5000], ["seed: got 999", "a whole number"]),
    "last seed of two": (["--seed", str(2**63 - 1), "--num_images_per_prompt", "2"], ["seed: got 9223372036854775807",
                         "at most 9223372036854775806, for the last picture's"]),
    "seed letter": (["--seed", "x"], ["seed: got x", "a whole number"]),
    "seed missing": (["--seed"], ["seed: got nothing", "a value"]),
    "strength negative": (["--image", "photo.png", "--strength", "-0.1"], ["strength: got -0.1", "from 0 to 1"]),
    "strength 1.1": (["--image", "photo.png", "--strength", "1.1"], ["strength: got 1.1", "from 0 to 1"]),
    "strength nan": (["--image", "photo.png", "--strength", "nan"], ["strength: got nan", "from 0 to 1"]),
    "strength alone": (["--strength", "0.5"], ["strength: got 0.5", "nothing without --image"]),
    "guidance nan": (["--guidance_scale", "nan"], ["guidance_scale: got nan", "from 0 to 100"]),
    "guidance inf": (["--guidance_scale", "inf"], ["guidance_scale: got inf", "from 0 to 100"]),
    "guidance of other digits": (["--guidance-scale", "\u0663"], ["guidance_scale: got", "a number"]),
    "guidance underscored": (["--guidance-scale", "1_0"], ["guidance_scale: got 1_0", "a number"]),
    "negative prompt unheard": (["--negative_prompt=red", "--guidance_scale=1"],
                                ["negative_prompt: got red", "nothing with a guidance_scale of at most 1"]),
    "third prompt unread": (["--no_t5", "--prompt_3=red"], ["prompt_3: got red", "nothing beside --no_t5"]),
    "guidance word": (["--guidance-scale", "high"], ["guidance_scale: got high", "a number"]),
    "pictures 0": (["--num_images_per_prompt", "0"], ["num_images_per_prompt: got 0", "1 to 64"]),
    "pictures 65": (["--num_images_per_prompt", "65"], ["num_images_per_prompt: got 65", "1 to 64"]),
    "tokens 513": (["--max_sequence_length", "513"], ["max_sequence_length: got 513", "1 to 512"]),
    "prompt_2 too long": (["--prompt_2", "x" * 100_000], ["prompt_2: got 100000 bytes", "16384"]),
    "negative prompt surrogate": (["--negative_prompt", "\ud800"], ["negative_prompt: got", "surrogates"]),
    "mp_size 0": (["--mp_size", "0"], ["mp_size: got 0", "1 to 1024"]),
    "mp_size 5": (["--mp_size", "5"], ["mp_size * sp_size: got 5 * 1 = 5", "at most 4, the model's attention heads"]),
    "mp and sp": (["--mp_size", "2", "--sp_size", "3"], ["mp_size * sp_size: got 2 * 3 = 6", "at most 4"]),
    "dp_size 3": (["--dp_size", "3"], ["dp_size: got 3", "[1, 2] for 1 image(s) with guidance"]),
    "dp_size 2 without guidance": (["--dp_size", "2", "--guidance_scale", "1"], ["dp_size: got 2", "without guidance"]),
    "dtype unknown": (["--dtype", "float64"], ["dtype: got float64", "auto, float32, bfloat16, float16"]),
    "dtype not on the CPU": (["--dtype", "float16", "--device", "cpu"], ["dtype: got float16", "float32 on cpu"]),
    "device unknown": (["--device", "tpu"], ["device: got tpu", "auto, cpu, gpu, nvgpu"]),
    "transport of GPUs": (["--device=cpu", "--sp_size=2", "--transport=peer"],
                          ["transport: got peer", "auto or collective: on cpu no kernels store"]),
    "transport unknown": (["--transport", "tcp"], ["transport: got tcp", "auto, peer, collective"]),
    "engine unknown": (["--engine", "warp"], ["engine: got warp", "auto"]),
    "optimize 0": (["--inference_optimize", "0"], ["inference_optimize: got 0", "allowed: 1"]),
    "benchmark 0": (["--benchmark", "0"], ["benchmark: got 0", "1 to 1000"]),
    "benchmark and output": (["--benchmark", "--output", "a.png"], ["output: got a.png", "nothing beside --benchmark"]),
    "benchmark and metadata": (["--benchmark", "--no_metadata"], ["no_metadata: got --no_metadata", "--benchmark"]),
    "timeout 0": (["--rank_timeout_s", "0"], ["rank_timeout_s: got 0.0", "2 to 3600"]),
    "flag unknown": (["--no-such-flag"], ["arguments: got --no_such_flag", "what --help lists"]),
    "flag misspelled": (["--guidance_scal", "2"], ["arguments: got --guidance_scal", "--guidance_scale"]),
    "flag shortened": (["--steps", "4"], ["arguments: got --steps;", "allowed: perhaps --num_inference_steps"]),
    "flag that may be several": (["--size", "64"], ["got --size;", "perhaps --dp_size, --mp_size, --sp_size"]),
    "flag cut off": (["--out", "a.png"], ["arguments: got --out;", "allowed: perhaps --output"]),
    "flag like no other": (["--version"], ["arguments: got --version;", "what --help lists"]),
    "flag that is hidden": (["--run_di", "x"], ["arguments: got --run_di;", "what --help lists"]),
    "flag with a value too many": (["--quiet=1"], ["quiet: got 1", "no value"]),
    "help with a value": (["--help=1"], ["help: got 1", "no value"]),
    "dashes and a word": (["--quiet", "--", "another"], ["arguments: got another"]),
    "a dash": (["-"], ["arguments: got -;", "what --help lists"]),
    "second prompt": (["another"], ["arguments: got another"]),
    "model missing": (["--model", "no/such/folder"], ["model: got no/such/folder", "tiny, or a folder"]),
    "model of nobody": (["--model", "~nobody-here/model"], ["model: got ~nobody-here/model", "tiny, or a folder"]),
    "model with a long name": (["--model", "m" * 5000], ["model: got mmm", "tiny, or a folder"]),
    "model of the hub": (["--model", "stabilityai/stable-diffusion-3-medium"], ["stabilityai/", "hf download"]),
    "model random": (["--random_weights", "sd4"], ["random_weights: got sd4", "sd3-medium, sd3.5-medium"]),
    "model and random": (["--model", "tiny", "--random-weights", "tiny"], ["random_weights: got tiny", "beside"]),
    "devices on the CPU": (["--devices", "0"], ["devices: got 0;", "nothing on the CPU"]),
    "devices as words": (["--devices", "0,all"], ["devices: got 0,all", "as 0,1"]),
    "model empty": (["--model", ""], ["or a folder or file that exists"]),
    "tokenizers missing": (["--tokenizers", "nowhere"], ["tokenizers: got nowhere", "a folder"]),
    "output without a folder": (["--output", "no/such/a.png"], ["output: got no/such/a.png", "a folder that exists"]),
    "output not PNG": (["--output", "a.jpg"], ["output: got a.jpg", "ends in .png"]),
    "output a folder": (["--output", "."], ["output: got .", "ends in .png"]),
    "output empty": (["--output", ""], ["output: got", "ends in .png"]),
    "output of root": (["--output", "/proc/a.png"], ["output: got /proc/a.png", "can be written"]),
    "output exists": (["--output", "photo.png"], ["output: got photo.png", "--overwrite"]),
    "one of the outputs exists": (["--output", "p.png", "--num_images_per_prompt", "2"], ["output: got p-1.png"]),
    "image missing": (["--image", "none.png"], ["image: got none.png", "an existing image file"]),
    "image with a long name": (["--image", "x" * 5000], ["image: got xxx", "an existing image file"]),
    "image of 400 million pixels": (["--image", "huge.png"], ["image: got huge.png", "at most 67108864 pixels"]),
    "image not a picture": (["--image", "text.png"], ["image: got text.png", "an intact image"]),
    "image a pipe": (["--image", "pipe"], ["image: got pipe", "an existing image file"]),
    "prompt and prompts file": (["--prompts_file", "prompts.txt"], ["prompts_file: got", "beside --prompt"]),
}  # fmt: skip

PROMPTS: dict[str, tuple[list[str], list[str]]] = {
    "none": ([], ["prompt: got nothing", "a text"]),
    "empty": ([""], ["prompt: got ''", "shell variable"]),
    "100 kB": (["x" * 100_000], ["prompt: got 100000 bytes", "at most 16384 bytes"]),
    "lone surrogate": (["a \udcff circle"], ["prompt: got", "surrogates"]),
    "zero byte": (["a\0b"], ["arguments: got", "zero bytes"]),
    "twice": (["a", "--prompt", "b"], ["prompt: got b", "nothing beside a"]),
    "twice, flag first": (["--prompt=a", "--seed=1", "b"], ["prompt: got b", "nothing beside a"]),
    "flag empty": (["--prompt="], ["prompt: got ''", "shell variable"]),
    "looks like a flag": (["--red"], ["arguments: got --red"]),
    "file missing": (["--prompts_file", "none.txt"], ["prompts_file: got none.txt", "No such file"]),
    "file empty": (["--prompts_file", "empty.txt"], ["prompts_file: got empty.txt with 0 prompts", "1 to 10000"]),
    "file of comments": (["--prompts_file", "comments.txt"], ["comments.txt with 0 prompts"]),
    "file binary": (["--prompts_file", "photo.png"], ["prompts_file: got photo.png", "UTF-8 text"]),
    "file with zero bytes": (["--prompts_file", "zeros.txt"], ["prompts_file: got zeros.txt", "zero bytes"]),
    "file of 10 MB": (["--prompts_file", "long.txt"], ["prompts_file: got long.txt of 10000001 bytes"]),
    "file of 10001 prompts": (["--prompts_file", "many.txt"], ["many.txt with 10001 prompts", "1 to 10000"]),
    "file with a long line": (["--prompts_file", "line.txt"], ["line 2 of line.txt: got 20000 bytes"]),
    "file a folder": (["--prompts_file", "."], ["prompts_file: got .", "a file"]),
    "file endless": (["--prompts_file", "/dev/zero"], ["prompts_file: got /dev/zero", "a file"]),
    "file a pipe": (["--prompts_file", "pipe"], ["prompts_file: got pipe", "a file"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(ROOT / "tests" / "golden" / "mmdit.npz", folder / "photo.png")  # no picture, and not text either
    for name, text in {"text.png": "no picture", "p-1.png": "", "empty.txt": "", "comments.txt": "# a\n\n  # b\n",
                       "zeros.txt": "a\0b", "long.txt": "x" * 10_000_001, "many.txt": "x\n" * 10_001,
                       "line.txt": "x\n" + "x" * 20_000, "prompts.txt": "a red circle"}.items():  # fmt: skip
        (folder / name).write_text(text)
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(files, tmp_path, dirs_exist_ok=True))
    os.mkfifo("pipe")
    return tmp_path


@pytest.fixture(autouse=True)
def unchanged(folder: Path) -> Iterator[None]:
    """Nothing is written and nothing is lost, whatever a test asks for."""

    def listing() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}

    before = listing()
    yield
    assert {path: state for path, state in listing().items() if path in before or "model" not in path} == before


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], int], says: list[str]) -> None:
    """Checks that `run` refuses in time, in one line that says all of `says`."""
    begin = time.perf_counter()
    code = run()
    took_s = time.perf_counter() - begin
    shown = capsys.readouterr()
    check_refusal(code, shown.out, shown.err, says)
    assert took_s < LIMIT_S


def check_refusal(code: int, out: str, err: str, says: list[str]) -> None:
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert err.startswith("sd3par: error: ")
    assert "; allowed: " in err
    assert len(err) < 1000
    assert err[:-1].isprintable()
    for text in says:
        assert text in err


@pytest.mark.parametrize("case", FLAGS)
def test_flag(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = FLAGS[case]
    refused(capsys, lambda: cli.main(["generate", "a red circle", *arguments]), says)


@pytest.mark.parametrize("case", PROMPTS)
def test_prompt(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, says = PROMPTS[case]
    refused(capsys, lambda: cli.main(["generate", *arguments]), says)


@pytest.mark.parametrize("arguments, says", [
    (["genrate"], ["command: got genrate", "generate, export, bench, doctor, show"]),
    (["show"], ["FILE: got nothing"]),
    (["show", "none.png"], ["image: got none.png", "an existing PNG file"]),
    (["show", "photo.png"], ["image: got photo.png", "not PNG"]),
    (["show", "pipe"], ["image: got pipe"]),
    (["doctor", "--fix"], ["arguments: got --fix"]),
])  # fmt: skip
def test_command(arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, lambda: cli.main(arguments), says)


def copy_of_tiny(folder: Path) -> Path:
    """Returns a folder with the bundled model, whose files may be replaced."""
    return Path(shutil.copytree(TINY, folder / "model"))


def change(file: Path, key: str, value: object) -> None:
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, key: value}))


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "weights truncated": (lambda model: os.truncate(model / WEIGHTS, 5000), [WEIGHTS]),
    "weights empty": (lambda model: os.truncate(model / WEIGHTS, 0), [WEIGHTS]),
    "weights missing": (lambda model: (model / WEIGHTS).unlink(), ["transformer"]),
    "weights are a web page": (lambda model: (model / WEIGHTS).write_text("<html>" * 99), [WEIGHTS]),
    "weights are a pickle": (
        lambda model: (model / WEIGHTS).rename(model / "transformer" / "diffusion_pytorch_model.bin"), ["transformer"]
    ),
    "config key unknown": (lambda model: change(model / "transformer/config.json", "moe", 8), ["moe: got 8"]),
    "config not JSON": (lambda model: (model / "vae/config.json").write_text("{"), ["vae/config.json"]),
    "config lies": (lambda model: change(model / "transformer/config.json", "num_layers", 0), ["num_layers: got 0"]),
    "config of a thousand layers": (
        lambda model: change(model / "transformer/config.json", "num_layers", 1000), ["got 1000", "1 to 256"]
    ),
    "config of a thousand layers of text": (
        lambda model: change(model / "text_encoder/config.json", "num_hidden_layers", 1000), ["layers: got 1000"]
    ),
    "config of a thousand layers of T5": (
        lambda model: change(model / "text_encoder_3/config.json", "num_layers", 1000), ["num_layers: got 1000"]
    ),
    "config of a huge table": (
        lambda model: change(model / "transformer/config.json", "pos_embed_max_size", 1 << 20), ["size: got 1048576"]
    ),
    "config of huge outputs": (
        lambda model: change(model / "transformer/config.json", "out_channels", 1 << 63), ["out_channels: got 9223"]
    ),
    "index missing": (lambda model: (model / "model_index.json").unlink(), ["model_index.json"]),
    "index of another model": (
        lambda model: change(model / "model_index.json", "_class_name", "FluxPipeline"), ["FluxPipeline"]
    ),
    "scheduler missing": (lambda model: (model / "scheduler/scheduler_config.json").unlink(), ["scheduler"]),
    "tokenizer missing": (lambda model: shutil.rmtree(model / "tokenizer_2"), ["tokenizer_2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_model(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm, says = BROKEN[case]
    harm(copy_of_tiny(folder))
    refused(capsys, lambda: cli.main(["generate", "a red circle", "--model", "model"]), says)


def test_pickle_is_not_opened(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.ckpt").write_bytes(b"\x80\x04\x95")
    refused(capsys, lambda: cli.main(["generate", "x", "--model", "model.ckpt"]), ["model.ckpt", "pickle"])


@pytest.mark.parametrize("arguments, says", [
    ([], ["got 1; allowed: 4", "--nproc_per_node 1"]),
    (["--mp_size", "2"], ["dp_size * mp_size * sp_size: got 2; allowed: 4", "--nproc_per_node 2 (GPUs: --gpus 0,1)"]),
    (["--mp_size", "4", "--dp_size", "2"], ["got 8; allowed: 4, the number of processes that were started"]),
    (["--mp_size", "4", "--height", "100"], ["height: got 100"]),
    (["--mp_size", "4", "--transport", "peer", "--device", "cpu"], ["transport: got peer", "on cpu no kernels store"]),
])  # fmt: skip
def test_under_the_launcher(
    arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 says it, the others leave with the same code; nobody connects."""
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    refused(capsys, lambda: worker.main(arguments), says)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "3")
    assert worker.main(arguments) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rank, world", [("x", "2"), ("0", "two"), ("2", "2"), ("", "")])
def test_launcher_environment(
    rank: str, world: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", world)
    refused(capsys, lambda: worker.main([]), ["PADDLE_TRAINER_ID, PADDLE_TRAINERS_NUM: got"])


@pytest.mark.parametrize("command", [
    [str(ROOT / "launch" / "text_to_image.py"), "--seed", "x"],
    [str(ROOT / "launch" / "text_to_image.py"), "--mp_size", "2"],
    ["-m", "sd3par", "generate", "a red circle", "--height", "100"],
    ["-m", "sd3par", "generate", b"a \xff circle"],
])  # fmt: skip
def test_as_a_process(command: list[str | bytes], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if command[0] == "-m" else ""}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    check_refusal(done.returncode, done.stdout, done.stderr, [])


def test_a_folder_that_was_removed(folder: Path) -> None:
    (folder / "gone").mkdir()
    command = f"cd gone; rmdir ../gone; exec {sys.executable} -m sd3par generate x"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    check_refusal(done.returncode, done.stdout, done.stderr, ["current folder: got one that was removed"])


@pytest.mark.parametrize("prompt", ["أحمر دائرة", "🔴🟦", "e\u0301" * 500, "a\u202eb", "\u200b", " ", "\U0010ffff",
                                    "line\nline\ttab", "{}%s$HOME`ls`", "-v"])  # fmt: skip
def test_unusual_prompt_is_fine(prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It passes the door: the one thing that is wrong here is the output, which is checked last."""
    refused(capsys, lambda: worker.main([f"--prompt={prompt}", "--output", "photo.png"]), ["output: got photo.png"])

"""Measures what is asked for, each part in a process of its own, and appends its rows under one run id.

python -m benchmarks.gpu                             all parts on the GPUs of this machine
python -m benchmarks.gpu --parts ops picture
python -m benchmarks.gpu --parts models --models sd3-medium --meshes dp2 mp2 dp2,sp2
python -m benchmarks.gpu --parts models --peers eager reduce-overhead --engines graph --sizes 1024 --images 1 4

Ours and the peers run in processes one after the other on the same card. Each is warm before it counts: three whole
calls for loops, 0.3 s of the same call for kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import TEXT_TOKENS, TRANSFORMERS
from benchmarks.record import Run
from sd3par.config import TRANSPORTS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("ops", "kernels", "bandwidth", "picture", "attention", "peers", "decode", "models", "static")


def mesh(text: str) -> dict[str, int]:
    """Returns {"dp": 2, "sp": 4} for "dp2,sp4"; {} for "one"."""
    if text == "one":
        return {}
    if not re.fullmatch(r"(dp|mp|sp)\d+(,(dp|mp|sp)\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: one, or axes with sizes, as dp2 or dp2,sp4")
    return {part[:2]: int(part[2:]) for part in text.split(",")}


def gpus() -> tuple[int, str]:
    """Returns how many GPUs there are, and the first one's name."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    return len(names), names[0]


def read(command: list[str], limit_s: float) -> tuple[list[dict[str, Any]], bool]:
    """Runs a part; returns its JSON lines and whether it ended well. Everything else it says goes to the terminal.

    One that takes longer than `limit_s` is ended, and its rows up to then count.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    print("$", " ".join(command[1:]), flush=True)
    with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            print(f"took longer than {limit_s:g} s: ended", flush=True)
            process.terminate()  # Paddle's launcher ends its processes with it
            output = finish(process)
    rows = []
    for line in output.splitlines():
        if line.startswith("{"):
            rows.append(json.loads(line))
        elif line.strip():
            print(line, flush=True)
    return rows, process.returncode == 0


def finish(process: subprocess.Popen[str]) -> str:
    """Returns what an ending process has written."""
    try:
        return process.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def ours(model: str, folder: Path, sizes: dict[str, int], options: argparse.Namespace) -> list[str]:
    """Returns the command that measures our side on a mesh."""
    world = 1
    for size in sizes.values():
        world *= size
    launcher = launched_on(world, folder)
    flags = [word for axis, size in sizes.items() for word in (f"--{axis}_size", str(size))]
    flags += ["--transport", options.transport]
    script = str(ROOT / "benchmarks" / "gpu" / "ours.py")
    return [sys.executable, *(launcher if world > 1 else []), script, model, str(folder), *flags, *timing(options),
            "--engines", *options.engines]  # fmt: skip


def launched_on(world: int, folder: Path) -> list[str]:
    """Returns the flags of Python that start a script on so many GPUs; logs go to `folder`."""
    return ["-m", "paddle.distributed.launch", "--devices", ",".join(map(str, range(world))),
            "--log_dir", str(folder / "log"), "--log_level", "WARNING"]  # fmt: skip


def on_all(script: str) -> Callable[[argparse.Namespace, Run], bool]:
    """Returns what measures by a script of this folder, a process on every GPU."""

    def measure(options: argparse.Namespace, run: Run) -> bool:
        """Runs it; returns whether it ended well, or is for more than one GPU and there is one."""
        if gpus()[0] == 1:
            return True
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            start = [sys.executable, *launched_on(gpus()[0], Path(scratch))]
            rows, ended = read([*start, str(ROOT / "benchmarks" / "gpu" / script)], options.limit)
        write(run, rows, {"dtype": "bfloat16"})
        return ended

    return measure


def xdit(model: str, folder: Path, layout: dict[str, int], options: argparse.Namespace) -> list[str]:
    """Returns the command that measures xDiT in a layout."""
    cfg, ulysses = layout.get("dp", 1), layout.get("sp", 1)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(cfg * ulysses)]
    script = str(ROOT / "benchmarks" / "gpu" / "peer_xdit.py")
    flags = ["--sizes", *map(str, options.sizes), "--steps", str(options.steps), "--repeats", str(options.repeats)]
    return [sys.executable, *launcher, script, model, str(folder), "--cfg", str(cfg), "--ulysses", str(ulysses), *flags]


def timing(options: argparse.Namespace) -> list[str]:
    """Returns the flags that both sides share."""
    return ["--sizes", *map(str, options.sizes), "--images", *map(str, options.images), "--steps", str(options.steps),
            "--repeats", str(options.repeats)]  # fmt: skip


def models(options: argparse.Namespace, run: Run) -> bool:
    """Measures diffusers, then ours on every mesh, on the same weights; returns whether all was right."""
    right, no_parity = True, ["--no_parity"] if options.no_parity else []
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            common = {"model": model, "text_tokens": TEXT_TOKENS, "steps": options.steps, "images": 1, "guidance": 7.0}
            torch = common | {"dtype": "bfloat16", "world": 1}
            peers, ended = read([*python("peer"), model, scratch, *no_parity], options.limit)
            write(run, peers, torch)
            right &= ended
            for engine in options.peers if ended else []:
                command = [*python("peer_loop"), model, scratch, "--engine", engine, *timing(options)]
                found, well = read(command, options.limit)
                write(run, last_of_each(found), torch)
                right &= well
            for layout in options.xdit if ended else []:
                found, well = read(xdit(model, Path(scratch), layout, options), options.limit)
                write(run, found, torch)
                right &= well
            for sizes in options.meshes if ended else []:
                found, well = read([*ours(model, Path(scratch), sizes, options), *no_parity], options.limit)
                right &= well & all([judge(row, peers) for row in found if row["bench"] == "parity"])
                write(run, found, common)
    return right


def static(options: argparse.Namespace, run: Run) -> bool:
    """Measures exported models beside the same models as they are, on every mesh."""
    right = True
    for model in options.models:
        for sizes in options.meshes:
            world, name = 1, ",".join(f"{axis}{size}" for axis, size in sizes.items()) or "one"
            for size in sizes.values():
                world *= size
            with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
                start = launched_on(world, Path(scratch)) if world > 1 else []
                flags = ["--meshes", name, "--sizes", *map(str, options.sizes), "--steps", str(options.steps),
                         "--repeats", str(options.repeats), "--scratch", scratch]  # fmt: skip
                script = str(ROOT / "benchmarks" / "gpu" / "static.py")
                rows, ended = read([sys.executable, *start, script, model, *flags], options.limit)
            write(run, rows, {})
            right &= ended
    return right


def python(module: str) -> list[str]:
    """Returns the command that runs a module of this package."""
    return [sys.executable, "-W", "ignore", "-m", f"benchmarks.gpu.{module}"]


def last_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns of the rows about one size the last, which holds the most."""
    return list({(row["height"], row["width"], row["images"]): row for row in rows}.values())


def judge(row: dict[str, Any], peers: list[dict[str, Any]]) -> bool:
    """Adds the verdict to a parity row: within 1.2 of diffusers' own error, and the wrong models far outside."""
    names = ("height", "width", "text_tokens")
    peer = next(peer for peer in peers if all(peer[name] == row[name] for name in names))
    limit = 1.2 * peer["noise_error"]
    row["bound"] = limit
    row["ratio"] = row["noise_error"] / peer["noise_error"]
    right = row["noise_error"] <= limit
    if "image_error" in row:  # the case with the controls
        row["image_ratio"] = row["image_error"] / peer["image_error"]
        wrong = ("uniform_attention", "one_head_zeroed", "another_text")
        right &= row["image_ratio"] <= 1.2 and row["loud_padding"] <= limit
        right &= all(row[name] >= 3 * limit for name in wrong)
    row["right"] = bool(right)
    return row["right"]


def attention(options: argparse.Namespace, run: Run) -> bool:
    """Measures torch's attention, then ours, and writes the faster of the peers beside each of ours."""
    peers, ended = read(python("peer_attention"), options.limit)
    write(run, peers, {})
    found, well = read(python("ours_attention"), options.limit)
    for row in found:
        beside(row, peers)
    write(run, found, {})
    return ended and well


def beside(row: dict[str, Any], peers: list[dict[str, Any]]) -> None:
    """Adds the fastest peer at the same shape to a row: which, and its microseconds."""
    same = [peer for peer in peers if peer["shape"] == row["shape"] and "us" in peer]
    if same:
        fastest = min(same, key=lambda peer: peer["us"])
        row |= {"peer": fastest["peer"], "peer_us": fastest["us"], "peer_hot_us": min(one["hot_us"] for one in same)}
        row["ratio"] = row["us"] / row["peer_us"]


def write(run: Run, rows: list[dict[str, Any]], common: dict[str, Any], show: bool = True) -> None:
    """Appends rows to their benchmarks' files and shows them."""
    for row in rows:
        run.add(**(common | row))
        if not show:
            continue
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        print("  " + "  ".join(f"{key}={value}" for key, value in shown.items() if key != "bench"), flush=True)


def main() -> int:
    """Runs the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="*", choices=TRANSFORMERS, default=["sd3-medium"])
    parser.add_argument("--meshes", nargs="*", type=mesh, default=[{}], help="one, dp2, mp2, dp2,sp4 ...")
    parser.add_argument("--transport", choices=TRANSPORTS, default="auto", help="of mp and sp")
    parser.add_argument("--engines", nargs="*", choices=("eager", "graph"), default=["eager", "graph"])
    parser.add_argument(
        "--peers", nargs="*", default=["eager"], help="diffusers: eager, default, reduce-overhead, max-autotune"
    )
    parser.add_argument(
        "--xdit", nargs="*", type=mesh, default=[], help="its guidance split and Ulysses: dp2, dp2,sp2 ..."
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 512], help="pictures to time, in pixels")
    parser.add_argument("--images", type=int, nargs="*", default=[1], help="pictures a call, as 1 4")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one process (default: %(default)g)")
    parser.add_argument("--no_parity", action="store_true", help="models: times alone")
    parser.add_argument("--scratch", help="folder for the weights (4 to 16 GB)")
    parser.add_argument("--results", type=Path, help="folder for the JSON lines (default: benchmarks/results/<gpu>)")
    parser.add_argument("--commit", help="what to write as the commit, where this is no git checkout")
    options = parser.parse_args()
    count, name = gpus()
    run = Run("gpu", name.split()[-1].lower(), folder=options.results, commit=options.commit, gpu=f"{count} x {name}")
    right = True
    together = {
        "models": models, "attention": attention,
        "static": static, "peers": on_all("peers.py"), "decode": on_all("decode.py"),
    }  # fmt: skip
    for part in options.parts:
        if part in together:
            right &= together[part](options, run)
        else:
            rows, ended = read(python(part), options.limit)
            write(run, rows, {})
            right &= ended
    print("all right" if right else "NOT ALL RIGHT: see above")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())

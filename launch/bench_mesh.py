"""`sd3par bench --mesh ...`: which mesh is fastest, by running each on processes of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd3par.config import ParallelConfig, require
from sd3par.errors import shorten
from sd3par.launch import endings, record
from sd3par.launch.bench_case import Case, add_case_flags, case_parser
from sd3par.launch.endings import Place
from sd3par.launch.environment import prepare_process
from sd3par.launch.flags import Group, render_parser
from sd3par.launch.parser import Parser, number, whole, whole_list
from sd3par.launch.report import table

BENCH, SCRIPT = "mesh", Path(__file__).with_name("measure.py")
CPU_PROCESSES = 2  # more only wait for each other's cores
DESCRIPTION = """\
Renders with each mesh, one after the other, on processes of their own, and says which is the fastest.

  sd3par bench --mesh auto                                            every legal mesh on all devices
  sd3par bench --mesh auto --random_weights sd3-medium --devices 0,1
  sd3par bench --mesh dp2 mp2 dp2,sp2 --model sd3 --height 512 --width 512

One device alone is measured first. loop s: from text states on the device to latents; image s: to pictures on the
device. Both are the median of the slowest rank. A mesh that fails is a row, not the end."""


def main(argv: Sequence[str]) -> int:
    """Measures the meshes that `argv` asks for; returns the exit code."""
    options = bench_parser().parse(argv)
    case = Case.of(options)
    prepare_process(1)
    bench = Bench.of(case)
    for file in _files(options):
        record.make(file)
    endings.prepare(Place())
    rows = bench.run(f"sd3par bench {shlex.join(argv)}")
    Place().show(bench.report(rows))
    return endings.DONE if any("loop_s" in row for row in rows) else endings.INTERNAL


def bench_parser() -> Parser:
    """Returns the parser of the command."""
    parser = Parser(prog="sd3par bench", description=DESCRIPTION)
    where = Group(parser, "which meshes, and where")
    where.other("--mesh", metavar="MESH", nargs="+", type=mesh_of, default=["auto"], help="auto, all that are possible "
                "with so many processes; or one, dp2, dp2,sp2, ... (default: auto)")  # fmt: skip
    where.value("devices", "I,J,...", "which GPUs (default: all)", whole_list)
    where.value(
        "processes", "N", f"for auto: how many (default: as many as devices; on the CPU {CPU_PROCESSES})", whole
    )
    add_case_flags(parser)
    result = Group(parser, "the result")
    result.value("limit_s", "SECONDS", "a mesh that takes longer, loading included, has failed", number, 300.0)
    result.value("json", "FILE", "append a JSON object a mesh to this file")
    result.value("results", "FOLDER", f"the same, to {BENCH}.jsonl in this folder")
    result.value("commit", "NAME", "what the rows say where there is no git checkout")
    result.switch("quiet", "no progress bar")
    return parser


def mesh_of(text: str) -> ParallelConfig | str:
    """Returns the mesh that "dp2,sp2" means, "auto" as it is."""
    if text in ("auto", "one"):
        return text if text == "auto" else ParallelConfig()
    sizes = re.findall(r"(dp|mp|sp)([1-9][0-9]{0,2})(?:,|$)", text)
    if not sizes or ",".join(axis + size for axis, size in sizes) != text or len(dict(sizes)) != len(sizes):
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: auto, one, or sizes as dp2 or dp2,sp4")
    found = {axis: int(size) for axis, size in sizes}
    return ParallelConfig(found.get("dp", 1), found.get("mp", 1), found.get("sp", 1))


def name_of(mesh: ParallelConfig) -> str:
    """Returns "dp2,sp2", or "one"."""
    return ",".join(f"{axis}{getattr(mesh, axis)}" for axis in ("dp", "mp", "sp") if getattr(mesh, axis) > 1) or "one"


@dataclass(frozen=True)
class Bench:
    """Checked: a case, the meshes to measure it on, the kind of the devices and how many there are.

    auto: the mesh that `--dp_size auto` takes. gpu: the devices in words, "" on the CPU.
    """

    case: Case
    meshes: tuple[ParallelConfig, ...]
    auto: ParallelConfig
    kind: str
    count: int
    gpu: str

    @classmethod
    def of(cls, case: Case) -> Bench:
        """Checks all that needs no process.

        Raises:
            ConfigError, CheckpointError: what was asked for is not possible.
        """
        from sd3par import device
        from sd3par.auto import auto_mesh, meshes, needs
        from sd3par.config import ModelConfig, parse_config
        from sd3par.launch.spawn import choose_devices, device_count
        from sd3par.plan import rows_for
        from sd3par.vae import VAEConfig

        options, files = case.options, case.files()
        target = device.choose(options.dtype, options.device)
        model = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
        request = case.request.sized(model, VAEConfig.parse(files.vae.config, files.vae.where).scale_factor)
        what = (options.images, request.guidance)
        count, cards = device_count(target.kind), _cards(options, target.kind)
        every = [ParallelConfig()]
        for wanted in options.mesh:
            every += meshes(cards, *what, model.num_attention_heads) if wanted == "auto" else [wanted]
        for mesh in every:
            rows_for(0, mesh.dp, *what)
            model.check_mesh(mesh)
            given = None if options.devices is None else options.devices[: mesh.world]
            choose_devices(target.kind, count, mesh.world, given)
        gpu = "" if target.kind == "cpu" else f"{count} x {target.description()}"
        auto = auto_mesh(cards, options.images, request.guidance, *needs(model, target))
        return cls(Case(options, request), tuple(dict.fromkeys(every)), auto, target.kind, count, gpu)

    def run(self, command: str) -> list[dict[str, Any]]:
        """Measures each mesh and returns a row for each, written to the files that the flags name."""
        from tqdm import tqdm

        shared = record.surroundings(BENCH, command, self.case.options.commit, self.gpu) | self._of_all()
        rows = []
        with tqdm(self.meshes, unit="mesh", disable=self.case.options.quiet) as bar:
            for mesh in bar:
                bar.set_description(name_of(mesh))
                sizes = {"dp": mesh.dp, "mp": mesh.mp, "sp": mesh.sp, "world": mesh.world}
                row = {**shared, **sizes, **self.measure(mesh)}
                for file in _files(self.case.options):
                    record.append(file, row)
                rows.append(row)
        return rows

    def _of_all(self) -> dict[str, Any]:
        """What all rows say of the case."""
        request, (height, width) = self.case.request, self.case.request.size
        return {
            "who": "sd3par", "model": self.case.model.removeprefix("random:"), "height": height, "width": width,
            "text_tokens": self.case.text_tokens, "steps": request.num_inference_steps,
            "images": self.case.options.images, "guidance": request.guidance_scale,
        }  # fmt: skip

    def measure(self, mesh: ParallelConfig) -> dict[str, Any]:
        """Returns what processes of their own measured with a mesh, or why they failed."""
        from sd3par.launch import spawn

        options = self.case.options
        folder = Path(tempfile.mkdtemp(prefix="sd3par-"))
        given = None if options.devices is None else options.devices[: mesh.world]
        devices = spawn.choose_devices(self.kind, self.count, mesh.world, given)
        labels = None if devices is None else spawn.labels(self.kind, devices)
        words = spawn.launcher_words(folder, mesh.world, labels)
        flags = [*case_parser().as_argv(options), *_mesh_flags(mesh), f"--run_dir={folder}"]
        environment = spawn.worker_environment(mesh.world, self.kind)
        try:
            code = spawn.run([*words, str(SCRIPT), *flags], environment, folder, options.limit_s)
        except TimeoutError as error:
            return {"failed": str(error)}
        if code:
            reason = spawn.failure(code, folder)["reason"]
            return {"failed": f"{reason}; logs: {folder}"} | ({"oom": True} if endings.is_out_of_memory(reason) else {})
        row = json.loads((folder / "report.txt").read_text(encoding="utf-8"))
        shutil.rmtree(folder, ignore_errors=True)
        return dict(row)

    def report(self, rows: Sequence[dict[str, Any]]) -> str:
        """Returns the table of all rows, the fastest first, and what to type."""
        request, (height, width) = self.case.request, self.case.request.size
        lines = [f"{self.case.model}, {width} x {height}, {request.num_inference_steps} steps, guidance "
                 f"{request.guidance_scale:g}, {self.case.options.images} image(s), {self.case.text_tokens} text tokens"
                 f"; {self.gpu or 'CPU'}, median of {self.case.options.repeats}"]  # fmt: skip
        ranked = sorted(rows, key=lambda row: row.get("loop_s", float("inf")))
        alone = next((row.get("loop_s") for row in rows if row["world"] == 1), None)
        head = ("mesh", "cards", "loop s", "image s", "images/s", "peak GiB", "to one card", "")
        lines += [table([head, *(_cells(row, alone) for row in ranked)])]
        if "loop_s" in ranked[0]:
            best = ParallelConfig(*(ranked[0][axis] for axis in ("dp", "mp", "sp")))
            lines += [f"best: {name_of(best)}; --dp_size auto takes {name_of(self.auto)}", self.command(best)]
        return "\n".join(lines)

    def command(self, mesh: ParallelConfig) -> str:
        """Returns the command that renders with a mesh as it was measured."""
        parser, options = render_parser("", "", prompt_flag=False), self.case.options
        words = parser.parse(["PROMPT"])
        shared = ("model", "random_weights", "height", "width", "num_inference_steps", "guidance_scale",
                  "max_sequence_length", "dtype", "engine", "device", "transport")  # fmt: skip
        for flag in shared:
            setattr(words, flag, getattr(options, flag))
        words.prompt, words.num_images_per_prompt = None, options.images
        words.devices = None
        flags = [*parser.as_argv(words), *_mesh_flags(mesh)]
        if options.devices is not None and mesh.world > 1:
            flags.append(f"--devices={','.join(str(index) for index in options.devices[: mesh.world])}")
        return f"sd3par generate PROMPT {shlex.join(flags)}".rstrip()


def _cards(options: Namespace, kind: str) -> int:
    """Returns how many processes "auto" is about."""
    from sd3par.launch.spawn import device_count

    if options.devices is not None:
        require(options.processes is None, "processes", options.processes, "nothing beside --devices")
        return len(options.devices)
    if options.processes is None:
        return CPU_PROCESSES if kind == "cpu" else device_count(kind)
    require(1 <= options.processes <= 1024, "processes", options.processes, "1 to 1024")
    return int(options.processes)


def _files(options: Namespace) -> list[Path]:
    """Returns the files that take the rows."""
    own = [] if options.json is None else [Path(options.json)]
    return own + ([] if options.results is None else [Path(options.results) / f"{BENCH}.jsonl"])


def _mesh_flags(mesh: ParallelConfig) -> list[str]:
    return [f"--{axis}_size={getattr(mesh, axis)}" for axis in ("dp", "mp", "sp") if getattr(mesh, axis) > 1]


def _cells(row: dict[str, Any], alone: float | None) -> tuple[str, ...]:
    """Returns a row of the table; alone: the loop of one device."""
    name, cards = name_of(ParallelConfig(row["dp"], row["mp"], row["sp"])), str(row["world"])
    if "loop_s" not in row:
        return name, cards, "", "", "", "", "", f"failed: {row['failed']}"
    ratio = "" if alone is None else f"{alone / row['loop_s']:.2f}"
    times = (f"{row['loop_s']:.4f}", f"{row['image_s']:.4f}", f"{row['images_per_s']:.3f}", f"{row['peak_gib']:.2f}")
    return name, cards, *times, ratio, f"{row['engine']}, {row['transport']}"

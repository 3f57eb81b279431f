"""The flags of a sweep, and the cases that they make: every model on every mesh with all that is listed."""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sd3par.config import (
    MAX_GUIDANCE,
    MAX_STEPS,
    RANK_TIMEOUTS_S,
    TRANSPORTS,
    GenerationRequest,
    ParallelConfig,
    require,
)
from sd3par.errors import ConfigError
from sd3par.launch.bench.case import CLIP_TOKENS, Case, Group, mesh_of, size_of
from sd3par.launch.flags import DEFAULT_MODEL, DEVICES, DTYPES, ENGINES, RANDOM_MODELS
from sd3par.launch.flags import Group as Flags
from sd3par.launch.parser import Parser, number, one_of, whole, whole_list

if TYPE_CHECKING:
    from sd3par.config import ModelConfig
    from sd3par.device import Device

PLAIN, PLAIN_WARM_UPS, PLAIN_REPEATS = "plain", 1, 2
MAX_REPEATS, MAX_BATCH = 1000, 4096
CPU_PROCESSES = 2  # more only wait for each other's cores
MANY_IMAGES = 8  # --few_steps is for more
SMOKE_STEPS, SMOKE_WARM_UPS, SMOKE_REPEATS, SMOKE_IMAGES, SMOKE_LIST = 2, 1, 2, 2, 2
# Flags that change nothing where only a part of the model is measured: taken, since `bench all` hands all flags on.
UNUSED = {
    "vae": ("num_inference_steps", "few_steps", "guidance_scale", "max_sequence_length"),
    "text": ("size", "num_inference_steps", "few_steps"),
}
# What is new in each repeat.
NEW = {"vae": "", "text": ", each with new prompts"}
# Beside its own size a model is measured at these shares of it, width and height: 1024 gives 512, 768 and 1280 x 768.
SHARES = ((0.5, 0.5), (0.75, 0.75), (1.25, 0.75), (1.0, 1.0))


@dataclass(frozen=True)
class Defaults:
    """What a kind of sweep lists where its flags are not given.

    own: sizes, as shares of the model's own width and height. per_card: images are those of each device. what: one of
    `parts.PARTS`.
    """

    mesh: tuple[str, ...] = ("one",)
    engine: tuple[str, ...] = ("auto",)
    images: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = (28,)
    guidance: tuple[float, ...] = (7.0,)
    own: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    repeats: int = 10
    few_steps: int | None = None
    per_card: bool = False
    what: str = "pictures"


@dataclass(frozen=True)
class Sweep:
    """Checked: which cases on which group, in order, of one kind.

    autos: the mesh that `--dp_size auto` takes for a model.
    """

    options: Namespace
    groups: tuple[tuple[Group, tuple[Case, ...]], ...]
    autos: Mapping[str, ParallelConfig]

    @property
    def pairs(self) -> list[tuple[Group, Case]]:
        """Each case with its group."""
        return [(group, case) for group, cases in self.groups for case in cases]


def add_flags(parser: Parser, standard: Defaults) -> None:
    """Adds all flags of a sweep. Those that take several values are measured with each."""
    _add_lists(Flags(parser, "what is measured: every combination of these"), standard)
    model = Flags(parser, "the model" if standard.what == "text" else "the model; its text encoders are left out")
    model.other("--model", metavar="PATH", nargs="+", help=f"{DEFAULT_MODEL}, diffusers folders, or .safetensors files "
                f"(default: {DEFAULT_MODEL})")  # fmt: skip
    model.other("--random_weights", metavar="NAME", nargs="+", type=one_of(RANDOM_MODELS), help="instead of --model: "
                f"{', '.join(RANDOM_MODELS)}, with made-up weights")  # fmt: skip
    model.other("--dtype", metavar="NAME", nargs="+", type=one_of(DTYPES), default=["auto"],
                help=f"{', '.join(DTYPES)}; auto is bfloat16 on GPUs, else float32")  # fmt: skip
    model.value("device", "NAME", f"{', '.join(DEVICES)}; auto is the fastest there is", one_of(DEVICES), "auto")
    model.value("devices", "I,J,...", "which GPUs (default: all)", whole_list)
    model.value(
        "processes", "N", f"for --mesh auto: how many (default: the devices; on the CPU {CPU_PROCESSES})", whole
    )
    model.value("transport", "NAME", ", ".join(TRANSPORTS), one_of(TRANSPORTS), "auto")
    model.value("memory_gib", "N", "measure as if only so much memory of each GPU were free", number)
    model.other("--peers", metavar="NAME", nargs="+", help="measured, too, in turn with ours, on the same made-up "
                "weights, in a checkout with PyTorch: eager, default, reduce-overhead, max-autotune (of diffusers), "
                "xdit:dp2,sp2, ... (guidance split x Ulysses)")  # fmt: skip
    how = Flags(parser, "how it is measured")
    how.value("warm_ups", "N", "calls that do not count; four at least of what is recorded", whole, 4)
    new = NEW.get(standard.what, ", each with new text states and a new seed")
    how.value("repeats", "N", f"calls that count{new}", whole, standard.repeats)
    how.value("rank_timeout_s", "SECONDS", "a case fails when one of its processes is silent for so long", number, 20.0)
    how.value("limit_s", "SECONDS", "a case that takes longer has failed", number, 300.0)
    how.value("budget_s", "SECONDS", "cases that have not begun by then are not run", number)
    how.value("case_s", "SECONDS", "a case that has taken so long makes no more repeats", number)
    steps = "" if standard.what in UNUSED else f"{SMOKE_STEPS} steps, "
    how.switch("smoke", f"does it run? {steps}{SMOKE_REPEATS} repeats, at most {SMOKE_LIST} values each")
    parser.hide(UNUSED.get(standard.what, ()))


def _add_lists(lists: Flags, standard: Defaults) -> None:
    engines = (*(name for name in ENGINES if name != "static"), PLAIN)  # exports: benchmarks.gpu.static
    lists.other("--mesh", metavar="MESH", nargs="+", type=mesh_of, default=[mesh_of(one) for one in standard.mesh],
                help="auto, all that are possible with so many processes; or one, dp2, dp2,sp2, ... (default: "
                f"{' '.join(standard.mesh)})")  # fmt: skip
    lists.other("--engine", metavar="NAME", nargs="+", type=one_of(engines), default=list(standard.engine),
                help=f"{', '.join(engines)}: Paddle without our kernels, on one device")  # fmt: skip
    shares = "" if len(standard.own) == 1 else ", and shares of it"
    lists.other("--size", metavar="WxH", nargs="+", type=size_of, help="pixels, as 1024 or 1280x768, multiples of 16 "
                f"(default: the model's own{shares})")  # fmt: skip
    of = "for each device" if standard.per_card else "at once"
    lists.other("--images", metavar="N", nargs="+", type=whole, default=list(standard.images),
                help=f"pictures rendered {of}")  # fmt: skip
    lists.other("--num_inference_steps", metavar="N", nargs="+", type=whole, default=list(standard.steps),
                help=f"denoise steps, 1 to {MAX_STEPS}")  # fmt: skip
    lists.value("few_steps", "N", f"steps of cases with more than {MANY_IMAGES} pictures, so that they end", whole,
                standard.few_steps)  # fmt: skip
    lists.other("--guidance_scale", metavar="X", nargs="+", type=number, default=list(standard.guidance),
                help=f"0 to {MAX_GUIDANCE:g}; guidance begins above 1")  # fmt: skip
    lists.value("max_sequence_length", "N", f"text tokens besides CLIP's {CLIP_TOKENS}, 1 to 512", whole,
                GenerationRequest.max_sequence_length)  # fmt: skip


def sweep_of(name: str, standard: Defaults, options: Namespace) -> Sweep:
    """Returns the sweep of a kind that flags ask for; checks all that needs no process.

    Raises:
        ConfigError, CheckpointError: what was asked for is not possible.
    """
    from sd3par import device

    _check(options)
    groups: list[tuple[Group, tuple[Case, ...]]] = []
    autos: dict[str, ParallelConfig] = {}
    for model, dtype in itertools.product(_models(options), options.dtype):
        target = device.choose(dtype, options.device)
        cpu = target.kind == "cpu" and options.memory_gib is not None
        require(not cpu, "memory_gib", options.memory_gib, "nothing on the CPU")
        found, autos[model] = _groups(options, name, standard, model, target)
        groups += found
    return Sweep(options, tuple(groups), autos)


def _check(options: Namespace) -> None:
    """Refuses numbers that no model can have, and flags that contradict each other."""
    both = options.model is not None and options.random_weights is not None
    require(not both, "random_weights", options.random_weights, "nothing beside --model")
    limits: dict[str, tuple[float, float]] = {
        "warm_ups": (0, MAX_REPEATS),
        "repeats": (1, MAX_REPEATS),
        "images": (1, MAX_BATCH),
        "case_s": (0, 86400),
        "budget_s": (1, 86400),
        "few_steps": (1, MAX_STEPS),
        "rank_timeout_s": RANK_TIMEOUTS_S,
        "limit_s": (1, 86400),
        "memory_gib": (1, 4096),
    }
    for name, (low, high) in limits.items():
        value = getattr(options, name)
        for one in value if isinstance(value, list) else [value]:
            require(one is None or low <= one <= high, name, one, f"{low:g} to {high:g}")
    if options.smoke:
        options.warm_ups, options.repeats = SMOKE_WARM_UPS, SMOKE_REPEATS


def _models(options: Namespace) -> list[str]:
    """Returns the models, as `weights.open_model` takes them."""
    made_up = [f"random:{name}" for name in options.random_weights or ()]
    return made_up or list(options.model or (DEFAULT_MODEL,))


def _groups(
    options: Namespace, name: str, standard: Defaults, model: str, target: Device
) -> tuple[list[tuple[Group, tuple[Case, ...]]], ParallelConfig]:
    """Returns the groups of a model with their cases, and the mesh that `--dp_size auto` takes for the first one."""
    from sd3par import weights
    from sd3par.auto import auto_mesh, check_transport, needs
    from sd3par.config import ModelConfig, parse_config
    from sd3par.launch.spawn import choose_devices, device_count
    from sd3par.vae import VAEConfig

    files = weights.open_model(model, text_encoders=False)
    require(files.export is None, "model", model, "a checkpoint; python -m benchmarks.gpu.static measures exports")
    config = parse_config(ModelConfig, files.transformer.config, files.transformer.where)
    scale = VAEConfig.parse(files.vae.config, files.vae.where).scale_factor
    engines = list(dict.fromkeys("eager" if one == "auto" and target.kind == "cpu" else one for one in options.engine))
    cases = list(_cases(options, name, standard, engines, config, scale))
    cards, groups = _cards(options, target.kind), []
    for mesh in dict.fromkeys(_meshes(options, cards, cases, config.num_attention_heads)):
        config.check_mesh(mesh)
        check_transport(mesh, target)
        given = None if options.devices is None else options.devices[: mesh.world]
        choose_devices(target.kind, device_count(target.kind), mesh.world, given)
        own = tuple(_cases_on(mesh, cases, standard, "auto" not in options.mesh))
        group = Group(model, target.dtype, mesh, options.memory_gib, wants_text(standard.what, model))
        groups += [(group, own)] if own else []
    first = cases[0]
    return groups, auto_mesh(cards, first.images, first.request.guidance, *needs(config, target))


def _cases(
    options: Namespace, name: str, standard: Defaults, engines: Sequence[str], config: ModelConfig, scale: int
) -> Iterator[Case]:
    """Yields every combination; images as they were given."""
    sizes = options.size or [_share(config, scale, *share) for share in standard.own]
    lists = [engines, sizes, options.images, options.num_inference_steps, options.guidance_scale]
    if options.smoke:
        few = [each for each in options.images if each <= SMOKE_IMAGES] or [SMOKE_IMAGES]
        short = [each for each in options.num_inference_steps if each <= SMOKE_STEPS] or [SMOKE_STEPS]
        lists = [each[:SMOKE_LIST] for each in (engines, sizes, few, short, options.guidance_scale)]
    for engine, (width, height), count, wanted, guidance in itertools.product(*lists):
        few_steps = options.few_steps is not None and count > MANY_IMAGES
        made = min(wanted, options.few_steps) if few_steps else wanted
        calls = (options.warm_ups, options.repeats)
        if engine == PLAIN:  # slow, and nothing is compiled or recorded
            calls = (min(calls[0], PLAIN_WARM_UPS), min(calls[1], PLAIN_REPEATS))
        case = Case(name, standard.what, engine, height, width, count, made, guidance, options.max_sequence_length,
                    *calls, options.case_s)  # fmt: skip
        case.request.sized(config, scale)  # refuses what the model cannot draw
        yield case


def wants_text(what: str, model: str) -> bool:
    """Whether text encoders are loaded: to be measured, or to draw what a trained model was asked for."""
    return what == "text" or (what == "pictures kept" and model == DEFAULT_MODEL)


def _share(config: ModelConfig, scale: int, wide: float, high: float) -> tuple[int, int]:
    """Returns a share of the model's own size, in multiples of what it can draw."""
    own, step = config.sample_size * scale, config.patch_size * scale
    return max(step, round(own * wide / step) * step), max(step, round(own * high / step) * step)


def _meshes(options: Namespace, cards: int, cases: Sequence[Case], heads: int) -> Iterator[ParallelConfig]:
    """Yields the meshes, that of one device first, by which others are judged."""
    from sd3par.auto import meshes

    if ParallelConfig() not in options.mesh and (len(options.mesh) > 1 or options.mesh[0] == "auto"):
        yield ParallelConfig(transport=options.transport)
    for wanted in options.mesh:
        kinds = dict.fromkeys((case.images, case.request.guidance) for case in cases)
        named = [wanted] if wanted != "auto" else [mesh for kind in kinds for mesh in meshes(cards, *kind, heads)]
        yield from (replace(mesh, transport=options.transport) for mesh in named)


def _cases_on(mesh: ParallelConfig, cases: Sequence[Case], standard: Defaults, named: bool) -> Iterator[Case]:
    """Yields the cases for a mesh: with as many images as it has to share, and `PLAIN` on one device.

    named: whether the caller wants this mesh, so that a case it cannot render is an error.
    """
    from sd3par.plan import rows_for

    for case in cases:
        case = replace(case, images=case.images * mesh.world) if standard.per_card else case
        if case.engine == PLAIN and mesh.world > 1:
            continue
        try:
            rows_for(0, mesh.dp, case.images, case.request.guidance)
        except ConfigError:
            if named:
                raise
            continue
        yield case


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

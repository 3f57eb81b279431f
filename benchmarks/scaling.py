"""Writes benchmarks/scaling.md from the model of a step's time and the committed results: python -m benchmarks.scaling

python -m benchmarks.scaling --network_gbs 25    hosts that are joined by other links
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import step_time
from benchmarks.record import RESULTS
from benchmarks.step_time import ONE_HOST, Network, Work, decode_s, kernels_us, loop_s, sent
from sd3par.auto import auto_mesh, meshes
from sd3par.config import ModelConfig, ParallelConfig, parse_config
from sd3par.launch.bench.case import name_of
from sd3par.weights import open_model

PAGE = Path(__file__).with_name("scaling.md")
TEXT = Path(__file__).with_name("scaling_text.md")
MODELS = ("sd3-medium", "sd3.5-medium", "sd3.5-large")
SIZES = (512, 1024, 2048)
CARDS, MORE_CARDS = (1, 2, 4, 8), (16, 32, 48)

Row = dict[str, Any]


def config_of(model: str) -> ModelConfig:
    """Returns the shape of a model."""
    component = open_model(f"random:{model}", text_encoders=False).transformer
    return parse_config(ModelConfig, component.config, component.where)


def work_of(model: str, px: int, images: int = 1, **other: Any) -> Work:
    """Returns what a square picture of `px` pixels, or several, are to the model of the time."""
    return Work(config_of(model), (px // 16) ** 2, images=images, **other)


def legal(work: Work, cards: int) -> list[ParallelConfig]:
    """Returns the meshes of `cards`."""
    return meshes(cards, work.images, work.guidance, work.model.num_attention_heads)


def chosen(work: Work, cards: int) -> ParallelConfig:
    """Returns the mesh that `--dp_size auto` takes where memory is no limit."""
    return auto_mesh(cards, work.images, work.guidance, work.model.num_attention_heads)


def fastest(work: Work, cards: int, network: Network = ONE_HOST) -> ParallelConfig:
    """Returns the mesh that should be fastest."""
    return min(legal(work, cards), key=lambda mesh: loop_s(work, mesh, network))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(predicted: float, measured: float) -> str:
    """Returns how far a prediction is from a measurement."""
    return f"{100 * (predicted / measured - 1):+.1f} %"


def loops(folder: Path) -> Iterator[Row]:
    """Yields rows of ours with recorded steps and today's transport, of the results in `folder`."""
    for file in (folder / "loop.jsonl", folder / "parallel.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            row = json.loads(line)
            current = row.get("transport") == "peer" or row.get("mp", 1) * row.get("sp", 1) == 1
            if row.get("who") != "sd3par" or row.get("engine") != "graph" or "loop_s" not in row or not current:
                continue
            if (row["steps"], row["text_tokens"]) != (28, 333):  # what the page is about
                continue
            if row["world"] > 1 and "transport" not in row:  # from before there was any
                continue
            yield row


def newest_of(rows: Iterable[Row]) -> list[Row]:
    """Returns the newest row of each case."""
    newest: dict[tuple[Any, ...], Row] = {}
    names = ("model", "height", "width", "images", "guidance", "text_tokens", "steps", "dp", "mp", "sp")
    for row in rows:
        case = tuple(row[name] for name in names)
        if case not in newest or newest[case]["when"] <= row["when"]:
            newest[case] = row
    return sorted(newest.values(), key=lambda row: (MODELS.index(row["model"]), row["images"], row["height"],
                                                    row["world"], row["loop_s"]))  # fmt: skip


def calibration() -> Iterator[tuple[str, ...]]:
    """Yields what the model was fitted to, what it says, and the error."""
    blocks: dict[int, list[float]] = {}
    for (rows, *shape), us in step_time.PRODUCTS.items():
        both = blocks.setdefault(rows, [0.0, 0.0])
        both[0], both[1] = both[0] + us, both[1] + step_time.product_us(rows, *shape)
    for rows, (us, said) in blocks.items():
        yield f"four products of a block, {rows} rows", f"{us:.0f} us", f"{said:.0f} us", percent(said, us)
    for (rows, heads), us in step_time.ATTENTION.items():
        said = step_time.attention_us(rows, heads, 4429)
        yield f"attention, {rows} row(s), {heads} heads", f"{us:.0f} us", f"{said:.0f} us", percent(said, us)
    for sizes, seconds in step_time.LOOPS.items():
        mesh = ParallelConfig(*sizes)
        said = loop_s(work_of("sd3-medium", 1024), mesh)
        yield f"loop of 28 steps, {name_of(mesh)}", f"{seconds:.3f} s", f"{said:.3f} s", percent(said, seconds)


def comparison(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Yields the newest row of each case beside the prediction; ratios are of one card in the same run."""
    alone = {_pictures(row): row["loop_s"] for row in rows if row["world"] == 1}
    for row in newest_of(rows):
        model = config_of(row["model"])
        tokens = row["height"] * row["width"] // 256
        work = Work(model, tokens, row["text_tokens"], row["images"], row["guidance"] > 1, row["steps"])
        mesh = ParallelConfig(row["dp"], row["mp"], row["sp"])
        one = alone.get(_pictures(row))
        said = loop_s(work, mesh)
        yield (
            f"{row['model']}, {row['images']} of {row['width']} x {row['height']}", name_of(mesh), str(row["world"]),
            f"{row['loop_s']:.3f}", f"{row['image_s']:.3f}", "" if one is None else f"{one / row['loop_s']:.2f}",
            f"{row['peak_gib']:.1f}", f"{said:.3f}", percent(said, row["loop_s"]), row["commit"],
        )  # fmt: skip


def _pictures(row: Row) -> tuple[Any, ...]:
    """Returns what a row made pictures of, and in which run."""
    return tuple(row[name] for name in ("run_id", "model", "height", "width", "images", "guidance"))


def traffic() -> Iterator[tuple[str, ...]]:
    """Yields what a card sends in a step on each mesh."""
    work = work_of("sd3-medium", 1024)
    for mesh in (mesh for cards in CARDS[1:] for mesh in legal(work, cards)):
        told = sent(work, mesh)
        yield (
            name_of(mesh), str(mesh.world), f"{told.hidden / 1e6:.0f}", f"{told.shown / 1e6:.0f}",
            f"{told.gathered / 1e6:.2f}", str(told.meetings), f"{sum(kernels_us(work, mesh)) / 1e3:.1f}",
            f"{step_time.step_ms(work, mesh):.1f}",
        )  # fmt: skip


def predictions(work: Work) -> Iterator[tuple[str, ...]]:
    """Yields every mesh of 2, 4 and 8 cards, the fastest first."""
    one = loop_s(work, ParallelConfig())
    for cards in CARDS[1:]:
        for mesh in sorted(legal(work, cards), key=lambda mesh: loop_s(work, mesh)):
            loop = loop_s(work, mesh)
            auto = "auto" if mesh == chosen(work, cards) else ""
            yield (
                str(cards),
                name_of(mesh),
                f"{loop:.3f}",
                f"{loop + decode_s(work, mesh):.3f}",
                f"{one / loop:.2f}",
                auto,
            )


def sizes() -> Iterator[tuple[str, ...]]:
    """Yields the fastest mesh and the one that auto takes, for each model and size."""
    for model in MODELS:
        for px in SIZES:
            work = work_of(model, px)
            one, cells = loop_s(work, ParallelConfig()), []
            for cards in CARDS[1:]:
                best, auto = fastest(work, cards), chosen(work, cards)
                loop = loop_s(work, auto)
                other = "" if best == auto else f"; {name_of(best)} {loop_s(work, best):.3f}"
                cells.append(f"{name_of(auto)} {loop:.3f} ({one / loop:.2f}){other}")
            yield model, str(px), f"{one:.3f}", *cells


def hosts(network: Network) -> Iterator[tuple[str, ...]]:
    """Yields predictions for cards of several hosts."""
    for px, images in ((1024, 1), (2048, 1), (1024, 16)):
        work = work_of("sd3-medium", px, images)
        one = loop_s(work, ParallelConfig())
        for cards in (CARDS[-1], *MORE_CARDS):
            possible = sorted(legal(work, cards), key=lambda mesh: loop_s(work, mesh, network))
            said = "; ".join(
                f"{name_of(mesh)} {loop_s(work, mesh, network):.3f} ({one / loop_s(work, mesh, network):.1f})"
                for mesh in possible[:3]
            )
            count = math.ceil(cards / network.cards)
            yield f"{images} of {px} x {px}", str(cards), str(count), said or "none", name_of(chosen(work, cards))


def page(network: Network, folder: Path) -> str:
    """Returns the document."""
    rows = list(loops(folder))
    parts = {
        "CALIBRATION": table(("what", "measured", "model", "error"), calibration()),
        "MEASURED": table(("what", "mesh", "cards", "loop s", "image s", "to one card", "peak GiB", "model s", "error",
                           "commit"), comparison(rows)),
        "TRAFFIC": table(("mesh", "cards", "MB stored while kernels compute", "MB stored by norms", "MB gathered",
                          "meetings", "kernels alone, ms", "step, ms"), traffic()),
        "PREDICTED": table(("cards", "mesh", "loop s", "image s", "to one card", ""),
                           predictions(work_of("sd3-medium", 1024))),
        "SIZES": table(("model", "size", "1 card", *(f"{cards} cards" for cards in CARDS[1:])), sizes()),
        "HOSTS": table(("pictures", "cards", "hosts", "fastest meshes: loop s (to one card)", "auto"), hosts(network)),
        "NETWORK": f"{network.bytes / 1e9:g} GB/s a card and {network.us:g} us a message",
        "CONSTANTS": table(("number", "value"), constants()),
    }  # fmt: skip
    text = TEXT.read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def constants() -> Iterator[tuple[str, ...]]:
    """Yields the numbers of the model."""
    yield "products of both streams", f"{step_time.PRODUCT_FLOPS / 1e12:g} TFLOP/s and {step_time.PRODUCT_US:g} us each"
    yield "attention", f"{step_time.ATTENTION_FLOPS / 1e12:g} TFLOP/s and {step_time.ATTENTION_US:g} us each"
    yield "norms", f"{step_time.NORM_BYTES / 1e12:g} TB/s and {step_time.NORM_US:g} us each"
    yield "kernels in a recorded step, to kernels alone", f"{step_time.SLOWER:g}"
    yield "stores to peers over NVLink", f"{step_time.PEER_BYTES / 1e9:g} GB/s"
    yield "of what products and attention store to peers, the part that costs time", f"{step_time.EXPOSED:g}"
    yield "of the time of norms to other cards, the part that is left where they are copied", f"{step_time.COPIED:g}"
    yield "a meeting", f"{step_time.MEETING_US:g} us"
    yield "a small all-gather", f"{step_time.GATHER_US:g} us (assumed)"
    yield "a loop without its steps", f"{step_time.LOOP_MS:g} ms for two rows"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--network_gbs", type=float, default=ONE_HOST.bytes / 1e9, help="GB/s of a card between hosts")
    parser.add_argument("--network_us", type=float, default=ONE_HOST.us, help="of a message between hosts")
    parser.add_argument("--host_cards", type=int, default=ONE_HOST.cards, help="cards of a host")
    parser.add_argument("--results", type=Path, default=RESULTS / "h200")
    options = parser.parse_args()
    network = Network(options.host_cards, 1e9 * options.network_gbs, options.network_us)
    PAGE.write_text(page(network, options.results), encoding="utf-8")
    print(f"wrote {PAGE.name}")


if __name__ == "__main__":
    main()

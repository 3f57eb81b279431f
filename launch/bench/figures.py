"""The figures of `sd3par bench plot`; each takes all rows and returns None where it finds nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sd3par.launch.bench.case import name_of
from sd3par.launch.bench.series import breakdowns, by_batch, by_cards, per_second, total

Row = dict[str, Any]
# Distinct to the colour-blind, by Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#999933", "#882255", "#BBBBBB")
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "sd3par", "svg.fonttype": "none",
}  # fmt: skip
MOST_SERIES, GREY = 7, "#888888"
NEAR = 0.5  # names of points this close would cover each other


def scaling(rows: Sequence[Row]) -> Figure | None:
    """Seconds, speed-up and efficiency against cards, with the best mesh of each number of cards."""
    series = _largest(by_cards(rows))
    if not series:
        return None
    figure, axes = _figure(3, 5.2)
    said: list[tuple[str, float, float]] = []
    cards = sorted({world for points in series.values() for world in points})
    axes[1].plot(cards, cards, "--", color=GREY)
    axes[1].annotate("ideal", (cards[-1], cards[-1]), ha="right", va="bottom", xytext=(-12, -4),
                     textcoords="offset points", color="#666666")  # fmt: skip
    axes[2].axhline(100, ls="--", color=GREY)
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        worlds = sorted(points)
        ratios = [points[world][1] / points[world][0]["loop_s"] for world in worlds]
        shares = [100 * ratio / world for ratio, world in zip(ratios, worlds, strict=True)]
        loops = [points[world][0]["loop_s"] for world in worlds]
        for axis, values in zip(axes, (loops, ratios, shares), strict=True):
            axis.plot(worlds, values, "o-", color=colour, label=name)
        for world, ratio in zip(worlds[1:], ratios[1:], strict=True):
            _say(axes[1], name_of(points[world][0]), (world, ratio), colour, said)
    for axis, title in zip(axes, ("seconds of a loop", "times one card", "efficiency, %"), strict=True):
        axis.set(xlabel="cards", title=title, xlim=(0.6, cards[-1] + 0.9), xticks=cards)
        _from_zero(axis)
    axes[0].legend(fontsize=8)
    return _signed(figure, [row for points in series.values() for row, _ in points.values()])


def _say(
    axis: Axes, name: str, place: tuple[float, float], colour: str, said: list[tuple[str, float, float]]
) -> None:  # fmt: skip
    """Writes a name below a point, unless it stands there already."""
    x, y = place
    if not any(name == other and x == at and abs(y - height) < NEAR for other, at, height in said):
        said.append((name, x, y))
        axis.annotate(name, place, xytext=(5, -13), textcoords="offset points", fontsize=8, color=colour)


def batch(rows: Sequence[Row]) -> Figure | None:
    """Pictures a second, the time of a step and memory against pictures at once; all of a line at as many steps.

    What was measured with fewer is computed for them, drawn hollow and told of below the figure.
    """
    series = _largest(by_batch(rows))
    if not series:
        return None
    figure, axes = _figure(3, 4.6)
    computed = []
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        counts = sorted(points)
        each = [points[count]["step_ms"] / count for count in counts]
        steps = max(row["steps"] for row in points.values())
        speed, memory = (
            [per_second(points[count], steps) for count in counts],
            [points[count]["peak_gib"] for count in counts],
        )
        for axis, values in zip(axes, (speed, each, memory), strict=True):
            axis.plot(counts, values, "o-", color=colour, label=f"{name}, {steps} steps")
        few = [(count, rate) for count, rate in zip(counts, speed, strict=True) if points[count]["steps"] < steps]
        if few:
            axes[0].plot(*zip(*few, strict=True), "o", color=colour, markerfacecolor="white")
        computed += [(points[count]["steps"], steps) for count, _ in few]
    titles = ("pictures a second", "ms a step and picture", "peak GiB of a rank")
    ticks = sorted({count for points in series.values() for count in points})
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.set(xlabel="pictures at once", title=title)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        _from_zero(axis)
    axes[0].legend(fontsize=8)
    return _signed(figure, [row for points in series.values() for row in points.values()], _told(computed))


def _told(computed: Sequence[tuple[int, int]]) -> str:
    """Returns what is to be said of points that are computed from fewer steps; computed: steps of both."""
    pairs = " and ".join(f"{few} steps, computed for {steps}" for few, steps in sorted(set(computed)))
    return f"hollow: pictures a second measured with {pairs} by the time of a step\n" if pairs else ""


def step(rows: Sequence[Row]) -> Figure | None:
    """The time of a step by kernel, stacked, a bar a model and size."""
    bars, used = breakdowns(rows)
    if not bars:
        return None
    totals: dict[str, float] = {}
    for found in bars.values():
        for kernel, (ms, _) in found.items():
            totals[kernel] = totals.get(kernel, 0.0) + ms
    figure, (axis,) = _figure(1, 1.6 + 0.6 * len(bars), 11)
    names, left = list(bars), [0.0] * len(bars)
    wide = 0.04 * max(map(total, bars.values()))
    for kernel, colour in zip(sorted(totals, key=lambda one: -totals[one]), COLOURS * 10, strict=False):
        widths = [bars[name].get(kernel, (0.0, 0.0))[0] for name in names]
        drawn = axis.barh(names, widths, left=left, color=colour, label=kernel, height=0.6)
        labels = [f"{width:.1f}" if width > wide else "" for width in widths]
        axis.bar_label(drawn, labels, label_type="center", color="white", fontsize=9)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(xlabel="ms a step", title="where the time of a denoising step goes")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _signed(figure, used)


def floor(rows: Sequence[Row]) -> Figure | None:
    """What each kernel takes beside the least that the card could take for it, of the largest pictures."""
    bars, used = breakdowns(rows)
    if not bars:
        return None
    name, found = max(bars.items(), key=lambda pair: total(pair[1]))
    shown = {kernel: both for kernel, both in found.items() if both[1] > 0.0}
    figure, (axis,) = _figure(1, 1.6 + 0.4 * len(shown), 9)
    kernels = sorted(shown, key=lambda one: -shown[one][0])
    shares = [100 * shown[kernel][1] / shown[kernel][0] for kernel in kernels]
    labels = [f" {share:.0f} % of {shown[kernel][0]:.2f} ms" for kernel, share in zip(kernels, shares, strict=True)]
    axis.bar_label(axis.barh(kernels, shares, color=COLOURS[0], height=0.6), labels, fontsize=9)
    axis.axvline(100, ls="--", color=GREY)
    axis.set(xlabel="least time that products and copies would take, % of its own", title=name,
             xlim=(0, 1.35 * max(100, *shares)))  # fmt: skip
    axis.invert_yaxis()
    return _signed(figure, used)


def _largest(series: dict[str, Any]) -> dict[str, Any]:
    """Returns the series with the most points."""
    return dict(sorted(series.items(), key=lambda pair: -len(pair[1]))[:MOST_SERIES])


def _from_zero(axis: Axes) -> None:
    axis.set_ylim(0, 1.08 * max(axis.dataLim.ymax, 1e-9))


def _figure(columns: int, height: float, width: float = 15.0) -> tuple[Figure, list[Axes]]:
    """Returns a figure with axes side by side, without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, columns, index + 1) for index in range(columns)]


def _signed(figure: Figure, rows: Sequence[Row], first: str = "") -> Figure:
    """Writes below a figure from which runs it is: those of other commits may not be compared; first: goes before."""
    runs = dict.fromkeys(f"{row['run_id']} ({row.get('commit', 'unknown')})" for row in rows)
    gpus = dict.fromkeys(str(row.get("gpu") or row.get("cpu", "")).split(" x ")[-1] for row in rows)
    figure.supxlabel(f"{first}{', '.join(gpus)}; runs (commits): {', '.join(runs)}", fontsize=8, color="#666666")
    return figure


def draw(name: str, rows: Sequence[Row]) -> Figure | None:
    """Returns one of `FIGURES`, None where there is nothing to show."""
    with matplotlib.rc_context(STYLE):
        return FIGURES[name](rows)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes a figure as NAME.png and NAME.svg; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    pixels = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(pixels, dpi=100)
        figure.savefig(files[1], metadata={"Date": None})  # the same rows give the same file
    # A third of the bytes; by the default method lines of two oranges would be of one.
    few = Image.open(pixels).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE)
    few.save(files[0], optimize=True)
    return files


FIGURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "scaling": scaling, "batch": batch, "step": step, "floor": floor,
}  # fmt: skip

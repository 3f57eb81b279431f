"""Rows of results as tables: of the terminal, or of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sd3par.launch.bench.case import name_of
from sd3par.launch.report import table

Row = dict[str, Any]
MOST_SPREAD = 0.05  # of repeats: beyond it a row's ratios are not to be trusted
FEW = 3  # repeats: of fewer the spread says little


@dataclass(frozen=True)
class Column:
    """A heading, and what stands below it; an empty cell where a row has nothing to say."""

    head: str
    cell: Callable[[Row], str]

    def of(self, row: Row) -> str:
        """Returns a row's cell."""
        try:
            return self.cell(row)
        except KeyError:
            return ""


def _number(name: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: f"{scale * row[name]:.{digits}f}"


COLUMNS = {
    "model": Column("model", lambda row: str(row["model"])),
    "who": Column("who", lambda row: str(row["who"])),
    "mesh": Column("mesh", name_of),
    "cards": Column("cards", lambda row: str(row["world"])),
    "engine": Column("engine", lambda row: "" if row["engine"] == "auto" else str(row["engine"])),  # of a failed case
    "dtype": Column("dtype", lambda row: str(row["dtype"])),
    "size": Column("size", lambda row: f"{row['width']} x {row['height']}"),
    "images": Column("batch", lambda row: str(row["images"])),
    "micro": Column("a card", lambda row: f"{row['images'] / row['world']:g}"),
    "steps": Column("steps", lambda row: str(row["steps"])),
    "guidance": Column("guidance", lambda row: f"{row['guidance']:g}"),
    "tokens": Column("text tokens", lambda row: str(row["text_tokens"])),
    "loop": Column("loop s", _number("loop_s", 4)),
    "loop_min": Column("min", _number("loop_min_s", 4)),
    "loop_p90": Column("p90", _number("loop_p90_s", 4)),
    "image": Column("image s", _number("image_s", 4)),
    "image_min": Column("min", _number("image_min_s", 4)),
    "image_p90": Column("p90", _number("image_p90_s", 4)),
    "step": Column("step ms", _number("step_ms", 2)),
    "its": Column("steps/s", lambda row: f"{row['steps'] / row['loop_s']:.1f}"),
    "decode": Column("decode s", _number("decode_s", 4)),
    "decode_min": Column("min", _number("decode_min_s", 4)),
    "decode_p90": Column("p90", _number("decode_p90_s", 4)),
    "encode": Column("encode s", _number("encode_s", 4)),
    "encode_min": Column("min", _number("encode_min_s", 4)),
    "encode_p90": Column("p90", _number("encode_p90_s", 4)),
    "images_s": Column("images/s", _number("images_per_s", 3)),
    "each": Column("images/s a card", _number("images_per_s_per_gpu", 3)),
    # Cases of other numbers of steps may be compared by it, as those of many pictures with --few_steps.
    "work": Column(
        "images x steps/s a card", lambda row: f"{row['images'] * row['steps'] / row['loop_s'] / row['world']:.1f}"
    ),
    "peak": Column("peak GiB", _number("peak_gib", 2)),
    "reserved": Column("held GiB", _number("reserved_gib", 2)),
    "ratio": Column("to one card", lambda row: f"{row['to_one']:.2f}"),
    "beside": Column("latents", lambda row: f"{row['latents_error']:.1e}" if "latents_error" in row else ""),
    "spread": Column("spread", lambda row: _spread(row)),
    "note": Column("", lambda row: note(row)),
}
# What may differ between the cases of a sweep: a column if it does, else part of the title.
VARIED = ("who", "model", "dtype", "mesh", "cards", "engine", "size", "images", "steps", "guidance", "tokens")


def _spread(row: Row) -> str:
    """Returns the spread of a row's repeats, with a mark where it is wide or says little."""
    marks = ("!" if row["spread"] > MOST_SPREAD else "") + ("?" if row["repeats"] < FEW else "")
    return f"{100 * row['spread']:.1f} %{marks}"


def note(row: Row) -> str:
    """Returns why a row has no times."""
    if row.get("oom"):
        return "out of memory"
    return f"failed: {row['failed']}" if "failed" in row else ("again" if row.get("again") else "")


def shown(rows: Sequence[Row], columns: Sequence[str], markdown: bool = False) -> str:
    """Returns the title, the table of rows with these columns behind those that vary, and a warning if one is due."""
    rows = with_ratios(rows)
    differing = [name for name in VARIED if len({COLUMNS[name].of(row) for row in rows if _has(row, name)}) > 1]
    if "micro" in columns and "images" in differing:
        differing.remove("images")
    notes = ["note"] if any(map(note, rows)) else []
    filled = [name for name in columns if any(_has(row, name) for row in rows)]
    names = [*differing, *(name for name in filled if name not in differing), *notes]
    cells = [tuple(COLUMNS[name].head for name in names)]
    cells += [tuple(COLUMNS[name].of(row) for name in names) for row in rows]
    head = title(rows, differing, columns)
    if markdown:
        return "\n\n".join([head, as_markdown(cells), *warning(rows)])
    return "\n".join([head, table(cells), *warning(rows)])


def _has(row: Row, name: str) -> bool:
    return bool(COLUMNS[name].of(row))


def title(rows: Sequence[Row], differing: Iterable[str], columns: Iterable[str]) -> str:
    """Returns in words what all rows have in common."""
    first = next((row for row in rows if time_of(row)), rows[0])
    hidden = {*differing, "who", "cards", *columns, *(("images",) if "micro" in columns else ())}
    names = [name for name in VARIED if name not in hidden and _has(first, name)]
    plain = {"model", "size", "mesh", "engine", "dtype"}
    words = [("" if name in plain else f"{COLUMNS[name].head} ") + COLUMNS[name].of(first) for name in names]
    repeats = [row["repeats"] for row in rows if "repeats" in row]
    how = "median of " + " to ".join(map(str, sorted({min(repeats), max(repeats)}))) if repeats else ""
    memory = f"{first['memory_gib']:g} GiB of each GPU" if "memory_gib" in first else ""
    return ", ".join(filter(None, [*words, memory, how])) + f"; {first.get('gpu', 'CPU')}; run {first['run_id']}"


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Returns rows with those of the same case together, the fastest first."""
    seen = list(dict.fromkeys(_case(row)[2:] for row in rows))
    return sorted(rows, key=lambda row: (seen.index(_case(row)[2:]), time_of(row) or float("inf")))


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with `to_one`: how many times faster than one device with the same case, where that ran."""
    alone = {_case(row): time_of(row) for row in rows if row["world"] == 1 and time_of(row)}
    if all(row["world"] == 1 for row in rows):
        return list(rows)
    return [
        row | ({"to_one": alone[_case(row)] / time_of(row)} if time_of(row) and _case(row) in alone else {})
        for row in rows
    ]


def time_of(row: Row) -> float:
    """Returns the seconds that a row is about, 0 of a case that failed."""
    return float(next((row[name] for name in ("loop_s", "decode_s", "encode_s") if name in row), 0.0))


def _case(row: Row) -> tuple[Any, ...]:
    names = ("who", "engine", "model", "height", "width", "images", "steps", "guidance", "text_tokens")
    return tuple(row.get(name) for name in names)


def warning(rows: Sequence[Row]) -> list[str]:
    """Returns a line about rows whose repeats differ too much, and one about those that have too few."""
    lines = []
    wide = [row["spread"] for row in rows if row.get("spread", 0.0) > MOST_SPREAD]
    if wide:
        share, worst = f"{len(wide)} of {len(rows)} rows (!)", 100 * max(wide)
        lines.append(f"warning: repeats of {share} spread by more than {100 * MOST_SPREAD:g} %, at most {worst:.0f} %: "
                     "their ratios do not hold; is the machine busy?")  # fmt: skip
    few = sum(row.get("repeats", FEW) < FEW for row in rows)
    if few:
        lines.append(f"warning: {few} of {len(rows)} rows (?) have fewer than {FEW} repeats: their spread says little")
    return lines


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    """Returns a table, its first row the heading."""
    head, *rest = cells
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trials(rows: Sequence[Row]) -> str:
    """Returns a line for each repeat: its seconds of loop, and the denoise steps a second."""
    cells = [("engine", "mesh", "trial", "loop s", "steps/s")]
    for row in rows:
        for index, seconds in enumerate(row.get("loops_s", ())):
            rate = f"{row['steps'] / seconds:.2f}"
            cells.append((str(row["engine"]), name_of(row), str(index), f"{seconds:.4f}", rate))
    return table(cells)

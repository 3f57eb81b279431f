"""`sd3par bench kernels`, its trace, and ranges for profilers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd3par import SD3Pipeline, ranges
from sd3par.errors import ConfigError
from sd3par.launch import cli

pytestmark = pytest.mark.usefixtures("folder")


def test_table_rows_and_trace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "64x96", "--steps", "2", "--profile", "trace.json", "--json", "rows.jsonl", "--device", "cpu"]
    assert cli.main(["bench", "kernels", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, note = lines[1].split(), lines[-1].split()
    assert head[:2] == ["kernel", "shape"] and {"GFLOP", "MB", "floor"} <= set(head)
    assert note[0] == "floors:" and float(note[1]) > 0 and note[2] == "TFLOP/s,"  # a CPU is not behind a host
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    attention = [row for row in rows if row["kernel"] == "attention"]
    assert sum(row["count"] for row in attention) == 4 and all(row["bytes"] > 0 for row in attention)
    assert rows[-1]["kernel"] == "step" and rows[0]["run_id"] == rows[-1]["run_id"] and rows[0]["width"] == 64
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    device = [event for event in events if event["pid"] == 1 and event["ph"] == "X"]
    host = [event for event in events if event["pid"] == 2 and event["ph"] == "X"]
    assert len(device) == sum(row.get("count", 0) for row in rows)
    ends = [event["ts"] + event["dur"] for event in device]
    assert all(end <= event["ts"] for end, event in zip(ends, device[1:], strict=False))
    assert [event["name"] for event in host] == ["block"] * 3 + ["step"]


@pytest.mark.parametrize("words, field", [
    (["--images", "0"], "images"), (["--model", "tiny", "--random_weights", "tiny"], "random_weights"),
    (["--steps", "0"], "steps"), (["--max_sequence_length", "513"], "max_sequence_length"),
])  # fmt: skip
def test_refused(words: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "kernels", *words]) == 2
    assert capsys.readouterr().err.startswith(f"sd3par: error: {field}: ")


def test_ranges_of_a_picture() -> None:
    pipe, recorder = SD3Pipeline.from_pretrained("tiny", device="cpu"), ranges.Recorder()
    with ranges.listening(recorder):
        pipe("a red circle on a blue background", num_inference_steps=2, height=32, width=32, progress=False)
    names = [span.name for span in sorted(recorder.spans, key=lambda span: span.begin)]
    blocks = pipe.transformer.config.num_layers
    assert names == ["encode", "denoise", *(["step", *["block"] * blocks] * 2), "decode"]
    assert {span.depth for span in recorder.spans if span.name == "block"} == {2}
    pipe("a red circle", num_inference_steps=1, height=32, width=32, progress=False)
    assert len(recorder.spans) == len(names)  # nobody listens any more


def test_nvtx_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvtx", None)
    with pytest.raises(ConfigError, match="^nvtx: .*sd3par.profile"):
        ranges.Nvtx()

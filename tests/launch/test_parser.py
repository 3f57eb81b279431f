"""The command line: spellings, one-line errors, help."""

from __future__ import annotations

import pytest

from sd3par import device, engine
from sd3par.config import GenerationRequest
from sd3par.errors import ConfigError
from sd3par.launch import cli, flags, worker
from sd3par.launch.flags import render_parser
from sd3par.launch.parser import Parser
from sd3par.weights import random_model

PARSERS = [
    render_parser("sd3par generate", "", prompt_flag=False),
    render_parser("text_to_image.py", "", prompt_flag=True),
]


@pytest.mark.parametrize("words", [
    ["--num-inference-steps", "5", "--mp-size", "2", "--guidance-scale=1.5", "--no-t5"],
    ["--num_inference_steps", "5", "--mp_size", "2", "--guidance_scale=1.5", "--no_t5"],
    ["--num-inference_steps=5", "--mp_size=2", "--guidance-scale", "1.5", "--no-t5"],
])  # fmt: skip
def test_both_spellings(words: list[str]) -> None:
    options = PARSERS[1].parse(words)
    assert (options.num_inference_steps, options.mp_size, options.guidance_scale, options.no_t5) == (5, 2, 1.5, True)


def test_values_keep_their_dashes() -> None:
    options = PARSERS[0].parse(["--a red-ish circle", "--output=my-file-1.png", "--negative-prompt=--no-red"])
    assert options.prompt == "--a red-ish circle"
    assert options.output == "my-file-1.png"
    assert options.negative_prompt == "--no-red"
    assert PARSERS[0].parse(["--seed", "3", "--", "--a-flag"]).prompt == "--a-flag"


@pytest.mark.parametrize("words", [["a circle", "--seed=1"], ["--seed=1", "a circle"], ["--prompt", "a circle"],
                                   ["--seed=1", "--prompt=a circle", "--quiet"]])  # fmt: skip
def test_prompt_as_argument_or_flag(words: list[str]) -> None:
    options = PARSERS[0].parse(words)
    assert options.prompt == "a circle"
    assert PARSERS[1].parse(PARSERS[1].as_argv(options)).prompt == "a circle"


def test_command_lines_of_the_ancestor() -> None:
    words = ["--dtype", "float16", "--height", "512", "--width", "512", "--num-inference-steps", "50",
             "--inference_optimize", "1", "--mp_size", "2", "--dp_size", "2", "--benchmark", "1"]  # fmt: skip
    options = PARSERS[1].parse(words)
    assert (options.dtype, options.height, options.benchmark, options.dp_size) == ("float16", 512, 1, 2)
    assert PARSERS[1].parse(["--benchmark"]).benchmark == 10
    assert PARSERS[1].parse([]).benchmark is None


def test_defaults_are_those_of_a_request() -> None:
    options, standard = PARSERS[1].parse([]), GenerationRequest(("",))
    for name in ("height", "width", "num_inference_steps", "guidance_scale", "num_images_per_prompt", "seed"):
        assert getattr(options, name) == getattr(standard, name)


def test_choices_are_those_of_the_library() -> None:
    assert flags.ENGINES == engine.ENGINES
    assert set(flags.DTYPES) == {"auto", *device.DTYPES}
    assert flags.RANDOM_MODELS == random_model.MODELS


@pytest.mark.parametrize("words", [
    [],
    ["--seed=5", "--benchmark", "--no_t5"],
    ["--prompt=-x", "--guidance_scale=1e-3", "--output", "a b.png", "--quiet"],
    ["--prompt", 'line\n"quoted" $HOME', "--mp_size=4", "--strength", "0.25", "--image=-.png"],
])  # fmt: skip
def test_options_survive_the_way_to_the_ranks(words: list[str]) -> None:
    options = PARSERS[1].parse(words)
    assert PARSERS[1].parse(PARSERS[1].as_argv(options)) == options


def test_options_of_the_command_suit_the_script() -> None:
    options = PARSERS[0].parse(["--dp_size", "2", "--", "-v"])
    assert PARSERS[1].parse(PARSERS[1].as_argv(options)).prompt == "-v"


@pytest.mark.parametrize("parser", PARSERS)
def test_every_flag_is_explained(parser: Parser) -> None:
    text = parser.format_help()
    assert max(len(line) for line in text.splitlines()) <= 112
    shown = [action for action in parser._actions if action.dest not in ("help", "run_dir")]
    assert [action.dest for action in shown if not action.help] == []
    assert [action.dest for action in shown if action.default not in (None, False) and "default" not in text] == []
    assert "run_dir" not in text
    assert "--transport NAME" in text
    for words in ("(default: 28)", "(default: 7.0)", "(default: 0)", "(default: tiny)", "Exit codes: 0 done; 2 "):
        assert words in " ".join(text.split())


@pytest.mark.parametrize("run", [cli.main, worker.main])
def test_help(run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["generate", "--help"], ["doctor", "--help"], ["show", "-h"]):
        if run is cli.main or words == ["--help"]:
            assert run(words) == 0
            out, err = capsys.readouterr()
            assert out.startswith("usage: ") and err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "sd3par 0.1.0\n"


@pytest.mark.parametrize("words, message", [
    (["generate", "a", "red", "circle"], "arguments: got red; allowed: one PROMPT, in quotes if it has spaces"),
    (["show"], "FILE: got nothing; allowed: what --help says of it"),
    (["show", "my", "picture.png"], "arguments: got picture.png; allowed: one FILE, in quotes if it has spaces"),
    (["bench", "compare", "rows.jsonl"], "run: got nothing; allowed: what --help says of it"),
    (["doctor", "--device", "gpu"], "device: got gpu; allowed: auto, nvgpu"),
])  # fmt: skip
def test_words_missing_or_too_many(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"sd3par: error: {message}\n"


def test_argparse_text_that_nobody_foresaw() -> None:
    with pytest.raises(ConfigError, match="^arguments: got something new; allowed: what --help says$"):
        PARSERS[0].error("something new")

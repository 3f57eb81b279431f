"""A command line parser whose errors are ConfigErrors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sd3par.config import require
from sd3par.errors import ConfigError, shorten


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError where others write their usage and leave."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def parse(self, argv: Sequence[str]) -> Namespace:
        """Returns the parsed arguments; flags may be written with `-` or `_` between their words.

        Raises:
            ConfigError: an unknown flag, or a value that is not of its flag's type.
        """
        for word in argv:
            require("\0" not in word, "arguments", word, "text without zero bytes")
        options, unknown = self.parse_known_args(_underscored(list(argv)))
        if unknown:
            first = next((word for word in unknown if word != "--"), "--")
            raise ConfigError("arguments", first, self._instead(first))
        return options

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found."""
        field, text = "arguments", message
        if match := re.match(r"argument (\S+): (.*)", message, re.DOTALL):
            field, text = match[1].rpartition("/")[2].lstrip("-"), match[2]
        if match := re.match(r"ignored explicit argument '(.*)'", text, re.DOTALL):
            raise ConfigError(field, match[1], "no value: it is on where it is written")
        if match := re.match(r"got (.*); allowed: (.*)", text, re.DOTALL):
            raise ConfigError(field, match[1], match[2])
        if text.startswith("expected"):
            raise ConfigError(field, "nothing", f"a value; write --{field}=VALUE for one that begins with -")
        if match := re.match(r"the following arguments are required: (.*)", text):
            raise ConfigError(match[1].lstrip("-"), "nothing", "what --help says of it")
        raise ConfigError(field, text, "what --help says")

    def _instead(self, word: str) -> str:
        """Returns what may have been meant by a word that this command does not know."""
        if not word.startswith("-"):
            places = [str(action.metavar or action.dest) for action in self._get_positional_actions()]
            return f"one {places[0]}, in quotes if it has spaces" if places else "what --help lists"
        name = word.partition("=")[0].lstrip("-")
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        flags = [action.dest for action in shown if f"--{action.dest}" in action.option_strings]
        longer = [flag for flag in flags if name and (flag.startswith(name) or name in flag.split("_"))]
        close = longer or difflib.get_close_matches(name, flags, 1, cutoff=0.7)
        return f"perhaps {', '.join(f'--{flag}' for flag in close[:3])}" if close else "what --help lists"

    def hide(self, names: Sequence[str]) -> None:
        """Leaves flags out of the help."""
        for action in self._actions:
            action.help = argparse.SUPPRESS if action.dest in names else action.help

    def as_argv(self, options: Namespace) -> list[str]:
        """Returns flags that parse into `options`; arguments without a flag are left out."""
        words = []
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if action.option_strings and value is not None and value != action.default:
                flag = action.option_strings[-1]
                words.append(flag if value is True else f"{flag}={value}")
        return words


class OnlyOne(argparse.Action):
    """Takes the value of an argument that may be written in several ways, in one of them."""

    def __call__(self, parser: argparse.ArgumentParser, found: Namespace, value: Any, flag: str | None = None) -> None:
        """Stores a value; None is an argument without a flag that was not written.

        Raises:
            ConfigError: there is one already.
        """
        before = getattr(found, self.dest, None)
        require(value is None or before is None, self.dest, value, f"nothing beside {shorten(before)}: one {self.dest}")
        if value is not None:
            setattr(found, self.dest, value)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows the default of a flag where its help does not speak of it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=112)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        hidden = action.default is None or action.default is False or action.dest == "help" or "default" in text
        if hidden:
            return text
        values = action.default if isinstance(action.default, list) else [action.default]
        return f"{text} (default: {' '.join(map(str, values))})"


def _underscored(argv: list[str]) -> list[str]:
    """Returns `argv` with the flags in one spelling; what follows a bare `--` is no flag."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [re.sub(r"^--[\w-]+(?==|$)", _spell, word) for word in argv[:end]] + argv[end:]


def _spell(flag: re.Match[str]) -> str:
    return f"--{flag[0][2:].replace('-', '_')}"


def whole(text: str) -> int:
    """Returns a whole number."""
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: a whole number")
    return int(text)


def whole_list(text: str) -> tuple[int, ...]:
    """Returns whole numbers that stand between commas."""
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", text):
        raise ArgumentTypeError(f"got {shorten(text)}; allowed: whole numbers with commas between them, as 0,1")
    return tuple(int(word) for word in text.split(","))


def number(text: str) -> float:
    """Returns a number."""
    try:
        if text.isascii() and "_" not in text:  # float takes Arabic digits, and 1_0 for 10
            return float(text)
    except ValueError:
        pass
    raise ArgumentTypeError(f"got {shorten(text)}; allowed: a number")


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Returns a type that takes one of `names`."""

    def choose(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"got {shorten(text)}; allowed: {', '.join(names)}")
        return text

    return choose

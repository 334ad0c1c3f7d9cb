"""The ``alhvr`` command: finds the function of a command, calls it, says how it ended and what to type next."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alhvr_trainer.commands import COMMANDS, command
from alhvr_trainer.commands.arguments import UsageError, letters, parse
from alhvr_trainer.commands.next_step import next_step
from alhvr_trainer.errors import InputError, did_you_mean, one_line

_PRINT_RESULT = ("trainer_path", "version")


def version() -> str:
    """The version of this package.

    Example:
        alhvr version
    """
    from alhvr_trainer import __version__

    return __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 bad input, 2 wrong usage, 130 interrupted.

    Args:
        arguments: the words after ``alhvr``; default: those of this process.

    Example:
        >>> main(["version"])
        0.1.0
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UsageError as error:
        return _fail(error, 2)
    except InputError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # whoever reads the output has seen enough, as in "alhvr train --help | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # any command may meet a full disk, a folder of someone else
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or one_line(error)}", 1)
    except MemoryError as error:
        return _fail(one_line(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(), flush=True)
        return 0
    typed, *words = words
    name = "version" if typed in ("-V", "--version") else typed.replace("-", "_")
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"there is no command {typed!r}{did_you_mean(name, COMMANDS)}; commands: {known}")
    function = command(name)
    if "-h" in words or "--help" in words:
        print(command_help(name, function), flush=True)
        return 0
    values = parse(name, function, words)
    result = function(**values)
    if name in _PRINT_RESULT:
        print(result)
    line = next_step(name, inspect.signature(function), values, result)
    if line:
        print(f"next: {line}", flush=True)
    return 0


def _fail(message: object, status: int) -> int:
    text = " ".join(str(message).splitlines())
    print(f"alhvr: {text}", file=sys.stderr)
    return status


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "alhvr COMMAND --help shows a command's flags and an example."]
    return "\n".join(["Usage: alhvr COMMAND [FLAGS]", "", *lines])


def command_help(name: str, function: Callable[..., Any]) -> str:
    """Usage line and docstring of a command."""
    usage = [f"Usage: alhvr {name}"]
    parameters = inspect.signature(function).parameters
    short = {parameter: letter for letter, parameter in letters(parameters).items()}
    for parameter in parameters.values():
        letter = f"-{short[parameter.name]}, " if parameter.name in short else ""
        note = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
        note += f"; off: --no{parameter.name}" if parameter.default is True else ""
        usage.append(f"    {letter}--{parameter.name} ({note})")
    return "\n".join([*usage, "", inspect.getdoc(function) or ""])


if __name__ == "__main__":
    sys.exit(main())

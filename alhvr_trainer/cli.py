"""The ``alhvr`` command: one table of commands, each imported only when it is used."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from alhvr_trainer.errors import InputError, one_line

COMMANDS = {
    "link": ("alhvr_trainer.link", "make nnU-Net's own commands find ALHVR's trainers and planner"),
    "unlink": ("alhvr_trainer.link", "take 'link' back"),
    "trainer_path": ("alhvr_trainer.link", "print the folder for nnUNet_extTrainer, instead of 'link'"),
    "convert": ("alhvr_trainer.convert.convert", "released data sets as nnU-Net raw datasets, with the papers' splits"),
    "plan_and_preprocess": (
        "alhvr_trainer.planning.plan_and_preprocess",
        "nnU-Net's planning and preprocessing for labelled and unlabelled cases",
    ),
    "make_split": ("alhvr_trainer.planning.make_split", "write a split that hides labels from training"),
    "train": ("alhvr_trainer.train", "nnU-Net's training, on several machines as well"),
    "predict_next_stage": (
        "alhvr_trainer.predict_next_stage",
        "segment unlabelled cases for the next stage of a cascade",
    ),
    "export_bundle": ("alhvr_trainer.export.bundle", "write a trained model as a MONAI bundle"),
    "export_nnunet": ("alhvr_trainer.export.nnunet", "write a trained model as a stock nnU-Net model"),
    "evaluate": ("alhvr_trainer.evaluation.evaluate", "Dice, Jaccard, HD95 and ASD of predictions"),
    "benchmark": ("alhvr_trainer.benchmark.benchmark", "compare methods, seeds and labelled fractions, with tables"),
    "demo": ("alhvr_trainer.demo.run", "the whole way on an embedded data set, with a report"),
    "version": ("alhvr_trainer.cli", "print the version"),
}
_PRINT_RESULT = ("trainer_path", "version")
_TEXT_TYPES = {"str", "Path", "PathLike", "os", "None", "Optional", "Union"}
_FLAG = re.compile(r"(--[A-Za-z][\w-]*|-[A-Za-z]\w*)(=.*)?", re.DOTALL)


class UsageError(ValueError):
    """The command line does not fit the command."""


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
    except (OSError, MemoryError) as error:  # any command may meet a full disk, a folder of someone else, a large image
        return _fail(one_line(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, words = words[0].replace("-", "_"), words[1:]
    if name == "__version":
        name = "version"
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}; commands: {', '.join(COMMANDS)}")
    function = getattr(import_module(COMMANDS[name][0]), name)
    if "-h" in words or "--help" in words:
        print(command_help(name, function))
        return 0
    positional, keywords = parse(name, function, words)
    result = function(*positional, **keywords)
    if name in _PRINT_RESULT:
        print(result)
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
    letters = {parameter: letter for letter, parameter in _letters(function).items()}
    for parameter in inspect.signature(function).parameters.values():
        letter = f"-{letters[parameter.name]}, " if parameter.name in letters else ""
        note = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
        note += f"; off: --no{parameter.name}" if parameter.default is True else ""
        usage.append(f"    {letter}--{parameter.name} ({note})")
    return "\n".join([*usage, "", inspect.getdoc(function) or ""])


def parse(name: str, function: Callable[..., Any], words: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``function`` would be called with for the command line ``words``; does not call it.

    Fire parses: ``-d 27`` arrives as 27, ``-d 027`` as "027", ``-f all`` as "all", ``-f 0,1`` as (0, 1).
    Parameters annotated as text or path arrive as typed. A single letter stands for the first parameter that
    begins with it.

    Raises:
        UsageError: a flag is unknown, lacks its value, or a required one is missing.
    """
    import fire
    from fire.decorators import SetParseFns

    calls = []

    # Fire reports what it could not use only after the call, so it gets something harmless to call
    @functools.wraps(function)
    def record(*positional: Any, **keywords: Any) -> None:
        calls.append((positional, keywords))

    texts = _text_parameters(function)
    SetParseFns(**dict.fromkeys(texts, str))(record)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            fire.Fire(record, command=_long_flags(function, words, texts), name=f"alhvr {name}")
        except fire.core.FireExit as stop:
            trace = stop.trace
            reason = trace.elements[-1].ErrorAsStr() if trace.HasError() else "wrong usage"
            reason = reason.replace("Could not consume arg:", "unknown argument")
            raise UsageError(f"{name}: {reason} (see: alhvr {name} --help)") from None
    return calls[-1]


def _text_parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that take nothing but text or a path."""
    names = []
    for parameter in inspect.signature(function).parameters.values():
        types = set(re.findall(r"\w+", inspect.formatannotation(parameter.annotation)))
        if types and types <= _TEXT_TYPES:
            names.append(parameter.name)
    return names


def _letters(function: Callable[..., Any]) -> dict[str, str]:
    """Letter of each short flag and the parameter it stands for."""
    letters: dict[str, str] = {}
    for parameter in inspect.signature(function).parameters:
        letters.setdefault(parameter[0], parameter)
    return letters


def _long_flags(function: Callable[..., Any], words: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The words with short flags written out, so that Fire finds none ambiguous."""
    letters, long = _letters(function), []
    for index, word in enumerate(words):
        match = _FLAG.fullmatch(word)
        if not match:
            long.append(word)
            continue
        flag = match[1].lstrip("-").replace("-", "_")
        flag = letters.get(flag, flag)
        following = words[index + 1] if index + 1 < len(words) else "-x"
        if flag in texts and match[2] is None and _FLAG.fullmatch(following):
            raise UsageError(f"--{flag} needs a value")
        long.append(f"--{flag}{match[2] or ''}")
    return long


if __name__ == "__main__":
    sys.exit(main())

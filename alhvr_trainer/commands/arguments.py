"""The words of a command line as the arguments of a function; what a parameter takes, its annotation says."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from alhvr_trainer.errors import did_you_mean, shown

_FLAG = re.compile(r"(--?)([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
_NUMBER = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_SEVERAL = re.compile(r"\b(?:tuple|list|Sequence)\[(.*?)\]")
_FORMS = {"bool": "True or False", "float": "a number", "int": "a whole number"}


class UsageError(ValueError):
    """The command line does not fit the command."""


def parse(name: str, function: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """What ``function`` is to be called with for the command line ``words``; does not call it.

    Words without a dash fill the parameters that no flag names, in their order. Parameters for text or a path get it
    as typed, those for numbers a number: ``27`` is one, ``027`` is text. Where several values are possible, commas
    separate them: ``-f 0,1`` is (0, 1). A single letter stands for the first parameter that begins with it.

    Args:
        name: of the command, for messages.
        function: its parameters are those of the command.
        words: after the command's name.

    Raises:
        UsageError: a flag is unknown, lacks its value or has a wrong one, or a required one is missing.

    Example:
        >>> def train(dataset: int | str, configuration: str, npz: bool = False) -> None: ...
        >>> parse("train", train, ["27", "-c", "2d", "--npz"])
        {'dataset': 27, 'configuration': '2d', 'npz': True}
    """
    try:
        return _parsed(function, words)
    except UsageError as error:
        raise UsageError(f"{name}: {error} (see: alhvr {name} --help)") from None


def letters(parameters: Iterable[str]) -> dict[str, str]:
    """Letter of each short flag and the parameter it stands for."""
    found: dict[str, str] = {}
    for parameter in parameters:
        found.setdefault(parameter[0], parameter)
    return found


def _parsed(function: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    import fire

    signature = inspect.signature(function)
    calls: list[dict[str, Any]] = []

    # fire reports what it could not use only after the call, so it gets something harmless to call
    @functools.wraps(function)
    def record(*positional: Any, **keywords: Any) -> None:
        calls.append(signature.bind(*positional, **keywords).arguments)

    parameters = signature.parameters
    fire.decorators.SetParseFns(**{name: partial(_value, each) for name, each in parameters.items()})(record)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            fire.Fire(record, command=_long_flags(parameters, words))
        except fire.core.FireExit as stop:
            trace = stop.trace
            reason = trace.elements[-1].ErrorAsStr() if trace.HasError() else "wrong usage"
            reason = reason.removeprefix("The function received ")
            if reason.startswith("Missing required flags"):  # a set, in any order
                reason = "no value for the required arguments: " + ", ".join(sorted(re.findall(r"'(.+?)'", reason)))
            raise UsageError(reason.replace("Could not consume arg:", "unknown argument")) from None
    return calls[-1]


def _long_flags(parameters: Mapping[str, inspect.Parameter], words: Sequence[str]) -> list[str]:
    """The words with short flags written out, so that fire finds none ambiguous; all of them are known."""
    long = []
    for index, word in enumerate(words):
        match = _FLAG.fullmatch(word)
        if not match:
            long.append(word)
            continue
        flag = match[2].replace("-", "_")
        flag = letters(parameters).get(flag, flag)
        switched = parameters.get(flag.removeprefix("no").removeprefix("_"))
        if flag in parameters:
            following = words[index + 1] if index + 1 < len(words) else ""
            if (
                _types(parameters[flag]) != {"bool"}
                and match[3] is None
                and (not following or _FLAG.fullmatch(following))
            ):
                hint = f"; if {following} is meant: --{flag}={following}" if following else ""
                raise UsageError(f"--{flag} needs a value{hint}")
        elif not flag.startswith("no") or switched is None or _types(switched) != {"bool"} or match[3] is not None:
            near = did_you_mean(f"--{flag}", [f"--{name}" for name in parameters])
            raise UsageError(f"unknown option {match[1]}{match[2]}{near}")
        else:
            flag = f"no{switched.name}"
        long.append(f"--{flag}" if match[3] is None else f"--{flag}={match[3]}")
    return long


def _value(parameter: inspect.Parameter, text: str) -> Any:
    several = _SEVERAL.search(inspect.formatannotation(parameter.annotation))
    if several and "," in text:
        types = set(re.findall(r"\w+", several[1]))
        return tuple(_single(parameter, types, part.strip()) for part in text.split(","))
    return _single(parameter, _types(parameter), text)


def _single(parameter: inspect.Parameter, types: set[str], text: str) -> Any:
    if "int" in types and _WHOLE.fullmatch(text):
        return int(text)
    if "float" in types and _NUMBER.fullmatch(text):
        return float(text)
    if "bool" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    forms = [form for kind, form in _FORMS.items() if kind in types]
    if "str" in types or not forms:
        return text
    if "None" in types and text == "None":
        return None
    raise UsageError(f"--{parameter.name} must be {forms[0]}, found {shown(text)}")


def _types(parameter: inspect.Parameter) -> set[str]:
    """Names in the annotation."""
    return set(re.findall(r"\w+", inspect.formatannotation(parameter.annotation)))

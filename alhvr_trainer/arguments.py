"""The words of a command line as the arguments of a function; what a parameter takes, its annotation says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
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
    separate them: ``-f 0,1`` is (0, 1). A single letter stands for the first parameter that begins with it. ``--``
    ends the flags.

    Args:
        name: of the command, for messages.
        function: its parameters are those of the command.
        words: after the command's name.

    Raises:
        UsageError: a flag is unknown, lacks its value or has a wrong one, or a required one is missing.

    Example:
        >>> def train(dataset: int | str, configuration: str, npz: bool = False) -> None: ...
        >>> parse("train", train, ["27", "-c", "2d", "--npz"])
        {'configuration': '2d', 'npz': True, 'dataset': 27}
    """
    try:
        return _parsed(inspect.signature(function).parameters.values(), list(words))
    except UsageError as error:
        raise UsageError(f"{name}: {error} (see: alhvr {name} --help)") from None


def letters(parameters: Iterable[str]) -> dict[str, str]:
    """Letter of each short flag and the parameter it stands for."""
    found: dict[str, str] = {}
    for parameter in parameters:
        found.setdefault(parameter[0], parameter)
    return found


def _parsed(parameters: Iterable[inspect.Parameter], words: list[str]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    loose: list[str] = []
    while words:
        word = words.pop(0)
        match = _FLAG.fullmatch(word)
        if word == "--":
            loose, words = [*loose, *words], []
        elif match is None:
            loose.append(word)
        else:
            parameter, on = _named(match, known)
            values[parameter.name] = _flag_value(parameter, match[3], words) if on else False
    _fill(values, loose, known)
    missing = [f"--{each.name}" for each in known.values() if each.default is each.empty and each.name not in values]
    if missing:
        raise UsageError(f"no value for the required {', '.join(missing)}")
    return values


def _named(flag: re.Match[str], known: dict[str, inspect.Parameter]) -> tuple[inspect.Parameter, bool]:
    """The parameter that a flag names, and whether it is switched on: ``--verify`` against ``--noverify``."""
    name = flag[2].replace("-", "_")
    name = letters(known).get(name, name)
    if name in known:
        return known[name], True
    switch = known.get(name.removeprefix("no").removeprefix("_"))
    if name.startswith("no") and switch is not None and _types(switch) == {"bool"} and flag[3] is None:
        return switch, False
    options = [f"--{parameter}" for parameter in known]
    raise UsageError(f"unknown option {flag[1]}{flag[2]}{did_you_mean(f'--{name}', options)}")


def _flag_value(parameter: inspect.Parameter, given: str | None, words: list[str]) -> Any:
    """The value behind a flag; takes it off the words."""
    if given is None and _types(parameter) == {"bool"}:
        return words.pop(0).lower() == "true" if words and words[0].lower() in ("true", "false") else True
    if given is None:
        if not words or _FLAG.fullmatch(words[0]):
            raise UsageError(f"--{parameter.name} needs a value")
        given = words.pop(0)
    return _value(parameter, given)


def _fill(values: dict[str, Any], loose: list[str], known: dict[str, inspect.Parameter]) -> None:
    """Give the words without a flag to the parameters that have no value yet."""
    free = [each for each in known.values() if each.name not in values and each.kind is each.POSITIONAL_OR_KEYWORD]
    if len(loose) > len(free):
        raise UsageError(f"unknown argument {loose[len(free)]}")
    for parameter, word in zip(free, loose, strict=False):
        values[parameter.name] = _value(parameter, word)


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

"""The words of a command line as the arguments of a function; what a parameter takes, its annotation says."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from alhvr_trainer.errors import did_you_mean, shown

_FLAG = re.compile(r"--?([A-Za-z][\w-]*)(=.*)?", re.DOTALL)
_SEVERAL = re.compile(r"\b(?:tuple|Sequence)\[(.*?)\]")
_OTHER_SPELLINGS = {"licence": "license"}
_END = "--end"
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
        function: its parameters are those of the command; their annotations are text, as the future import makes them.
        words: after the command's name.

    Raises:
        UsageError: a flag is unknown, lacks its value or has a wrong one, or a required one is missing.

    Example:
        >>> def train(dataset: int | str, configuration: str, npz: bool = False) -> None: ...
        >>> parse("train", train, ["27", "-c", "2d", "--npz"])
        {'dataset': 27, 'configuration': '2d', 'npz': True}
    """
    import fire

    signature = inspect.signature(function)
    calls: list[dict[str, Any]] = []

    # fire reports what it could not use only after the call, so it gets something harmless to call
    @functools.wraps(function)
    def record(*positional: Any, **keywords: Any) -> None:
        calls.append(signature.bind(*positional, **keywords).arguments)

    parsers = {each.name: partial(_value, each) for each in signature.parameters.values()}
    fire.decorators.SetParseFns(**parsers)(record)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            long = _long_flags(signature.parameters, words)
            _refuse_values_side_by_side(name, signature.parameters, words, long)
            fire.Fire(record, command=long)
        return calls[-1]
    except UsageError as error:
        reason = str(error)
    except fire.core.FireExit as stop:
        reason = _reason(stop.trace)
    raise UsageError(f"{name}: {reason} (see: alhvr {name} --help)")


def letters(parameters: Iterable[str]) -> dict[str, str]:
    """Letter of each short flag and the parameter it stands for."""
    found: dict[str, str] = {}
    for parameter in parameters:
        found.setdefault(parameter[0], parameter)
    return found


def _reason(trace: Any) -> str:
    """Fire's message, in the words of a command line."""
    reason: str = trace.elements[-1].ErrorAsStr() if trace.HasError() else "wrong usage"
    if reason.startswith("Missing required flags"):  # a set, in any order
        return "no value for the required arguments: " + ", ".join(sorted(re.findall(r"'(.+?)'", reason)))
    return reason.removeprefix("The function received ").replace("Could not consume arg:", "unknown argument")


def _long_flags(parameters: Mapping[str, inspect.Parameter], words: Sequence[str]) -> list[str]:
    """The words with short flags written out, so that fire finds none ambiguous; all are known and have a value."""
    long = []
    for word, following in zip(words, [*words[1:], _END], strict=False):
        match = _FLAG.fullmatch(word)
        if not match:
            long.append(word)
            continue
        flag, value = match[1].replace("-", "_"), match[2] or ""
        flag = letters(parameters).get(flag, _OTHER_SPELLINGS.get(flag, flag))
        switches = [name for name, each in parameters.items() if each.annotation == "bool"]
        if flag in parameters:
            if flag not in switches and not value and _FLAG.fullmatch(following):
                hint = "" if following == _END else f"; if {following} is meant: --{flag}={following}"
                raise UsageError(f"--{flag} needs a value{hint}")
        elif value or flag not in [off + name for name in switches for off in ("no", "no_")]:
            near = did_you_mean(f"--{flag}", [f"--{name}" for name in parameters])
            raise UsageError(f"unknown option {word.removesuffix(value)}{near}")
        else:
            flag = f"no{flag.removeprefix('no').removeprefix('_')}"
        long.append(f"--{flag}{value}")
    return long


def _refuse_values_side_by_side(
    name: str, parameters: Mapping[str, inspect.Parameter], words: Sequence[str], long: Sequence[str]
) -> None:
    """``-c 2d 3d_fullres`` is nnU-Net's habit; here, the second value would fill another parameter.

    Not refused is what may well be meant for that one: a word that a required parameter needs, any word before the
    first parameter has its own (``-f 0 27 2d``), and what is no number behind one.
    """
    several = [f"--{each.name}" for each in parameters.values() if _SEVERAL.search(each.annotation)]
    # of each word the flag that it is or whose value it is; "": it fills a parameter that no flag names
    owners: list[str] = []
    for before, word in zip(["", *long], long, strict=False):
        is_value = _FLAG.fullmatch(before) and "=" not in before and not _FLAG.fullmatch(word)
        owners.append(before if is_value else word.partition("=")[0] if _FLAG.fullmatch(word) else "")
    positional = [each for each in parameters.values() if each.kind is not each.KEYWORD_ONLY]
    unnamed = [each for each in positional if each.default is each.empty and f"--{each.name}" not in owners]
    surplus = owners.count("") - len(unnamed)
    for index in range(1, len(words)):
        option = owners[index - 1]
        if surplus <= 0 or owners[index] or option not in several:
            continue
        begun = f"--{positional[0].name}" in owners or "" in owners[:index] or words[index - 1].endswith(",")
        like = words[index].strip(",").isdigit() or not words[index - 1].rpartition("=")[2].strip(",").isdigit()
        if begun and like:
            end = index + len([*takewhile(lambda owner: not owner, owners[index : index + surplus])])
            values = ",".join(filter(None, (word.strip(",") for word in words[index - 1 : end])))
            line = shlex.join(["alhvr", name, *words[: index - 1], values, *words[end:]])
            raise UsageError(f"{option} takes several values as one word, with commas: {line}")


def _value(parameter: inspect.Parameter, text: str) -> Any:
    several = _SEVERAL.search(parameter.annotation)
    if several and "," in text:
        return tuple(_single(parameter.name, several[1], part.strip()) for part in text.split(","))
    return _single(parameter.name, parameter.annotation, text)


def _single(name: str, annotation: str, text: str) -> Any:
    from fire.parser import DefaultParseValue

    kinds = re.findall(r"\w+", annotation)
    forms = [form for kind, form in _FORMS.items() if kind in kinds]
    value = DefaultParseValue(text.capitalize() if "bool" in kinds else text)
    if type(value).__name__ in kinds and forms:
        return value
    if type(value) is int and "float" in kinds:
        return float(value)
    if "str" in kinds or not forms:
        return text
    if value is None and "None" in kinds:
        return None
    raise UsageError(f"--{name} must be {forms[0]}, found {shown(text)}")

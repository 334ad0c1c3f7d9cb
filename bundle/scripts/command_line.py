"""What was typed behind ``python -m monai.bundle run``, before fire and MONAI read it in ways of their own.

fire takes a folder named 20240115 for a number. MONAI writes ``::`` for every ``#``, takes ``$``, ``@`` and ``%`` in
front for expressions, references and macros, and a key that no config has for a new one.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from .input_error import InputError

PATHS = ("bundle_root", "dataset_dir", "output_dir", "labels_dir")
_COMMANDS = ("run", "run_workflow")
_META = "_meta_"
_PLANS = Path(__file__).resolve().parents[1] / "plans.json"
_SPECIAL_NAME = re.compile(r"[$@][\w./ -]*")  # a path and no formula: there are neither calls nor operators in it


def typed() -> dict[str, str]:
    """Argument -> text as typed, also of ``args_file``; empty where no command line of MONAI's started this process.

    Example:
        >>> typed()     # python -m monai.bundle run --dataset_dir 20240115     # doctest: +SKIP
        {'dataset_dir': '20240115'}
    """
    return dict(_typed(tuple(sys.argv)))


def path_as_typed(key: str, value: Any) -> str:
    """The path that was meant by what MONAI has under a key.

    Args:
        key: e.g. ``"output_dir"``.
        value: MONAI's, for what was not typed on a command line; a ``pathlib.Path`` always arrives as it was.

    Raises:
        InputError: it was handed over in Python, and whether ``#`` or ``::`` was meant cannot be told.

    Example:
        >>> path_as_typed("output_dir", "out")
        'out'
    """
    text = typed().get(key)
    if text is not None and not text.startswith(("$", "@", "%")):
        return text
    if not isinstance(value, str) or "::" not in value:
        return str(value)
    candidates = [value.replace("::", "#"), value]
    there = [path for path in candidates if os.path.exists(path)]
    there = there or [path for path in candidates if os.path.exists(os.path.dirname(path) or ".")]
    if len(there) != 1:
        raise InputError(
            f"{key} {candidates[0]} or {value}: MONAI writes :: for #, so it is unknown which is meant; "
            "pass a pathlib.Path"
        )
    return there[0]


def check_or_exit() -> None:
    """See that all that was typed is known, and that MONAI does not take a path for something else.

    Raises:
        SystemExit: one line.
    """
    try:
        _check(typed())
    except InputError as error:
        raise SystemExit(f"bundle: {error}") from error


@functools.lru_cache(maxsize=1)
def _typed(argv: tuple[str, ...]) -> dict[str, str]:
    program, *words = argv or ("",)
    if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py") or not words or words[0] not in _COMMANDS:
        return {}
    import fire

    command = getattr(monai.bundle, words[0])
    found: dict[str, Any] = {}

    @functools.wraps(command)
    def keep(*args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(command).bind(*args, **kwargs).arguments
        for name, value in arguments.items():
            found.update(value if isinstance(value, dict) else {name: value})

    fire.decorators.SetParseFn(str)(keep)
    fire.Fire(keep, command=words[1:])
    given = {name: value for name, value in found.items() if value is not None}
    of_file = ConfigParser.load_config_file(given["args_file"]) if "args_file" in given else {}
    return {name: str(value) for name, value in {**of_file, **given}.items()}


def _check(arguments: dict[str, str]) -> None:
    if "config_file" not in arguments:
        return
    config = _config(arguments["config_file"])
    known = {*config, *_keys_of_monai(arguments.get("tracking"))}
    for argument in arguments:
        key = re.split("::|#", argument)[0]
        if key not in known:
            raise InputError(f"--{argument} is not a key of {arguments['config_file']}{_did_you_mean(key, known)}")
    for key, text in arguments.items():
        if not text.startswith(("$", "@", "%")):
            _check_value(key, text, config.get(key))
    for key in set(PATHS) & set(arguments):
        text = arguments[key]
        if _SPECIAL_NAME.fullmatch(text) and text[1:] not in config:
            raise InputError(
                f"{key} {text} begins with {text[0]}, which MONAI does not take for a name; write ./{text}"
            )


def _config(config_file: str) -> dict[str, Any]:
    import fire

    content: dict[str, Any] = ConfigParser.load_config_files(fire.parser.DefaultParseValue(config_file))
    return content


def _check_value(key: str, text: str, default: Any) -> None:
    """What MONAI would take for something else: "false" is text, which counts as true."""
    if isinstance(default, bool) and text not in ("True", "False"):
        raise InputError(f"--{key} is {text}; it must be True or False")
    if key == "overlap" and not _accepted(lambda: 0 <= float(text) < 1):
        raise InputError(f"--overlap is {text}; it must be a share of the patch, at least 0 and below 1")
    if key == "device" and not _accepted(lambda: torch.empty(1, device=text) is not None):
        raise InputError(f"--device is {text}, which there is not here; leave it out, or name one, e.g. cpu or cuda:0")
    if key == "configuration":
        there = json.loads(_PLANS.read_bytes())["configurations"]
        if text not in there:
            raise InputError(f"--configuration is {text}; this model has {', '.join(there)}")


def _accepted(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (ValueError, RuntimeError, AssertionError):  # torch built without CUDA asserts
        return False


def _keys_of_monai(tracking: str | None) -> set[str]:
    commands = (monai.bundle.run, monai.bundle.run_workflow, ConfigWorkflow.__init__)
    keys = {name for command in commands for name in inspect.signature(command).parameters}
    if tracking is not None:
        settings = DEFAULT_EXP_MGMT_SETTINGS.get(tracking) or ConfigParser.load_config_files(tracking)
        keys |= {*settings.get("configs", {})}
    return {*keys, _META} - {"self", "override", "kwargs"}


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, sorted(known), 1)
    return f"; did you mean --{near[0]}?" if near else "; docs/README.md lists the options"

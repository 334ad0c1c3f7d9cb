"""The command line: what arrives, what is printed, how it ends."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

import alhvr_trainer
from alhvr_trainer import cli
from alhvr_trainer.errors import InputError

REPOSITORY = Path(__file__).resolve().parent.parent


def sample(
    dataset: int | str,
    configurations: str = "2d",
    fold: int | str | tuple[int, ...] = 0,
    plans_file: str | None = None,
    output: str | Path = "out",
    check: bool = False,
    verify: bool = True,
) -> dict:
    """A command.

    Example:
        alhvr sample -d 27
    """
    if dataset == 404:
        raise InputError("Dataset404 is not there")
    if dataset == 130:
        raise KeyboardInterrupt
    return {"dataset": dataset}


@pytest.fixture
def sample_command(monkeypatch):
    module = types.ModuleType("sample_commands")
    module.sample = sample
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "sample", (module.__name__, "a sample"))


def arguments_of(line: str) -> dict:
    positional, keywords = cli.parse("sample", sample, shlex.split(line))
    return dict(inspect.signature(sample).bind(*positional, **keywords).arguments)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-d 27", {"dataset": 27}),
        ("-d 027", {"dataset": "027"}),
        ("--dataset=Dataset027_ACDC", {"dataset": "Dataset027_ACDC"}),
        ("27 3d_fullres", {"dataset": 27, "configurations": "3d_fullres"}),
        ("-d 27 -c 2d,3d_fullres", {"configurations": "2d,3d_fullres"}),
        ("-d 27 -c 2d", {"configurations": "2d"}),
        ("-d 27 -f 0", {"fold": 0}),
        ("-d 27 -f all", {"fold": "all"}),
        ("-d 27 -f 0,1", {"fold": (0, 1)}),
        ("-d 27 -f -1", {"fold": -1}),
        ("-d 27 -o 2024", {"output": "2024"}),
        ("-d 27 -o 1e5", {"output": "1e5"}),
        ("-d 27 -o 'a b#c'", {"output": "a b#c"}),
        ("-d 27 -o=a=b", {"output": "a=b"}),
        ("-d 27 --plans-file my-plans.json", {"plans_file": "my-plans.json"}),
        ("-d 27 --check", {"check": True, "verify": True}),
        ("-d 27 --noverify", {"check": False, "verify": False}),
        ("-d 27", {"fold": 0, "plans_file": None, "check": False, "configurations": "2d", "output": "out"}),
    ],
)
def test_values_arrive(line, expected):
    arguments = arguments_of(line)
    assert {name: arguments[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no value for the required argument: dataset"),
        ("-d 27 --nonsense 3", "unknown argument --nonsense"),
        ("-d 27 2d 0 plans out True True one_too_many", "unknown argument one_too_many"),
        ("-d 27 -o", "--output needs a value"),
        ("-d 27 -o -f 0", "--output needs a value"),
    ],
)
def test_wrong_usage(line, reason, sample_command, capsys):
    assert cli.main(["sample", *shlex.split(line)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("alhvr: ") and printed.err.count("\n") == 1
    assert reason in printed.err


def test_results_are_not_printed(sample_command, capsys):
    assert cli.main(["sample", "-d", "27"]) == 0
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_one_line(sample_command, capsys):
    assert cli.main(["sample", "-d", "404"]) == 1
    assert capsys.readouterr() == ("", "alhvr: Dataset404 is not there\n")


def test_interrupt(sample_command, capsys):
    assert cli.main(["sample", "-d", "130"]) == 130
    assert capsys.readouterr() == ("", "alhvr: interrupted\n")


def test_unknown_command_lists_the_commands(capsys):
    assert cli.main(["trian"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("alhvr: there is no command 'trian'; commands: ") and message.count("\n") == 1
    assert all(name in message for name in cli.COMMANDS)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview(words, capsys):
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(word, capsys):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"{alhvr_trainer.__version__}\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_shows_signature_and_example(name, capsys):
    assert cli.main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    function = getattr(import_module(cli.COMMANDS[name][0]), name)
    assert printed.startswith(f"Usage: alhvr {name}\n")
    assert "Example:\n" in printed and inspect.getdoc(function) in printed
    for parameter in inspect.signature(function).parameters.values():
        default = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
        assert f"--{parameter.name} ({default}" in printed


def test_help_shows_letters_and_switches(sample_command, capsys):
    assert cli.main(["sample", "-h"]) == 0
    printed = capsys.readouterr().out
    assert "    -d, --dataset (required)\n    -c, --configurations (default: 2d)\n" in printed
    assert "    --check (default: False)\n" in printed  # -c is taken
    assert "    -v, --verify (default: True; off: --noverify)\n" in printed


def test_quick_commands_import_nothing_heavy():
    """--help, trainer_path and link must answer at once: no torch, no nnU-Net."""
    code = (
        "import sys\n"
        "from alhvr_trainer import cli\n"
        "for words in (['--help'], ['version'], ['trainer_path'], ['link', '--help']):\n"
        # nnU-Net 2.7 has no use for trainer_path: one line says so
        "    assert cli.main(words) == 0 or words == ['trainer_path']\n"
        "print('heavy:', sorted({'torch', 'nnunetv2', 'monai', 'numpy'} & set(sys.modules)))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("heavy: []\n")


def documented_commands() -> list[str]:
    """Every ``alhvr …`` line in the README's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.lstrip().startswith("alhvr ")]


def test_readme_shows_commands():
    shown = {line.split()[1] for line in documented_commands()}
    assert {"link", "plan_and_preprocess", "export_bundle", "export_nnunet", "evaluate"} <= shown


@pytest.mark.parametrize("line", documented_commands())
def test_readme_commands_fit_the_functions(line):
    name, *words = shlex.split(line, comments=True)[1:]
    function = getattr(import_module(cli.COMMANDS[name][0]), name)
    positional, keywords = cli.parse(name, function, words)
    inspect.signature(function).bind(*positional, **keywords)

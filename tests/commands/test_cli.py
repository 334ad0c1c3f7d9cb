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
from alhvr_trainer.commands import command
from alhvr_trainer.commands.arguments import parse
from alhvr_trainer.commands.next_step import next_step
from alhvr_trainer.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


ODD_PATHS = ("20240115", "1e3", "[a]", "{a: 1}", "True", "None", "a,b", "(1)", "0x10", "#1", "a@b", "50%", "$a")


def sample(
    dataset: int | str,
    configurations: str = "2d",
    fold: int | str | tuple[int, ...] = 0,
    plans_file: str | None = None,
    output: str | Path = "out",
    check: bool = False,
    verify: bool = True,
    number: int | None = None,
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
    bound = inspect.signature(sample).bind(**parse("sample", sample, shlex.split(line)))
    bound.apply_defaults()
    return dict(bound.arguments)


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
        *(
            (f"{before} {shlex.quote(path)}", {"output": path})
            for before in ("27 2d 0 plans.json", "-d 27 -o", "-d 27 --output")
            for path in ODD_PATHS
        ),
        ("-d 27 --output=None -p None", {"output": "None", "plans_file": "None"}),
        ("-d 27 --check true --verify False", {"check": True, "verify": False}),
        ("-d 27 -o=a=b", {"output": "a=b"}),
        ("-d 27 --plans-file my-plans.json", {"plans_file": "my-plans.json"}),
        ("-d 27 --check", {"check": True, "verify": True}),
        ("-d 27 --noverify", {"check": False, "verify": False}),
        ("-f 0 27", {"fold": 0, "dataset": 27}),
        ("27 2d -f 0 -o out", {"fold": 0, "configurations": "2d", "output": "out"}),
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
        ("-d 27 --nonsense 3", "unknown option --nonsense (see: alhvr sample --help)"),
        ("-d 27 --plans_fil x", "unknown option --plans_fil; did you mean --plans_file?"),
        ("-d 27 -conf x", "unknown option -conf; did you mean --configurations?"),
        ("-d 27 --nooutput", "unknown option --nooutput; did you mean --output?"),
        ("-d 27 --number many", "--number must be a whole number, found 'many'"),
        ("-d 27 --number 1.5", "--number must be a whole number, found '1.5'"),
        ("-d 27 --check=maybe", "--check must be True or False, found 'maybe'"),
        ("-d", "--dataset needs a value"),
        ("-d 27 2d 0 plans out True True 1 one_too_many", "unknown argument one_too_many"),
        ("-d 27 -o", "--output needs a value"),
        ("-d 27 -o -f 0", "--output needs a value; if -f is meant: --output=-f"),
        (
            "-d 27 -f 0 1 -o x",
            "--fold takes several values as one word, with commas: alhvr sample -d 27 -f 0,1 -o x (see",
        ),
        ("-d 27 --fold=0 1 2", "with commas: alhvr sample -d 27 --fold=0,1,2 (see"),
        ("-f 0, 1 27 -o 'a b'", "with commas: alhvr sample -f 0,1 27 -o 'a b' (see"),
    ],
)
def test_wrong_usage(line, reason, sample_command, capsys):
    assert cli.main(["sample", *shlex.split(line)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("alhvr: ") and printed.err.count("\n") == 1
    assert reason in printed.err


@pytest.mark.parametrize("word", ["-X", "train-x", "--"])
def test_an_unknown_command_is_shown_as_typed(word, capsys):
    assert cli.main([word]) == 2
    assert capsys.readouterr().err.startswith(f"alhvr: there is no command {word!r}")


def test_errors_of_the_system_name_the_file(monkeypatch, capsys, sample_command):
    def full(name: str, *_: object) -> None:
        raise OSError(28, "No space left on device", "/data/plans.json")

    monkeypatch.setattr(cli, "command", full)
    assert cli.main(["sample"]) == 1
    assert capsys.readouterr().err == "alhvr: /data/plans.json: No space left on device\n"


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("plan_and_preprocess -d 27 -c 2d 3d_fullres", "plan_and_preprocess -d 27 -c 2d,3d_fullres"),
        ("make_split -d 27 --labeled one two", "make_split -d 27 --labeled one,two"),
        ("predict -d 27 -c 2d -f 0 1 2 -i a -o b", "predict -d 27 -c 2d -f 0,1,2 -i a -o b"),
        ("move_labeled -d 27 -f 0 1 finished", "move_labeled -d 27 -f 0,1 finished"),
        ("benchmark acdc --seeds 0 1", "benchmark acdc --seeds 0,1"),
    ],
)
def test_several_values_side_by_side_are_refused(typed, right, capsys):
    """They would fill other parameters, an output folder for instance."""
    assert cli.main(shlex.split(typed)) == 2
    assert f"as one word, with commas: alhvr {right} (see" in capsys.readouterr().err
    name, *words = shlex.split(right)
    parse(name, command(name), words)


@pytest.mark.parametrize(
    "typed",
    [
        "predict -f 0 27 2d -i a -o b",
        "predict -f 0,1 27 2d -i a -o b",
        "predict -f 0 27 -c 2d -i a -o b",
        "predict 27 -f 0 2d -i a -o b",
        "export_bundle -f 0 27 2d -o x",
        "plan_and_preprocess -c 2d 27 my-plans.json",
        "benchmark --seeds 0 acdc out",
        "make_split --labeled 5 27 3",
        "move_labeled -d 27 -f 0 finished",
    ],
)
def test_words_that_fill_other_parameters_are_not_refused(typed):
    name, *words = shlex.split(typed)
    values = list(parse(name, command(name), words).values())
    assert all(str(word) in map(str, values) for word in words if word.isdigit() or word in ("2d", "acdc", "out"))


@pytest.mark.parametrize("name", ["train", "suggest", "predict_next_stage", "report", "rounds"])
def test_a_second_fold_fills_no_other_parameter(name, capsys):
    assert cli.main([name, "-d", "27", "-c", "2d", "-f", "0", "1"]) == 2
    assert "unknown argument 1" in capsys.readouterr().err


def test_british_spelling_of_an_option():
    from alhvr_trainer.export.bundle import export_bundle

    words = ["-o", "bundle", "--licence", "CC0"]
    assert parse("export_bundle", export_bundle, words)["license"] == "CC0"


def test_required_options_are_named(capsys):
    assert cli.main(["predict"]) == 2
    assert "no value for the required arguments: input, output (see: alhvr predict --help)" in capsys.readouterr().err


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
    assert (
        message.startswith("alhvr: there is no command 'trian'; did you mean train?; commands: ")
        and message.count("\n") == 1
    )
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


HEAVY = {"torch", "nnunetv2", "monai", "matplotlib", "scipy", "numpy", "SimpleITK", "nibabel", "blosc2", "pydantic"}
"""Each takes about a tenth of a second to import, or much more."""


def test_help_and_version_import_nothing_heavy():
    """They must answer at once."""
    code = (
        "import sys\n"
        "from alhvr_trainer import cli\n"
        "for words in (['--help'], ['version'], *([name, '--help'] for name in cli.COMMANDS)):\n"
        "    assert cli.main(words) == 0\n"
        f"    print('heavy:', words, {HEAVY} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("heavy:")]
    assert len(lines) == 2 + len(cli.COMMANDS) and [line for line in lines if not line.endswith(" set()")] == []


def test_trainer_path_does_not_import_torch():
    code = (
        "import sys\n"
        "from alhvr_trainer import cli\n"
        "cli.main(['trainer_path'])\n"  # nnU-Net 2.7 has no use for it: one line says so
        "print('torch' in sys.modules)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert printed.endswith("False\n")


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def documented_commands() -> list[str]:
    """Every ``alhvr …`` line in the pages' code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", "".join(page.read_text(encoding="utf-8") for page in PAGES), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.strip() for line in lines if line.lstrip().startswith("alhvr ")})


def test_every_command_is_documented():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in cli.COMMANDS if f"alhvr {name}" not in text]
    assert missing == ["demo", "version"]  # the demo is there as a make target


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_fit_the_functions(line):
    name, *words = shlex.split(line, comments=True)[1:]
    parse(name, command(name), words)


def test_commands_are_functions_of_the_package():
    """Also those whose modules bear the same name and were imported before; type checkers see all of them."""
    code = (
        "import sys, alhvr_trainer, alhvr_trainer.commands.link, alhvr_trainer.experiments.convert\n"
        "import alhvr_trainer.commands.predict, alhvr_trainer.experiments.demo.phantom, alhvr_trainer.commands.train\n"
        "from alhvr_trainer import convert, link, predict, train, version\n"
        "assert version() == alhvr_trainer.__version__ and 'torch' not in sys.modules\n"
        "for name in alhvr_trainer.commands.COMMANDS:\n"
        "    function = getattr(alhvr_trainer, name)\n"
        "    assert type(function).__name__ == 'function' and function.__name__ == name, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(cli.COMMANDS) < set(alhvr_trainer.__all__) <= set(dir(alhvr_trainer))
    source = Path(alhvr_trainer.__file__).read_text()
    typed = {
        name for line in re.findall(r"^    from [\w.]+ import (.*)$", source, re.MULTILINE) for name in line.split(", ")
    }
    assert typed == set(alhvr_trainer.__all__) - {"__version__"}


@pytest.mark.parametrize(
    ("name", "line", "result", "expected"),
    [
        ("link", "", [], "alhvr plan_and_preprocess -d DATASET"),
        ("unlink", "", [], None),
        ("convert", "acdc x -d 27", "/raw/Dataset027_ACDC", "alhvr plan_and_preprocess -d 27"),
        ("make_split", "-d 27 --labeled 7", "", "alhvr plan_and_preprocess -d 27"),
        ("train", "027 2d 1", [], "alhvr predict -d 027 -c 2d -f 1 -i IN -o OUT"),
        (
            "train",
            "27 3d_lowres 0 -p My -t CPSTrainer",
            ["3d_cascade_fullres"],
            "alhvr train -d 27 -c 3d_cascade_fullres -f 0 -p My -t CPSTrainer",
        ),
        ("move_labeled", "27 done", [], "alhvr train -d 27 -c CONFIGURATION"),
        ("move_labeled", "27 done -f 0", [], "alhvr train -d 27 -c CONFIGURATION -f 0"),
        ("move_labeled", "27 done -f 2,3", [], "alhvr train -d 27 -c CONFIGURATION -f 2"),
        ("move_labeled", "27 done -f 0 --new_fingerprint", [], "alhvr plan_and_preprocess -d 27 --clean"),
        ("move_labeled", "27 done -f 0 --dry_run", [], None),
        (
            "predict",
            "27 2d -i in -o 'my out'",
            Path("my out"),
            "alhvr evaluate --predictions 'my out' --references LABELS --dataset_json 'my out/dataset.json'",
        ),
        ("evaluate", "-p OUT -r L -d d.json", {}, None),
        (
            "evaluate",
            "-p OUT -r L -d d.json -o s",
            {},
            "alhvr export_bundle -d DATASET -c CONFIGURATION -o BUNDLE --evaluation s/metrics.json",
        ),
        (
            "export_bundle",
            "27 2d",
            Path("b#1"),
            "cd 'b#1' && python -m monai.bundle run inference --config_file configs/inference.json "
            "--dataset_dir IN --output_dir OUT",
        ),
        (
            "export_bundle",
            "27 2d",
            Path("b 1"),
            "python -m monai.bundle run inference --config_file 'b 1/configs/inference.json' "
            "--dataset_dir IN --output_dir OUT",
        ),
        ("export_nnunet", "27 2d", Path("m.zip"), "nnUNetv2_install_pretrained_model_from_zip m.zip"),
    ],
)
def test_what_to_type_next(name, line, result, expected):
    """The line fits the command that it names."""
    function = getattr(alhvr_trainer, name)
    found = next_step(name, inspect.signature(function), parse(name, function, shlex.split(line)), result)
    assert found == expected
    words = shlex.split(found or "")
    if words[:1] == ["alhvr"]:
        parse(words[1], getattr(alhvr_trainer, words[1]), words[2:])


def test_next_after_planning(tmp_path):
    plans = tmp_path / "Mine.json"
    plans.write_text('{"configurations": {"2d": {}, "3d_fullres": {}}}')
    signature = inspect.signature(alhvr_trainer.plan_and_preprocess)
    for values, expected in (
        ({"dataset": 27}, "alhvr train -d 27 -c 2d -f 0 -p Mine"),
        ({"dataset": 27, "configurations": "3d_lowres,3d_fullres"}, "alhvr train -d 27 -c 3d_fullres -f 0 -p Mine"),
        ({"dataset": 27, "no_pp": True}, "nnUNetv2_preprocess -d 27 -plans_name Mine -c 2d"),
    ):
        assert next_step("plan_and_preprocess", signature, values, str(plans)) == expected

"""``alhvr link`` in a real nnU-Net: a copy of the installed one, so that the installation stays as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from data_builders import FOLDERS
from nnunet_environment import SUPPORT, needs_external_trainers
from trained_models import python_path

from alhvr_trainer import cli
from alhvr_trainer.commands import link
from alhvr_trainer.errors import InputError
from alhvr_trainer.resources import bundle_folder, ext_trainer_folder

LOOK_UP = f"""
import sys
import nnunetv2
from os.path import join
sys.path.append({str(SUPPORT)!r})
from nnunet_environment import find_trainer as trainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
def planner(name):
    return recursive_find_python_class(
        join(nnunetv2.__path__[0], "experiment_planning"), name, "nnunetv2.experiment_planning")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for PYTHONPATH with a copy of nnU-Net."""
    folder = tmp_path_factory.mktemp("site")
    installed = Path(next(iter(find_spec("nnunetv2").submodule_search_locations)))
    shutil.copytree(
        installed, folder / "nnunetv2", ignore=shutil.ignore_patterns("__pycache__", link.SHIM_NAME, "tests")
    )
    return folder


@pytest.fixture
def use(site, monkeypatch):
    """nnU-Net is the copy."""
    for file in shims(site):
        file.unlink(missing_ok=True)
    instead_of_the_installed_one(site, monkeypatch)
    return site


def instead_of_the_installed_one(site: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "nnunetv2", raising=False)
    found = find_spec("nnunetv2").submodule_search_locations
    assert list(found) == [str(site / "nnunetv2")], "the installation must stay as it is"


def shims(site: Path) -> list[Path]:
    return [site / "nnunetv2" / folder / link.SHIM_NAME for folder in link.SHIM_FOLDERS]


def run(code: str, site: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "nnUNet_extTrainer"}
    environment["PYTHONPATH"] = python_path(site)
    # nnU-Net 2.7 prints which of its folders are not set
    environment |= {f"nnUNet_{name}": str(site) for name in FOLDERS}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_link_and_unlink_are_safe_to_repeat(use, capsys):
    for _ in range(2):
        assert link.link() == shims(use)
    source = (ext_trainer_folder() / "alhvr.py").read_text()
    assert [file.read_text() for file in shims(use)] == [source, source]
    assert not list(use.rglob("*.part"))
    assert link.unlink() == shims(use)
    assert link.unlink() == []
    assert not any(file.exists() for file in shims(use))
    assert "nothing to remove" in capsys.readouterr().out


def test_link_renews_an_older_copy(use):
    link.link()
    newest = shims(use)[0].read_text()
    shims(use)[0].write_text(newest.splitlines()[0] + '\nolder"""\n')
    link.link()
    assert shims(use)[0].read_text() == newest


def test_nnunet_finds_trainers_and_planner_when_linked(use):
    link.link()
    code = (
        LOOK_UP
        + """
found = trainer("nnUNetTrainer")
print(found.__module__, "alhvr_trainer.trainers.variants" in sys.modules)
for name in ("ALHVRTrainer", "ALHVRTrainer_5epochs", "ALHVRTrainer_1epoch", "SupervisedTrainer"):
    found = trainer(name)
    print(name, found.__name__, found.__module__)
print(planner("ALHVRPlanner").__module__, planner("ALHVRNoPlanner"))
print(planner("ExperimentPlanner").__module__)
print(trainer("ALHVRTrainerX"))
"""
    )
    assert run(code, use).splitlines() == [
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer False",
        "ALHVRTrainer ALHVRTrainer alhvr_trainer.trainers.alhvr",
        "ALHVRTrainer_5epochs ALHVRTrainer_5epochs alhvr_trainer.trainers.alhvr",
        "ALHVRTrainer_1epoch ALHVRTrainer_1epoch alhvr_trainer.trainers.alhvr",
        "SupervisedTrainer SupervisedTrainer alhvr_trainer.trainers.supervised",
        "alhvr_trainer.planning.planner None",
        "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner",
        "None",
    ]


def test_every_trainer_passes_the_shim_and_has_its_paper():
    from alhvr_trainer.config.methods import methods
    from alhvr_trainer.ext_trainer import alhvr
    from alhvr_trainer.trainers.semi_supervised import SemiSupervisedTrainer

    for name, method in methods().items():
        assert getattr(alhvr, name) is method.trainer
        semi_supervised = issubclass(method.trainer, SemiSupervisedTrainer)
        assert bool(method.reference) == bool(method.summary) == semi_supervised
    assert [name for name, method in methods().items() if not method.summary] == [
        "SupervisedTrainer",
        "SupervisedWholeBatchTrainer",
    ]


@needs_external_trainers
def test_nnunet_finds_trainers_through_ext_trainer(use, capsys):
    assert cli.main(["trainer_path"]) == 0
    folder = capsys.readouterr().out.removesuffix("\n")
    assert Path(folder).is_dir()
    code = (
        LOOK_UP
        + f"""
import os
print("before", trainer("ALHVRTrainer"))
os.environ["nnUNet_extTrainer"] = {folder!r}
print("found", trainer("ALHVRTrainer").__module__, trainer("SupervisedTrainer_5epochs").__mro__[1].__module__)
"""
    )
    printed = run(code, use).splitlines()
    assert printed[0] == "before None"
    assert printed[-1] == "found alhvr_trainer.trainers.alhvr alhvr_trainer.trainers.supervised"


def test_linked_module_is_harmless_without_alhvr(use):
    """As after ``pip uninstall alhvr-trainer`` without ``alhvr unlink``: a Python that has no packages."""
    link.link()
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("alhvr_link", {str(shims(use)[0])!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(importlib.util.find_spec("alhvr_trainer"))
print(hasattr(module, "ALHVRTrainer"), hasattr(module, "nnUNetTrainer"))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=use, check=True)
    assert done.stdout == "None\nFalse False\n"


@pytest.mark.parametrize("command", ["link", "unlink"])
def test_a_foreign_file_is_left_alone(command, use, capsys):
    foreign = shims(use)[1]
    foreign.write_text("mine = 1\n")
    assert cli.main([command]) == 1
    assert foreign.read_text() == "mine = 1\n"
    assert not shims(use)[0].exists()
    assert capsys.readouterr().err == f"alhvr: {foreign} was not written by alhvr link; move it away first\n"


@contextmanager
def unprivileged():
    """Not root, to whom nothing is read-only."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("looks_elsewhere", "remedy"),
    [
        (True, 'leave nnU-Net as it is and use instead: export nnUNet_extTrainer="$(alhvr trainer_path)"'),
        (False, "install nnU-Net where you may write, or version 2.8 or newer, which needs no linking"),
    ],
)
def test_read_only_nnunet(monkeypatch, looks_elsewhere, remedy):
    with tempfile.TemporaryDirectory() as site:
        package = Path(site, "nnunetv2")
        for folder in link.SHIM_FOLDERS:
            (package / folder).mkdir(parents=True)
        (package / "__init__.py").touch()
        if looks_elsewhere:
            (package / "utilities").mkdir()
            (package / "utilities" / "find_objects.py").touch()
        folder = package / link.SHIM_FOLDERS[0]
        Path(site).chmod(0o755)
        folder.chmod(0o555)
        instead_of_the_installed_one(Path(site), monkeypatch)
        with unprivileged(), pytest.raises(InputError) as caught:
            link.link()
        folder.chmod(0o755)
        assert not list(folder.iterdir())
    assert str(caught.value) == f"cannot write into {folder} (Permission denied); {remedy}"


def test_without_nnunet(tmp_path):
    """A Python that has our package and no other."""
    shutil.copytree(Path(link.__file__).parents[1], tmp_path / "alhvr_trainer")
    shutil.copytree(bundle_folder(), tmp_path / "alhvr_trainer" / "bundle", dirs_exist_ok=True)
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from alhvr_trainer.commands.link import link; link()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(
        f"InputError: nnunetv2 is not installed for {sys.executable}; install it first: pip install nnunetv2"
    )

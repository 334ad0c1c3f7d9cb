"""Both kinds of nnU-Net, whichever is installed; and which nnU-Net these tests ran against."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import nnunetv2
import pytest
from conftest import imported_nnunet_version
from nnunetv2 import paths
from packaging.requirements import Requirement

from alhvr_trainer import compatibility
from alhvr_trainer.commands import link
from alhvr_trainer.compatibility import nnunet_folder, nnunet_folder_if_set
from alhvr_trainer.errors import InputError
from alhvr_trainer.experiments.demo.run import demo
from alhvr_trainer.resources import ext_trainer_folder

REPOSITORY = Path(__file__).resolve().parents[2]


class FolderOf28:
    """As nnU-Net 2.8 has them."""

    def __init__(self, value: str | None) -> None:
        self.value = value

    def get(self) -> str | None:
        return self.value


@pytest.mark.parametrize("kind", [str, FolderOf28])
def test_a_folder_of_nnunet(kind: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "nnUNet_raw", kind("/data/raw"))
    assert nnunet_folder_if_set("nnUNet_raw") == nnunet_folder("nnUNet_raw") == "/data/raw"


@pytest.mark.parametrize("unset", [None, FolderOf28(None), FolderOf28("")], ids=["2.7", "2.8", "empty"])
def test_a_folder_that_is_not_set(unset: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "nnUNet_raw", unset)
    assert nnunet_folder_if_set("nnUNet_raw") is None
    with pytest.raises(InputError, match=r"^environment variable nnUNet_raw is not set; .*\(export nnUNet_raw="):
        nnunet_folder("nnUNet_raw")


def test_a_file_in_place_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "afile").touch()
    monkeypatch.setattr("nnunetv2.paths.nnUNet_raw", str(tmp_path / "afile"))
    with pytest.raises(InputError, match=r"nnUNet_raw is .*afile, which is a file; set it to a folder"):
        nnunet_folder("nnUNet_raw")


def test_external_trainers_are_read_where_nnunet_has_their_variable():
    (package,) = map(Path, nnunetv2.__path__)
    assert compatibility.reads_external_trainers(package) == hasattr(paths, "nnUNet_extTrainer")


@pytest.fixture
def without_external_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed nnU-Net like 2.7: its folders, and no look-up elsewhere."""
    package = tmp_path / "site" / "nnunetv2"
    for folder in link.SHIM_FOLDERS:
        (package / folder).mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "nnunetv2")
    return package


def test_trainer_path_is_refused_where_it_would_do_nothing(without_external_trainers: Path):
    message = r"^the installed nnU-Net does not read nnUNet_extTrainer; use alhvr link, or update it: nnunetv2>=2\.8$"
    with pytest.raises(InputError, match=message):
        link.trainer_path()
    utilities = without_external_trainers / "utilities"
    utilities.mkdir()
    (utilities / "find_objects.py").touch()
    assert link.trainer_path() == ext_trainer_folder()


def test_demo_needs_to_be_found_by_nnunet(without_external_trainers: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"^the installed nnU-Net does not read nnUNet_extTrainer; use alhvr link"):
        demo(str(tmp_path / "demo"))
    assert not (tmp_path / "demo").exists()
    link.link()
    link.check_nnunet_finds_us()


def test_nnunet_is_a_supported_release():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    (requirement,) = [Requirement(line) for line in lines if line.startswith("nnunetv2")]
    assert requirement.specifier.contains(imported_nnunet_version())


def test_other_processes_have_the_same_nnunet():
    """What tests start as users do must run the release that the tests speak of."""
    code = "import nnunetv2; print(*nnunetv2.__path__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(nnunetv2.__path__)

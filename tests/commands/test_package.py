"""What is installed: the built wheel and sdist, the version, the tools' files."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import alhvr_trainer
from alhvr_trainer import resources
from alhvr_trainer.config.methods import methods
from alhvr_trainer.config.settings import Settings
from alhvr_trainer.trainers.alhvr import ALHVRSettings

pytestmark = pytest.mark.any_nnunet

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(sdist, wheel built from that sdist), from a copy of the sources so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("alhvr_trainer", "bundle", "plans", "tests"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    sdist = build("sdist", source, folder)
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", unpacked, folder)


def build(kind: str, source: Path, output: Path) -> Path:
    code = f"import setuptools.build_meta as b; print('built', b.build_{kind}({str(output)!r}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.splitlines()[-1]


def shipped_files() -> set[str]:
    """What the wheel must hold, by its paths there."""
    kinds = ("py", "json", "yaml", "j2")
    package = REPOSITORY / "alhvr_trainer"
    files = {path.relative_to(REPOSITORY) for kind in kinds for path in package.rglob(f"*.{kind}")}
    files.add(Path("alhvr_trainer", "py.typed"))
    for name in ("bundle", "plans"):
        folder = REPOSITORY / name
        files |= {Path("alhvr_trainer", path.relative_to(REPOSITORY)) for path in folder.rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_wheel_holds_all_of_the_package(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == shipped_files()
    assert {"alhvr_trainer/plans/demo.json", "alhvr_trainer/bundle/configs/inference.json"} <= names


def test_sdist_holds_what_building_needs(distributions):
    with tarfile.open(distributions[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "plans/demo.json"} <= names
    assert {"bundle/configs/inference.json", "alhvr_trainer/cli.py"} <= names


def test_installed_package_finds_its_folders(distributions, tmp_path):
    with zipfile.ZipFile(distributions[1]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from alhvr_trainer import resources as r\n"
        "print(r.plans_folder(), r.bundle_folder(), r.ext_trainer_folder(), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    package = tmp_path / "alhvr_trainer"
    assert done.stdout.splitlines() == [str(package / name) for name in ("plans", "bundle", "ext_trainer")]


def test_checkout_finds_its_folders():
    assert (resources.plans_folder() / "demo.json").is_file()
    assert (resources.bundle_folder() / "configs" / "inference.json").is_file()
    assert (resources.ext_trainer_folder() / "alhvr.py").is_file()


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    folders = {path.parent for path in (REPOSITORY / "alhvr_trainer").rglob("*.py")}
    packages = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    listed = set(config["options"]["packages"].split())
    assert listed == packages | {"alhvr_trainer.plans", "alhvr_trainer.bundle", "alhvr_trainer.bundle.scripts"}


def test_what_is_imported_is_required():
    """Nothing may work only because some other package happens to bring it along."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    # a line with a marker stands for what nnU-Net needs on some Python versions
    lines = [line for line in lines if line and not line.startswith("#") and ";" not in line]
    lines += config["options.extras_require"]["cluster"].split()
    required = {re.split(r"[\[<>=]", line)[0].replace("-", "_") for line in lines}
    required = {"yaml" if name == "pyyaml" else name for name in required}  # its module's name is another
    required |= {"ignite"} if any(line.startswith("monai[") and "ignite" in line for line in lines) else set()
    imported = set()
    for path in [*(REPOSITORY / "alhvr_trainer").rglob("*.py"), *(REPOSITORY / "bundle" / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names - {"alhvr_trainer"} == required


def test_one_version():
    citation = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changes = re.search(r"^## \[(\d.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation and changes
    assert {version("alhvr-trainer"), citation[1], changes[1]} == {alhvr_trainer.__version__}


@pytest.mark.parametrize("setting", ALHVRSettings.model_fields)
def test_page_of_settings_lists_every_setting(setting):
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    (row,) = [line for line in table if f"`{setting}`" in line.split("|")[1]]
    default = ALHVRSettings().as_dict()[setting]
    if default is not None:
        assert row.split("|")[2].strip().strip("`") == json.dumps(default)


@pytest.mark.parametrize("trainer", [n for n, each in methods().items() if each.summary and n != "ALHVRTrainer"])
def test_page_of_methods_lists_their_settings(trainer):
    """Every key that a rival adds or gives another default, in its section; numbers are compared."""
    method = methods()[trainer]
    section = re.split(r"^## ", (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{method.name}\n")]
    listed: dict[str, str] = {}
    for row in re.findall(r"^\| (`.+?) \| (.+?) \|", text, re.MULTILINE):
        names = re.findall(r"`(\w+)`", row[0])
        listed |= dict(zip(names, row[1].split(", ") if len(names) > 1 else [row[1]], strict=True))
    common = Settings().as_dict()
    for name, default in method.trainer.settings_class().as_dict().items():
        if name in common and default == common[name]:
            continue
        assert name in listed, name
        if isinstance(default, (float, int)) and not isinstance(default, bool):
            assert float(listed[name]) == default, name


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    """Pages of the repository, pictures, and headings."""
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, heading = link.partition("#")
        if "://" in link:
            continue
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="alhvr")
    assert command.value == "alhvr_trainer.cli:main"


def test_torchvision_fits_torch():
    """nnU-Net's look-up of external trainers imports timm and with it torchvision."""
    code = "import torchvision; torchvision.ops.nms"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_method_needs_torch_alone():
    code = (
        "import sys; from alhvr_trainer import alhvr_terms\n"
        "print(sorted({'nnunetv2', 'monai', 'SimpleITK', 'batchgenerators'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_lazy_attributes():
    from alhvr_trainer.errors import InputError

    assert alhvr_trainer.InputError is InputError
    with pytest.raises(AttributeError, match="module 'alhvr_trainer' has no attribute 'nothing'"):
        _ = alhvr_trainer.nothing

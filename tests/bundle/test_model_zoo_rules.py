"""What the CI of MONAI's model zoo verifies of a bundle, on exported ones; the internet is not asked.

The rules are the zoo's contribution guide and MONAI's bundle specification in our words; ``metadata_rules.json`` is a
JSON schema made from the latter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from monai.bundle.properties import InferProperties, MetaProperties
from nnunet_environment import set_nnunet
from trained_models import make_images, make_model

from alhvr_trainer.export.bundle import export_bundle

pytestmark = pytest.mark.any_nnunet
RULES = Path(__file__).with_name("metadata_rules.json")
LARGEST_FILE = 25 * 2**20
NECESSARY_FILES = ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json")
CONFIG_KEYS = ("bundle_root", "device", "network_def", "inferer", "output_dir")
METADATA_KEYS = [
    "schema",
    "version",
    "changelog",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "native_packages_version",
    "supported_apps",
    "name",
    "task",
    "description",
    "authors",
    "copyright",
    "data_source",
    "data_type",
    "image_classes",
    "label_classes",
    "pred_classes",
    "eval_metrics",
    "intended_use",
    "references",
    "network_data_format",
]
TENSOR_KEYS = [
    "type",
    "format",
    "modality",
    "num_channels",
    "spatial_shape",
    "dtype",
    "value_range",
    "is_patch_data",
    "channel_def",
]
KINDS: dict[str, dict[str, Any]] = {
    "2d": {"configuration": "2d"},
    "2d-both-networks": {"configuration": "2d", "network": "both"},
    "3d-regions": {"configuration": "3d_fullres", "plans": "RegionPlans", "trainer": "nnUNetTrainer"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folder with a bundle of each kind, and images for them."""
    root = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root / "results")
        make_model(root / "results", "2d")
        make_model(root / "results", "3d_fullres", "nnUNetTrainer", "RegionPlans", regions=True)
        for kind, options in KINDS.items():
            export_bundle(901, output=str(root / kind), **options)
    make_images(root / "images")
    return root


@pytest.fixture(params=KINDS)
def bundle(root, request) -> Path:
    return root / request.param


def metadata_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


def files_of(bundle: Path, config: str = "inference") -> dict[str, str]:
    """As MONAI's functions take them."""
    names = {"config_file": f"{config}.json", "meta_file": "metadata.json"}
    return {"bundle_root": str(bundle), **{key: str(bundle / "configs" / name) for key, name in names.items()}}


def test_necessary_files(bundle):
    assert [name for name in NECESSARY_FILES if not (bundle / name).is_file()] == []


def test_no_file_but_the_weights_is_large(bundle):
    """The zoo keeps large files elsewhere, and weights may be."""
    files = [path for path in bundle.rglob("*") if path.is_file() and path.parent.name != "models"]
    assert len(files) > 5
    assert [path for path in files if path.stat().st_size > LARGEST_FILE] == []


def test_version_and_changelog(bundle):
    metadata = metadata_of(bundle)
    assert metadata["version"] in metadata["changelog"]


def test_keys_of_the_inference_config(bundle):
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    assert [key for key in CONFIG_KEYS if key not in config] == []


def test_no_path_of_this_machine(root, bundle):
    """The guide asks for paths without personal information."""
    texts = [path for path in bundle.rglob("*") if path.suffix in (".json", ".md", ".py", ".txt", ".conf")]
    assert [path.name for path in texts if str(root) in path.read_text(encoding="utf-8")] == []


def verify(metadata: dict[str, Any], folder: Path) -> None:
    """MONAI's own check; it downloads no rules where the file lies already."""
    file = folder / "metadata.json"
    file.write_text(json.dumps(metadata))
    monai.bundle.verify_metadata(meta_file=str(file), filepath=str(RULES))


def test_metadata_follow_the_rules(bundle, tmp_path):
    verify(metadata_of(bundle), tmp_path)


@pytest.mark.parametrize("key", METADATA_KEYS)
def test_rules_ask_for_every_key(root, key, tmp_path):
    metadata = metadata_of(root / "2d")
    del metadata[key]
    with pytest.raises(ValueError, match="schema"):
        verify(metadata, tmp_path)


@pytest.mark.parametrize(("side", "name"), [("inputs", "image"), ("outputs", "pred")])
@pytest.mark.parametrize("key", TENSOR_KEYS)
def test_rules_ask_for_every_key_of_a_tensor(root, side, name, key, tmp_path):
    metadata = metadata_of(root / "2d")
    del metadata["network_data_format"][side][name][key]
    with pytest.raises(ValueError, match=f"'{key}' is a required property"):
        verify(metadata, tmp_path)


WRONG: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "version of two numbers": lambda metadata, image: metadata.update(version="1.0"),
    "empty changelog": lambda metadata, image: metadata.update(changelog={}),
    "changelog of no version": lambda metadata, image: metadata["changelog"].update(latest="text"),
    "build in a release": lambda metadata, image: metadata.update(pytorch_version="2.8.0+cpu"),
    "range of versions": lambda metadata, image: metadata["required_packages_version"].update(nnunetv2=">=2.7"),
    "no author": lambda metadata, image: metadata.update(authors=""),
    "metric in words": lambda metadata, image: metadata["eval_metrics"].update(mean_dice="good"),
    "a medical device": lambda metadata, image: metadata.update(intended_use="diagnosis"),
    "no image": lambda metadata, image: metadata["network_data_format"]["inputs"].pop("image"),
    "unknown type": lambda metadata, image: image.update(type="picture"),
    "unknown format": lambda metadata, image: image.update(format="HU"),
    "unknown dtype": lambda metadata, image: image.update(dtype="float"),
    "no channel": lambda metadata, image: image.update(num_channels=0),
    "shape of zeros": lambda metadata, image: image.update(spatial_shape=[0, 16]),
    "half a range": lambda metadata, image: image.update(value_range=[0]),
    "patches in words": lambda metadata, image: image.update(is_patch_data="true"),
    "channel by name": lambda metadata, image: image.update(channel_def={"T2": "0"}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_rules_refuse(root, wrong, tmp_path):
    metadata = metadata_of(root / "2d")
    WRONG[wrong](metadata, metadata["network_data_format"]["inputs"]["image"])
    with pytest.raises(ValueError, match="schema"):
        verify(metadata, tmp_path)


def test_network_takes_and_gives_what_the_metadata_say(bundle):
    monai.bundle.verify_net_in_out("network_def", device="cpu", **files_of(bundle))


@pytest.mark.parametrize(("side", "name"), [("inputs", "image"), ("outputs", "pred")])
def test_a_wrong_channel_count_would_be_found(root, side, name):
    wrong = {f"_meta_#network_data_format#{side}#{name}#num_channels": 5}
    with pytest.raises((ValueError, RuntimeError), match="channel"):
        monai.bundle.verify_net_in_out("network_def", device="cpu", **files_of(root / "3d-regions"), **wrong)


def missing_properties(root: Path, bundle: Path) -> list[str] | None:
    workflow = monai.bundle.create_workflow(
        workflow_type="inference",
        **files_of(bundle),
        logging_file=str(bundle / "configs" / "logging.conf"),
    )
    workflow.properties = {**MetaProperties, **InferProperties}
    return workflow.check_properties()


def test_workflow_has_all_properties(root, bundle):
    assert missing_properties(root, bundle) == []


def without(bundle: Path, key: str, folder: Path) -> Path:
    """A copy whose inference config calls something by another name."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    file = copy / "configs" / "inference.json"
    file.write_text(file.read_text(encoding="utf-8").replace(f'"{key}"', '"renamed"').replace(f"@{key}", "@renamed"))
    return copy


def test_a_missing_property_would_be_found(root, tmp_path):
    with pytest.raises(KeyError, match="'network_def' not in the config"):
        missing_properties(root, without(root / "2d", "network_def", tmp_path))


def test_a_property_by_another_name_would_be_found(root, tmp_path):
    copy = Path(shutil.copytree(root / "2d", tmp_path / "bundle"))
    file = copy / "configs" / "inference.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["post"], config["evaluator"]["postprocessing"] = config.pop("postprocessing"), "@post"
    file.write_text(json.dumps(config))
    assert missing_properties(root, copy) == ["postprocessing"]

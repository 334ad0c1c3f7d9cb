"""The bundle's own networks compute what nnU-Net's do, and the exporter sees to it that they do."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from dynamic_network_architectures.architectures import unet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.handlers import CheckpointLoader
from nnunet_environment import set_nnunet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from scripts import networks
from scripts.input_error import InputError as BundleInputError
from torch import nn
from trained_models import make_model

from alhvr_trainer.errors import InputError
from alhvr_trainer.export.bundle import export_bundle
from alhvr_trainer.export.bundle.architecture import bundle_network, bundle_weights, network_config
from alhvr_trainer.models import Member, TrainedModel, find_model, model_members, nnunet_network

PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
BLOCKS = {"BasicBlockD": BasicBlockD, "BottleneckD": BottleneckD}
pytestmark = [
    pytest.mark.any_nnunet,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning"),
]


def arguments(kind: str, dimensions: int = 2, **changes: Any) -> dict[str, Any]:
    """Three stages with uneven kernels and strides, one to three layers each, as nnU-Net plans them."""
    layers = "n_conv_per_stage" if kind == PLAIN else "n_blocks_per_stage"
    return {
        "input_channels": 2,
        "num_classes": 3,
        "n_stages": 3,
        "features_per_stage": [4, 6, 6],
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dimensions],
        "kernel_sizes": [[1, 3, 3][-dimensions:], [3] * dimensions, [3, 5, 3][-dimensions:]],
        "strides": [[1] * dimensions, [1, 2, 2][-dimensions:], [2, 1, 2][-dimensions:]],
        layers: [1, 3, 2],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimensions],
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    } | changes


def randomized(network: nn.Module) -> nn.Module:
    """Every tensor random, running statistics included, so that each of them shows in the output."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("var") else tensor.uniform_(-0.5, 0.7)
    return network.eval()


def pair(kind: str, given: dict[str, Any], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The library's network and ours with its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = {"block": BLOCKS[given["block"]]} if "block" in given else {}
        theirs = randomized(getattr(unet, kind)(**given | block, deep_supervision=False))
    ours = getattr(networks, kind)(**given).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()}, strict=True)
    return theirs, ours


def image_for(dimensions: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand((2, 2, *[16] * dimensions), generator=torch.Generator().manual_seed(seed))


VARIANTS: dict[str, dict[str, Any]] = {
    "as-planned": {},
    "no-bias": {"conv_bias": False},
    "dropout": {"dropout_op": nn.Dropout2d, "dropout_op_kwargs": {"p": 0.5, "inplace": True}},
    "batch-norm-silu": {"norm_op": nn.BatchNorm2d, "norm_op_kwargs": None, "nonlin": nn.SiLU, "nonlin_kwargs": None},
    "batch-norm-3d": {"norm_op": nn.BatchNorm3d, "norm_op_kwargs": {"momentum": 0.2}},
    "running-instance-norm": {"norm_op_kwargs": {"affine": True, "track_running_stats": True}},
    "learnt-nonlin": {"nonlin": nn.PReLU, "nonlin_kwargs": {"init": 0.1}},
    "no-norm-no-nonlin": {"norm_op": None, "norm_op_kwargs": None, "nonlin": None, "nonlin_kwargs": None},
    "single-numbers": {"features_per_stage": 5, "kernel_sizes": 3, "strides": 2, "n_conv_per_stage_decoder": 2},
    "scalars-per-stage": {"kernel_sizes": [3, 1, 3], "strides": [1, 2, 1]},
    "nonlin-first": {"nonlin_first": True},
    "bottleneck": {"block": "BottleneckD", "bottleneck_channels": [3, 2, 4], "stem_channels": 5},
    "stem": {"stem_channels": 3},
}
GRID = [
    pytest.param(kind, dimensions, changes, id=f"{kind}-{dimensions}d-{name}")
    for name, changes in VARIANTS.items()
    for kind in (PLAIN, RESIDUAL)
    for dimensions in (2, 3)
    if not ((kind == PLAIN and name in ("bottleneck", "stem")) or (kind == RESIDUAL and name == "nonlin-first"))
    if not (
        (dimensions == 3 and name in ("dropout", "batch-norm-silu")) or (dimensions == 2 and name == "batch-norm-3d")
    )
]


@pytest.mark.parametrize(("kind", "dimensions", "changes"), GRID)
@torch.no_grad()
def test_equals_the_library_and_as_torchscript(kind: str, dimensions: int, changes: dict[str, Any]):
    theirs, ours = pair(kind, arguments(kind, dimensions, **changes))
    image = image_for(dimensions)
    expected = theirs(image)
    assert expected.isfinite().all() and expected.std() > 1e-3
    assert torch.equal(ours(image), expected)
    assert torch.equal(torch.jit.script(ours)(image), expected)


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
@torch.no_grad()
def test_traced_and_exported(kind: str):
    theirs, ours = pair(kind, arguments(kind, 3))
    image, other = image_for(3), image_for(3, seed=2)
    # torch warns of its own check of sizes
    warnings.simplefilter("ignore", torch.jit.TracerWarning)
    for converted in (torch.jit.trace(ours, image), torch.export.export(ours, (image,)).module()):
        assert torch.equal(converted(other), theirs(other))


@settings(max_examples=20, deadline=None)
@given(st.data())
@torch.no_grad()
def test_equals_the_library_for_any_shape(data: st.DataObject):
    kind, dimensions = data.draw(st.sampled_from([PLAIN, RESIDUAL])), data.draw(st.sampled_from([2, 3]))
    stages = data.draw(st.integers(2, 3))

    def per_stage(values: st.SearchStrategy, number: int = stages) -> list[Any]:
        return data.draw(st.lists(values, min_size=number, max_size=number))

    def per_axis(values: list[int]) -> list[list[int]]:
        return per_stage(st.lists(st.sampled_from(values), min_size=dimensions, max_size=dimensions))

    given = arguments(
        kind,
        dimensions,
        n_stages=stages,
        features_per_stage=per_stage(st.integers(1, 4)),
        kernel_sizes=per_axis([1, 3, 5]),
        strides=per_axis([1, 2]),
        n_conv_per_stage_decoder=per_stage(st.integers(1, 2), stages - 1),
        conv_bias=data.draw(st.booleans()),
    )
    given["n_conv_per_stage" if kind == PLAIN else "n_blocks_per_stage"] = per_stage(st.integers(1, 2))
    theirs, ours = pair(kind, given, seed=data.draw(st.integers(0, 9)))
    strides = torch.tensor(given["strides"]).prod(0).tolist()
    image = torch.rand(1, 2, 2 * strides[0], *strides[1:])
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_names_are_the_library_s_without_its_aliases(kind: str):
    theirs, ours = pair(kind, arguments(kind, norm_op=nn.BatchNorm2d, norm_op_kwargs=None))
    weights, own = theirs.state_dict(), ours.state_dict()
    places = {weights[name].data_ptr() for name in own}
    assert len(places) == len(own)  # no alias
    assert any(name.endswith("running_var") for name in own)
    left_out = {name for name, tensor in weights.items() if tensor.data_ptr() not in places}
    assert left_out == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}  # deep supervision's


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_training_steps_are_the_library_s(kind: str):
    """For fine-tuning; and no parameter without a gradient, which training on several GPUs would not bear."""
    theirs, ours = pair(kind, arguments(kind, norm_op=nn.BatchNorm2d, norm_op_kwargs=None))
    image = image_for()
    for network in (theirs, ours):
        network.train()(image).square().sum().backward()
    expected = dict(theirs.named_parameters(remove_duplicate=False))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_torchscript_of_both_orders_in_one_process():
    """TorchScript shares compiled types: two orders of the same layers must not become one."""
    image = image_for()
    for nonlin_first in (False, True, False):
        _, ours = pair(PLAIN, arguments(PLAIN, nonlin_first=nonlin_first))
        with torch.no_grad():
            assert torch.equal(torch.jit.script(ours)(image), ours(image))


@torch.no_grad()
def test_ensemble_is_the_mean_of_its_members():
    members = [pair(RESIDUAL, arguments(RESIDUAL), seed)[1] for seed in range(3)]
    ensemble, image = networks.Ensemble(members).eval(), image_for()
    expected = (members[0](image) + members[1](image) + members[2](image)) / 3
    assert not torch.equal(expected, members[0](image))
    assert torch.equal(ensemble(image), expected)
    assert torch.equal(torch.jit.script(ensemble)(image), expected)
    assert ensemble.double()(image.double()).dtype == torch.float64


@pytest.mark.parametrize("members", [[], [nn.Identity()] * 2])
def test_ensemble_needs_different_networks(members: list[nn.Module]):
    with pytest.raises(BundleInputError, match="an ensemble needs different networks, at least one"):
        networks.Ensemble(members)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (PLAIN, {"conv_op": nn.Conv1d}, "conv_op is .*Conv1d.*; it must be torch.nn.Conv2d or torch.nn.Conv3d"),
        (PLAIN, {"norm_op": "torch.nn.BatchNorm2d"}, "norm_op is 'torch.nn.BatchNorm2d'; it must be a class of layers"),
        (PLAIN, {"nonlin": torch.relu}, "nonlin is .*relu.*; it must be a class of layers or null"),
        (PLAIN, {"n_stages": 1}, "n_stages is 1; a U-Net has at least 2"),
        (PLAIN, {"n_stages": 4}, "features_per_stage is .*; it needs 4 numbers, one for each stage"),
        (PLAIN, {"features_per_stage": [4, 0, 6]}, "features_per_stage is or holds 0; it must be a whole number"),
        (
            PLAIN,
            {"features_per_stage": [4, [6], 6]},
            r"features_per_stage is or holds \[6\]; it must be",
        ),
        (PLAIN, {"kernel_sizes": [[3, 3]] * 2}, "kernel_sizes is .*; it needs one entry for each of the 3 stages"),
        (PLAIN, {"kernel_sizes": "333"}, "kernel_sizes is or holds '3'; it must be a whole number"),
        (PLAIN, {"strides": [[1, 1, 1]] * 3}, "strides is .*; each entry needs 2 numbers, one for each axis"),
        (PLAIN, {"n_conv_per_stage": [1, True, 2]}, "n_conv_per_stage is or holds True; it must be a whole number"),
        (PLAIN, {"n_conv_per_stage_decoder": [1] * 3}, "n_conv_per_stage_decoder is .*; it needs 2 numbers"),
        (PLAIN, {"num_classes": 2.0}, "num_classes is or holds 2.0; it must be a whole number"),
        (RESIDUAL, {"block": "BottleneckD"}, "block is 'BottleneckD' and bottleneck_channels None"),
        (RESIDUAL, {"bottleneck_channels": 2}, "block is 'BasicBlockD' and bottleneck_channels 2"),
        (RESIDUAL, {"block": BasicBlockD}, "block is <class"),
        (RESIDUAL, {"stem_channels": 0}, "stem_channels is or holds 0"),
    ],
)
def test_what_makes_no_network_is_refused(kind: str, changes: dict[str, Any], message: str):
    with pytest.raises(BundleInputError, match=message) as caught:
        getattr(networks, kind)(**arguments(kind, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["deep_supervision", "squeeze_excitation", "pool"])
def test_unknown_arguments_are_refused(keyword: str):
    with pytest.raises(TypeError, match=keyword):
        networks.PlainConvUNet(**arguments(PLAIN), **{keyword: True})


# --- export


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("networks") / "results"
    with pytest.MonkeyPatch.context() as patch:
        set_nnunet(patch, nnUNet_results=root)
        make_model(root, "2d")
        make_model(root, "3d_fullres", plans_name="ResEncPlans", residual=True)
        yield root


@pytest.fixture(scope="module")
def flat(results: Path) -> TrainedModel:
    return find_model(901, "2d")


@pytest.fixture(scope="module")
def members(flat: TrainedModel) -> list[Member]:
    return model_members(flat, "both")


def with_architecture(model: TrainedModel, network: str | None = None, **changes: Any) -> TrainedModel:
    plans = json.loads(json.dumps(model.plans))
    architecture = plans["configurations"][model.configuration]["architecture"]
    architecture["network_class_name"] = network or architecture["network_class_name"]
    imported = changes.pop("imported", [])
    architecture["_kw_requires_import"] += imported
    architecture["arch_kwargs"] |= changes
    return replace(model, plans=plans)


def members_of(model: TrainedModel) -> list[Member]:
    """A member with random weights for the network of changed plans."""
    configuration = model.configuration_manager
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        2,
        3,
        deep_supervision=True,
    )
    return [Member(0, "a", randomized(network).state_dict(), {})]


def built(definition: dict[str, Any]) -> nn.Module:
    """By MONAI, with the bundle's scripts as a bundle finds them."""
    return ConfigParser({"verified": None, "network_def": definition}).get_parsed_content("network_def").eval()


def test_entry_of_the_config(flat: TrainedModel, members: list[Member]):
    found = bundle_network(flat, members[:1])
    assert found.native
    entry = json.loads(json.dumps(found.definition))
    plans = flat.configuration_manager.network_arch_init_kwargs
    assert {key: value for key, value in entry.items() if value != plans.get(key, "absent")} == {
        "_target_": "scripts.networks.PlainConvUNet",
        "_requires_": "@verified",
        "conv_op": "$torch.nn.Conv2d",
        "norm_op": "$torch.nn.InstanceNorm2d",
        "nonlin": "$torch.nn.LeakyReLU",
        "input_channels": 2,
        "num_classes": 3,
    }
    built(entry).load_state_dict(found.weights, strict=True)


def test_ensemble_from_the_config_has_members_of_its_own(flat: TrainedModel, members: list[Member]):
    found = bundle_network(flat, members)
    ensemble = built(json.loads(json.dumps(found.definition)))
    ensemble.load_state_dict(found.weights, strict=True)
    assert len(ensemble.members) == 2
    places = {tensor.data_ptr() for tensor in ensemble.state_dict().values()}
    assert len(places) == len(found.weights)
    for number, member in enumerate(members):
        single = bundle_network(flat, [member])
        for name, tensor in single.weights.items():
            assert torch.equal(ensemble.members[number].state_dict()[name], tensor)
            assert torch.equal(found.weights[f"members.{number}.{name}"], member.weights[name])


def test_weights_are_copies_that_hold_nothing_else(members: list[Member]):
    large = torch.rand(100, 3)
    weights = {"view": large[2:4].T, "alias": large[2:4].T, "other": large[0], "head": torch.zeros(2)}
    member = replace(members[0], weights=weights)
    found = bundle_weights([member], ["view", "alias", "other"])
    assert list(found) == ["view", "alias", "other"]
    for name, tensor in found.items():
        assert torch.equal(tensor, weights[name]) and tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()
    assert found["view"].data_ptr() == found["alias"].data_ptr() != large[2:4].data_ptr()
    with pytest.raises(InputError, match=r"network a of fold 0 has no weights 'lost': it cannot be exported"):
        bundle_weights([member], ["lost"])


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("unet.ResidualUNet", {"n_blocks_per_stage": [1, 2, 1]}),
        ("unet.PlainConvUNet", {"nonlin": "monai.networks.blocks.Swish", "nonlin_kwargs": None}),
        ("unet.PlainConvUNet", {"conv_op": "torch.nn.Conv1d", "norm_op": "torch.nn.InstanceNorm1d"}),
    ],
    ids=["another-network", "layers-not-of-torch", "1d"],
)
def test_other_networks_are_built_by_their_own_library(flat: TrainedModel, network: str, changes: dict[str, Any]):
    if "conv_op" in changes:
        changes = changes | {"kernel_sizes": [3, 3, 3], "strides": [1, 2, 2]}
    model = with_architecture(flat, f"dynamic_network_architectures.architectures.{network}", **changes)
    if network.endswith("ResidualUNet"):
        del model.plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_conv_per_stage"]
    members = members_of(model)
    found = bundle_network(model, members * 2)
    assert not found.native
    single = found.definition["networks"][0]
    assert single["_target_"] == f"dynamic_network_architectures.architectures.{network}"
    ensemble = built(found.definition)
    ensemble.load_state_dict(found.weights, strict=True)
    assert type(ensemble.members[1]).__name__ == network.split(".")[1]


@pytest.mark.parametrize(
    "changes", [{"block": "BasicBlockD"}, {"block": "BottleneckD", "bottleneck_channels": 3, "strides": [1, 2, 2]}]
)
def test_blocks_of_plans(results: Path, changes: dict[str, Any]):
    model = find_model(901, "3d_fullres", plans="ResEncPlans")
    place = "dynamic_network_architectures.building_blocks.residual."
    model = with_architecture(model, **changes | {"block": place + changes["block"]}, imported=["block"])
    found = bundle_network(model, members_of(model))
    assert found.native and found.definition["block"] == changes["block"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_conv_per_stage_decoder": "$__import__('os').getpid()"},
            r"'n_conv_per_stage_decoder': .* is not allowed",
        ),
        (
            {"n_conv_per_stage_decoder": ["@bundle_root", 1]},
            r"'n_conv_per_stage_decoder': '@bundle_root' in the",
        ),
        ({"nonlin_kwargs": {"inplace": "%other.json::x"}}, r"'inplace': '%other.json::x' in the plans'"),
        ({"nonlin_kwargs": {"_target_": "os.getpid"}}, r"'_target_': 'os.getpid' in the plans'"),
        ({"nonlin_kwargs": {"+inplace": True}}, r"'\+inplace': True in the plans'"),
        (
            {"norm_op": "torch.load"},
            r'"norm_op" in the plans\' architecture is \'torch.load\', which is not a class of layers',
        ),
        ({"norm_op": "torch.nn.ReLU+print()"}, r'"norm_op" .* is \'torch.nn.ReLU\+print\(\)\', which is not a class'),
        ({"norm_op": "torch.nn.modules.module.torch.hub.load"}, r'"norm_op" .*, which is not a class of layers'),
        (
            {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": "x"}},
            r'"nonlin" .*, which is not a class of layers',
        ),
        ({"norm_op": 3}, r'"norm_op" .* is 3, which is not a class of layers'),
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_plans_put_no_code_into_the_config(flat: TrainedModel, changes: dict[str, Any], message: str, native: bool):

    with pytest.raises(InputError, match=message) as caught:
        network_config(with_architecture(flat, **changes), unet.PlainConvUNet, native)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_names_disagree_is_refused(flat: TrainedModel, members: list[Member]):
    """nnU-Net loads the last of a tensor's names, the bundle the first: a wrong model must not leave the house."""
    name = "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"
    weights = members[0].weights | {name: members[0].weights[name] + 1}
    with pytest.raises(InputError, match=r"^network a of fold 0: the bundle's network does not compute what nnU-Net's"):
        bundle_network(flat, [replace(members[0], weights=weights)])


# --- the zoo's checks of a whole bundle


@pytest.mark.parametrize(
    ("configuration", "plans", "network"), [("2d", "ALHVRPlans", "both"), ("3d_fullres", "ResEncPlans", "a")]
)
def test_weights_load_and_export_to_torchscript(
    results: Path, configuration: str, plans: str, network: str, tmp_path: Path
):
    bundle = export_bundle(901, configuration, plans=plans, network=network, output=str(tmp_path / "bundle"))
    place = {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle)}
    metadata = str(bundle / "configs" / "metadata.json")
    monai.bundle.verify_net_in_out("network_def", meta_file=metadata, device="cpu", **place)
    script, weights = bundle / "models" / "model.ts", bundle / "models" / "model.pt"
    monai.bundle.ckpt_export("network_def", str(script), str(weights), metadata, **place)

    parser = ConfigParser(ConfigParser.load_config_file(place["config_file"]))
    parser["bundle_root"] = str(bundle)
    eager = parser.get_parsed_content("network_def").eval()
    CheckpointLoader(str(weights), {"model": eager}, map_location="cpu", strict=True)(Engine(lambda *_: None))
    theirs = [nnunet_s(find_model(901, configuration, plans=plans), member) for member in ("a", "b")]
    image = torch.rand(1, 2, *{"2d": (16, 20), "3d_fullres": (16, 8, 16)}[configuration])
    with torch.no_grad():
        expected = theirs[0](image) if network == "a" else (theirs[0](image) + theirs[1](image)) / 2
        assert torch.equal(eager(image), expected)
        assert torch.equal(torch.jit.load(script)(image), expected)


def nnunet_s(model: TrainedModel, letter: str) -> nn.Module:
    """nnU-Net's own network with a member's weights."""
    (member,) = model_members(model, letter)
    network = nnunet_network(model).eval()
    network.load_state_dict(member.weights)
    return network

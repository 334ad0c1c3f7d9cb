"""The network of an exported bundle: its entry in the config and its weights, checked against nnU-Net's network."""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures import unet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from monai.bundle import ConfigParser
from torch import nn

from alhvr_trainer.bundle.scripts import layers, networks
from alhvr_trainer.errors import InputError, one_line, shown
from alhvr_trainer.models import Member, TrainedModel, nnunet_network

NETWORK_ID = "network_def"
SCRIPTS = "scripts"
NATIVE = {unet.PlainConvUNet: "PlainConvUNet", unet.ResidualEncoderUNet: "ResidualEncoderUNet"}
BLOCKS: dict[Any, str] = {BasicBlockD: "BasicBlockD", BottleneckD: "BottleneckD"}
DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
# without $, @ and %, by which MONAI knows expressions and references
HARMLESS_TEXT = re.compile(r"[\w.,:/ -]*", re.ASCII)
HARMLESS_KEY = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class BundleNetwork:
    """What a bundle needs to build and load its network."""

    definition: dict[str, Any]
    """The entry ``network_def`` of the bundle's configs."""
    weights: dict[str, torch.Tensor]
    """The content of ``model.pt``."""
    native: bool
    """Built by the bundle's own code from torch's layers: it needs no other library, and TorchScript compiles it."""


def bundle_network(model: TrainedModel, members: Sequence[Member]) -> BundleNetwork:
    """Config entry and weights of the members' network, or of their ensemble.

    The network built from the entry alone has loaded the weights strictly and, where it is built by the bundle's own
    code, has given the same output as nnU-Net's network for a small random patch, bit by bit.

    Raises:
        InputError: the plans hold values that a config must not contain, or the network differs from nnU-Net's.
    """
    reference = nnunet_network(model).eval()
    definition, network = _native_network(model, type(reference))
    native = network is not None
    if network is None:
        definition = network_config(model, type(reference), native=False)
        network = _build(definition).eval()
    names = network.state_dict().keys()
    for member in members:
        _check_same(model, member, reference, network, bundle_weights([member], names), native)
    whole, weights = ensemble_config(definition, len(members)), bundle_weights(members, names)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in _build(whole).state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in weights.items()}:
        raise InputError(f"the weights of {len(members)} networks do not fit the bundle's ensemble")
    return BundleNetwork(whole, weights, native)


def network_config(model: TrainedModel, kind: type[nn.Module], native: bool = True) -> dict[str, Any]:
    """The config entry that builds one network as the plans describe it.

    Args:
        kind: nnU-Net's class of the network.
        native: build it with the bundle's own code, else with ``kind`` from the library that it comes from.

    Raises:
        InputError: a config must not contain a value of the plans, because MONAI evaluates expressions in configs.

    Example:
        >>> network_config(model, PlainConvUNet)    # doctest: +SKIP
        {'_target_': 'scripts.networks.PlainConvUNet', '_requires_': '@verified', 'n_stages': 6, …}
    """
    configuration = model.configuration_manager
    arguments = dict(configuration.network_arch_init_kwargs)
    arguments.pop("deep_supervision", None)
    imported = configuration.network_arch_init_kwargs_req_import
    entry = {
        key: _layer_type(key, value, native) if key in imported and value is not None else _harmless(key, value)
        for key, value in arguments.items()
    }
    entry["input_channels"] = model.num_channels
    entry["num_classes"] = model.plans_manager.get_label_manager(model.dataset_json).num_segmentation_heads
    if native:
        return {"_target_": f"{SCRIPTS}.networks.{NATIVE[kind]}", "_requires_": "@verified", **entry}
    return {"_target_": _dotted_name("network_class_name", kind), **entry, "deep_supervision": False}


def ensemble_config(definition: dict[str, Any], members: int) -> dict[str, Any]:
    """The entry of several networks of one definition: MONAI copies it for each, so that each is built apart."""
    if members == 1:
        return definition
    copies = [f"%{NETWORK_ID}#networks#0"] * (members - 1)
    return {
        "_target_": f"{SCRIPTS}.networks.Ensemble",
        "_requires_": "@verified",
        "networks": [definition, *copies],
    }


def bundle_weights(members: Sequence[Member], names: Collection[str]) -> dict[str, torch.Tensor]:
    """Copies of the members' tensors of these names; with several members as ``members.<number>.<name>``.

    nnU-Net's state dicts name most tensors several times. A tensor named twice among ``names`` is copied once.

    Raises:
        InputError: a member lacks a name.
    """
    weights = {}
    for number, member in enumerate(members):
        prefix = f"members.{number}." if len(members) > 1 else ""
        missing = [name for name in names if name not in member.weights]
        if missing:
            raise InputError(f"{member} has no weights {shown(missing[0])}: it cannot be exported")
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        for name in names:
            tensor = member.weights[name].detach()
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in copies or not tensor.numel():
                copies[place] = tensor.clone(memory_format=torch.contiguous_format)
            weights[prefix + name] = copies[place]
    return weights


def _native_network(model: TrainedModel, kind: type[nn.Module]) -> tuple[dict[str, Any], nn.Module | None]:
    """Entry and network from the bundle's own code; no network where that code does not know it."""
    if kind not in NATIVE:
        return {}, None
    definition = network_config(model, kind)
    known = {
        *inspect.signature(getattr(networks, NATIVE[kind])).parameters,
        *inspect.signature(layers.Layers).parameters,
    }
    unknown = [key for key in definition if key not in known and not key.startswith("_")]
    foreign = [value for value in definition.values() if isinstance(value, dict) and "_target_" in value]
    if unknown or foreign:
        return {}, None
    try:
        return definition, _build(definition).eval()
    except RuntimeError as error:  # MONAI's, whose cause is the error of the network
        if isinstance(error.__cause__, InputError):
            return {}, None
        raise


def _check_same(
    model: TrainedModel,
    member: Member,
    reference: nn.Module,
    network: nn.Module,
    weights: dict[str, torch.Tensor],
    native: bool,
) -> None:
    try:
        reference.load_state_dict(member.weights, strict=True)
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise InputError(f"{member} does not fit the bundle's network ({one_line(error)})") from error
    if not native:
        return
    image = _small_patch(model)
    with torch.inference_mode():
        expected, found = (torch.nan_to_num(each(image)) for each in (reference, network))
    if not torch.equal(expected, found):
        raise InputError(
            f"{member}: the bundle's network does not compute what nnU-Net's does (largest difference "
            f"{(expected - found).abs().max().item():.3g}): the checkpoint is damaged, or "
            "dynamic_network_architectures has changed"
        )


def _small_patch(model: TrainedModel) -> torch.Tensor:
    """Random numbers, as few as leave two voxels at the lowest resolution: one voxel cannot be normalized."""
    arguments = model.configuration_manager.network_arch_init_kwargs
    strides, dimensions = arguments["strides"], len(model.configuration_manager.patch_size)
    stages = [strides] * arguments["n_stages"] if isinstance(strides, int) else strides
    # a single number applies to all axes
    size = np.prod([np.broadcast_to(stride, dimensions) for stride in stages], axis=0)
    shape = [int(axis) for axis in size]
    shape[0] *= 2
    return torch.rand((1, model.num_channels, *shape), generator=torch.Generator().manual_seed(0))


def _build(definition: dict[str, Any]) -> nn.Module:
    """The network that MONAI builds from the entry."""
    text = json.dumps(definition).replace(f'"{SCRIPTS}.', f'"{networks.__package__}.')
    parser = ConfigParser({NETWORK_ID: json.loads(text), "verified": None})
    network = parser.get_parsed_content(NETWORK_ID)
    assert isinstance(network, nn.Module)
    return network


def _layer_type(key: str, value: object, native: bool) -> str | dict[str, str]:
    """How a config names a class of layers: an expression for torch's, a callable for any other."""
    located = _module_class(value)
    if located is None:
        raise InputError(f'"{key}" in the plans\' architecture is {shown(value)}, which is not a class of layers')
    if native and (block := BLOCKS.get(located)):
        return block
    name = located.__name__
    if getattr(nn, name, None) is located:
        return f"$torch.nn.{name}"
    return {"_target_": _dotted_name(key, located), "_mode_": "callable"}


def _module_class(name: object) -> type[nn.Module] | None:
    located = pydoc.locate(name) if isinstance(name, str) and DOTTED_NAME.fullmatch(name) else None
    return located if isinstance(located, type) and issubclass(located, nn.Module) else None


def _dotted_name(key: str, located: type) -> str:
    name = f"{located.__module__}.{located.__qualname__}"
    if not DOTTED_NAME.fullmatch(name) or pydoc.locate(name) is not located:
        raise InputError(f'"{key}" in the plans\' architecture is {shown(name)}, which a bundle cannot import')
    return name


def _harmless(key: str, value: Any) -> Any:
    """A value as it is, unless MONAI could take a part of it for more than text and numbers."""
    inside: Any = value
    if isinstance(value, dict):
        inside = {each: _harmless(each, entry) for each, entry in value.items()}
    elif isinstance(value, (list, tuple)):
        inside = [_harmless(key, entry) for entry in value]
    plain = isinstance(value, (dict, list, tuple, bool, int, float)) or value is None
    if not HARMLESS_KEY.fullmatch(key) or not (plain or (isinstance(value, str) and HARMLESS_TEXT.fullmatch(value))):
        raise InputError(f"{shown(key)}: {shown(value)} in the plans' architecture is not allowed in a bundle's config")
    return inside

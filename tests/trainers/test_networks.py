"""The two passes and the feature tap on networks that nnU-Net builds from plans."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from alhvr_trainer.errors import InputError
from alhvr_trainer.losses import FeaturePerturbation
from alhvr_trainer.trainers.decoders import check_unet
from alhvr_trainer.trainers.two_passes import TwoPass, check_feature_stage, default_feature_stage

ISOTROPIC = {2: [[1, 1]] + [[2, 2]] * 4, 3: [[1, 1, 1]] + [[2, 2, 2]] * 3}


def build(kind: str, dimensions: int, deep_supervision: bool, strides: list | None = None) -> torch.nn.Module:
    strides = strides or ISOTROPIC[dimensions]
    stages = len(strides)
    blocks = "n_blocks_per_stage" if kind == "ResidualEncoderUNet" else "n_conv_per_stage"
    return get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{kind}",
        {
            "n_stages": stages,
            "features_per_stage": [4 * 2**i for i in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": strides,
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        ("conv_op", "norm_op", "dropout_op", "nonlin"),
        1,
        3,
        allow_init=True,
        deep_supervision=deep_supervision,
    )


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_two_passes(kind, dimensions, deep_supervision):
    network = build(kind, dimensions, deep_supervision)
    keys = list(network.state_dict())
    data = torch.randn(3, 1, *[32] * dimensions)
    outputs, out = TwoPass(network)(data, 1, FeaturePerturbation(0))

    plain = network(data)
    torch.testing.assert_close(outputs, plain)
    assert torch.equal(out.logits, (outputs[0] if deep_supervision else outputs)[1:])
    assert out.perturbed_logits.shape == (2, 3, *[32] * dimensions)
    assert (out.perturbed_logits - out.logits).abs().max() > 1e-3  # it is perturbed
    stage = default_feature_stage(network)
    scale = 8 if dimensions == 2 else 4  # four stages reach 1/8 in the bottleneck only: the deepest stage is at 1/4
    assert stage == 0
    assert out.features.shape[2:] == (32 // scale,) * dimensions
    assert out.features.shape == out.perturbed_features.shape
    assert list(network.state_dict()) == keys and network.decoder.deep_supervision is deep_supervision

    (out.perturbed_logits.sum() + out.perturbed_features.sum()).backward()
    first = next(network.encoder.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0  # the perturbed pass reaches the encoder


def test_without_perturbation_the_second_pass_is_the_first():
    network = build("PlainConvUNet", 2, True)
    _, out = TwoPass(network)(torch.randn(4, 1, 32, 32), 2, lambda skips: skips)
    torch.testing.assert_close(out.perturbed_logits, out.logits)
    torch.testing.assert_close(out.perturbed_features, out.features)


@pytest.mark.parametrize(
    ("strides", "stage", "scale"),
    [
        ([[1, 1]] + [[2, 2]] * 6, 2, (8, 8)),  # nnU-Net's usual 2D depth: two decoder stages are coarser than 1/8
        ([[1, 1]] + [[2, 2]] * 4, 0, (8, 8)),
        ([[1, 1]] + [[2, 2]] * 2, 0, (2, 2)),  # shallower: the deepest there is
        ([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], 0, (2, 8, 8)),  # anisotropic
        ([[1, 1], [4, 4], [4, 4], [2, 2]], 0, (16, 16)),  # 1/8 is jumped over: the nearest coarser one
    ],
)
def test_feature_stage_follows_the_strides(strides, stage, scale):
    dimensions = len(strides[0])
    network = build("PlainConvUNet", dimensions, False, strides)
    assert default_feature_stage(network) == stage
    size = [64, 64] if dimensions == 2 else [16, 64, 64]
    size = [max(s, 64) if dimensions == 2 else s for s in size]
    if len(strides) == 7:
        size = [128, 128]
    _, out = TwoPass(network)(torch.randn(2, 1, *size), 1, FeaturePerturbation(0))
    assert out.features.shape[2:] == tuple(s // f for s, f in zip(size, scale, strict=True))


def test_features_of_the_up_convolution_have_both_signs():
    """LeakyReLU works in place: what the hook hears must not be what it leaves."""
    network = build("PlainConvUNet", 2, False)
    data = torch.randn(2, 1, 32, 32)
    _, out = TwoPass(network, feature_stage=1, feature_tap="up-convolution")(data, 0, lambda skips: skips)
    skips = network.encoder(data)
    joined = torch.cat((network.decoder.transpconvs[0](skips[-1]), skips[-2]), dim=1)
    torch.testing.assert_close(out.features, network.decoder.transpconvs[1](network.decoder.stages[0](joined)))
    assert 0.2 < (out.features > 0).float().mean() < 0.8


def test_feature_stage_can_be_set_and_is_checked():
    network = build("PlainConvUNet", 2, False)
    _, out = TwoPass(network, feature_stage=3)(torch.randn(2, 1, 32, 32), 1, FeaturePerturbation(0))
    assert out.features.shape == (1, 4, 32, 32)
    check_feature_stage(network, 3)
    with pytest.raises(InputError, match=r'"alhvr.feature_stage" is 4, but the decoder has stages 0 \(deepest\) to 3'):
        check_feature_stage(network, 4)
    with pytest.raises(InputError, match="Linear has no encoder and staged decoder"):
        check_unet(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_compiled_passes_are_the_same_without_graph_breaks(kind, dimensions):
    network = build(kind, dimensions, True)
    eager = TwoPass(network)
    compiled = TwoPass(network, compiled=True, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for run in (compiled, compiled, eager):  # the second call finds the graphs of the first
        network.zero_grad()
        outputs, passes = run(torch.ones(3, 1, *[32] * dimensions), 1, FeaturePerturbation(0))
        tensors = [*outputs, *passes]
        torch.stack([x.square().sum() for x in tensors]).sum().backward()
        found.append([*tensors, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    for first, second, expected in zip(*found, strict=True):
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # encoder, decoder of each pass


def test_other_calls_of_the_network_are_not_listened_to():
    network = build("PlainConvUNet", 2, True)
    run = TwoPass(network)
    run(torch.randn(2, 1, 32, 32), 1, FeaturePerturbation(0))
    network(torch.randn(1, 1, 32, 32))
    assert run._decode._heard is None  # a feature map kept here would stay in memory

"""MC-Net: the mutual consistency by hand, its gradients, and the auxiliary decoder against nnU-Net's own."""

from __future__ import annotations

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.functional import interpolate

from alhvr_trainer.losses.mcnet import mutual_consistency
from alhvr_trainer.trainers.mcnet import LinearUpsampling
from alhvr_trainer.trainers.two_decoders import make_auxiliary

pytestmark = pytest.mark.any_nnunet


def logits(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def small_unet(dimensions: int = 2, deep_supervision: bool = True) -> PlainConvUNet:
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    strides = [1, 2, 2] if dimensions == 2 else [1, (1, 2, 2), 2]
    return PlainConvUNet(
        1, 3, [4, 6, 8], convolution, 3, strides, 1, 3, 1, True, norm, {"affine": True}, None, None,
        nn.LeakyReLU, None, deep_supervision,
    )  # fmt: skip


def test_by_hand():
    """P = (1/2, 1/2) and (3/4, 1/4), Q = (2/3, 1/3) and (1/2, 1/2); T = 1/2 squares before it normalizes."""
    p = torch.tensor([[[1.0, 3.0], [1.0, 1.0]]], dtype=torch.float64).log()
    q = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]], dtype=torch.float64).log()
    # sharpened Q: 4/5, 1/5 and 1/2, 1/2; squared differences 9/100 twice, and 1/16 twice
    assert mutual_consistency(p, q, temperature=0.5).item() == pytest.approx((9 / 100 + 1 / 16) / 2)
    # the other way: sharpened P 1/2, 1/2 and 9/10, 1/10; differences 1/36 twice, and 16/100 twice
    assert mutual_consistency(q, p, temperature=0.5).item() == pytest.approx((1 / 36 + 16 / 100) / 2)
    first = torch.tensor([[True, False]])
    assert mutual_consistency(p, q, temperature=0.5, valid=first).item() == pytest.approx(9 / 100)


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 2, 4, 3, 5)])
def test_limits(shape):
    p, q = logits(*shape), logits(*shape, seed=4)
    soft = mutual_consistency(p, q, temperature=1.0)  # T = 1 leaves the pseudo-label as it is
    torch.testing.assert_close(soft, nn.functional.mse_loss(p.softmax(1), q.softmax(1)))
    # towards T = 0 each class is rounded by itself, which is the one-hot label where the largest is above 1/2
    hard = mutual_consistency(p, 40 * q, temperature=0.02)
    one_hot = nn.functional.one_hot(q.argmax(1), shape[1]).movedim(-1, 1).double()
    torch.testing.assert_close(hard, nn.functional.mse_loss(p.softmax(1), one_hot), rtol=2e-2, atol=0)


def test_gradient_flows_through_the_pseudo_label_unless_detached():
    p, q = logits(2, 3, 8), logits(2, 3, 8, seed=4)
    assert torch.autograd.gradcheck(lambda x, y: mutual_consistency(x, y, temperature=0.5), (p, q))
    of_p, of_q = torch.autograd.grad(mutual_consistency(p, q), (p, q))
    assert of_p.any() and of_q.any()
    detached_p, detached_q = torch.autograd.grad(mutual_consistency(p, q, detach=True), (p, q), allow_unused=True)
    torch.testing.assert_close(detached_p, of_p)
    assert detached_q is None


def test_sure_predictions_keep_gradients_finite():
    p, q = 1e4 * logits(2, 3, 8).detach(), 1e4 * logits(2, 3, 8, seed=4).detach()
    p, q = p.float().requires_grad_(), q.float().requires_grad_()
    value = mutual_consistency(p, q)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, (p, q)))
    assert value > 0  # sure of different labels


def test_padding_counts_nowhere():
    p, q = logits(2, 3, 9, 7), logits(2, 3, 9, 7, seed=4)
    valid = torch.zeros(2, 9, 7, dtype=torch.bool)
    valid[:, 2:, :5] = True
    padded = mutual_consistency(p, q, valid=valid)
    torch.testing.assert_close(padded, mutual_consistency(p[:, :, 2:, :5], q[:, :, 2:, :5]))
    for gradient in torch.autograd.grad(padded, (p, q)):
        assert not gradient[~valid.unsqueeze(1).expand_as(p)].any() and gradient.any()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_auxiliary_decoder_stands_in_for_nnunets(dimensions, deep_supervision):
    network, spare = (small_unet(dimensions, deep_supervision) for _ in range(2))
    plain = {name: parameter.shape for name, parameter in spare.decoder.named_parameters()}
    auxiliary = make_auxiliary(spare.decoder, LinearUpsampling)
    skips = network.encoder(torch.randn(2, 1, *(8, 16, 16)[-dimensions:]))
    ours, theirs = auxiliary(skips), network.decoder(skips)
    if not deep_supervision:
        ours, theirs = [ours], [theirs]
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    names = {name: parameter.shape for name, parameter in auxiliary.named_parameters()}
    assert not any(name.startswith("encoder") for name in names)
    kept = {name: shape for name, shape in plain.items() if name.startswith(("stages", "seg_layers"))}
    assert kept.items() <= names.items()
    assert {name for name in names if name not in kept} == {
        f"transpconvs.{i}.convolution.{kind}" for i in range(2) for kind in ("weight", "bias")
    }
    sum(x.sum() for x in ours).backward()
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())  # one encoder for both
    assert all(parameter.grad is None for parameter in network.decoder.stages.parameters())


def test_linear_upsampling_interpolates():
    """With the convolution set to the identity only the interpolation is left; a ramp stays one, corner to corner."""
    for transposed in (nn.ConvTranspose2d(1, 1, 2, 2), nn.ConvTranspose3d(1, 1, (1, 2, 2), (1, 2, 2))):
        layer = LinearUpsampling(transposed)
        nn.init.dirac_(layer.convolution.weight)
        nn.init.zeros_(layer.convolution.bias)
        ramp = torch.arange(4.0).expand(1, 1, *[4] * (transposed.weight.ndim - 2))
        upsampled = layer(ramp)
        expected = interpolate(ramp, scale_factor=layer.scale, mode=layer.mode, align_corners=True)
        torch.testing.assert_close(upsampled, expected)
        torch.testing.assert_close(upsampled.flatten()[:8], torch.linspace(0, 3, 8))

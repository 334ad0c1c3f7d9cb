"""MLRP inside nnU-Net: its two decoders, the features that it taps, and what its terms train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_builders import change_settings
from test_networks import build
from test_rivals import unsupervised_values
from tiny_training import make_trainer
from torch import nn

from alhvr_trainer.errors import InputError
from alhvr_trainer.trainers.decoders import TappedDecoder
from alhvr_trainer.trainers.mlrp import MLRPTrainer, nearest_upsampling
from alhvr_trainer.trainers.partners import unwrapped
from alhvr_trainer.trainers.samples import predictions, take_apart
from alhvr_trainer.trainers.two_decoders import make_auxiliary

pytest_plugins = ["planned_dataset"]
pytestmark = pytest.mark.any_nnunet  # test_rivals.py trains this method with the oldest release


def ready(root: Path) -> tuple[Any, dict[str, Any]]:
    """A trainer and a batch."""
    trainer: Any = make_trainer(root, MLRPTrainer)
    trainer.initialize()
    return trainer, next(trainer.get_dataloaders()[0])


def test_nearest_upsampling_repeats_voxels():
    """With the convolution set to the identity only the repetition is left."""
    for transposed in (nn.ConvTranspose2d(1, 1, 2, 2), nn.ConvTranspose3d(1, 1, (1, 2, 2), (1, 2, 2))):
        layer = nearest_upsampling(transposed)
        nn.init.dirac_(layer[1].weight)
        nn.init.zeros_(layer[1].bias)
        x = torch.rand(2, 1, *[3] * (transposed.weight.ndim - 2))
        expected = x
        for axis, stride in enumerate(transposed.stride, start=2):
            expected = expected.repeat_interleave(stride, dim=axis)
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_both_decoders_give_logits_and_what_the_last_segmentation_layer_reads(kind, dimensions, deep_supervision):
    network, spare = (build(kind, dimensions, deep_supervision) for _ in range(2))
    auxiliary = make_auxiliary(spare.decoder, nearest_upsampling)
    skips = network.encoder(torch.randn(2, 1, *[32] * dimensions))
    for decoder in (network.decoder, auxiliary):
        outputs, features = TappedDecoder(decoder, -1)(skips)
        full = outputs[0] if deep_supervision else outputs
        assert full.shape == (2, 3, *[32] * dimensions)
        torch.testing.assert_close(decoder.seg_layers[-1](features), full)


def test_the_terms_get_the_features_of_all_samples_without_a_gradient(tiny: Path):
    trainer, batch = ready(tiny)
    samples = take_apart(batch, trainer.labeled_batch_size, trainer.device)
    forward = trainer.forward(samples)
    decoders = {"a": unwrapped(trainer.network).decoder, "auxiliary": trainer.partners["auxiliary"]}
    for name, decoder in decoders.items():
        features = forward.maps[name]
        assert not features.requires_grad and len(features) == len(samples.data)
        torch.testing.assert_close(decoder.seg_layers[-1](features), forward.logits[name])
    assert not torch.equal(forward.maps["a"], forward.maps["auxiliary"])


def test_each_term_trains_the_encoder_and_one_decoder(tiny: Path):
    trainer, batch = ready(tiny)
    values = unsupervised_values(trainer, batch)
    network = unwrapped(trainer.network)
    parts = {"encoder": network.encoder, "a": network.decoder.stages, "auxiliary": trainer.partners["auxiliary"].stages}
    for term, decoder in {"mutual_a": "a", "mutual_auxiliary": "auxiliary"}.items():
        trainer.optimizer.zero_grad()
        values[term].backward(retain_graph=True)
        reached = {
            name for name, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }
        assert reached == {"encoder", decoder}


def test_labeled_samples_teach_as_unlabeled_ones_do(tiny: Path):
    trainer, batch = ready(tiny)
    samples = take_apart(batch, trainer.labeled_batch_size, trainer.device)
    found = predictions(trainer.forward(samples), samples, {}, False, None)
    gradient = torch.autograd.grad(trainer.unsupervised(found, samples)["mutual_a"], found.logits["a"])[0]
    assert all(of_sample.any() for of_sample in gradient)
    assert not gradient[~samples.valid.unsqueeze(1).expand_as(gradient)].any()


def test_it_is_one_model_whose_decoders_share_what_was_pretrained(tiny: Path):
    trainer, _ = ready(tiny)
    network, auxiliary = unwrapped(trainer.network), trainer.partners["auxiliary"]
    assert list(trainer.optimizers) == ["a"]
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for part in (network, auxiliary) for p in part.parameters()}
    before = {key: value.clone() for key, value in auxiliary.state_dict().items()}
    network.load_state_dict({key: torch.full_like(value, 0.1) for key, value in network.state_dict().items()})
    for key, value in auxiliary.state_dict().items():
        assert torch.equal(value, torch.full_like(value, 0.1) if key.startswith("stages.") else before[key]), key


def test_the_weight_is_the_authors_unless_set(tiny: Path):
    change_settings(tiny, num_epochs=10)  # 20 iterations, 8 of them in the ramp
    trainer, _ = ready(tiny)
    trainer.step = 7
    assert 0 < trainer.weight() < 1
    trainer.step = 8
    assert trainer.weight() == 1.0
    change_settings(tiny, consistency_weight=0.25, ramp_fraction=0.0)
    assert ready(tiny)[0].weight() == 0.25


def test_a_network_without_decoder_stages_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    def one_layer(plans_manager, configuration_manager, num_input_channels, num_output_channels, *_: Any) -> nn.Module:
        return nn.Conv2d(num_input_channels, num_output_channels, 1)

    trainer: Any = make_trainer(tiny, MLRPTrainer)
    monkeypatch.setattr(trainer, "build_network_architecture", one_layer)
    monkeypatch.setattr(trainer, "set_deep_supervision_enabled", lambda _: None)
    with pytest.raises(InputError, match="Conv2d has no encoder and staged decoder"):
        trainer.initialize()

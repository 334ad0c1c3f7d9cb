"""The predicted peak memory of a training step, against what steps took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alhvr_trainer.losses import ALHVRLoss, FeaturePerturbation
from alhvr_trainer.losses.interpolation import axis_matrix
from alhvr_trainer.planning.memory import PeakBytes, network_of, output_shapes, predicted_peak, typical_architecture
from alhvr_trainer.trainers.two_passes import TwoPass

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
ON_H200 = [  # MiB, float16, eager, measured with earlier versions: patch, L, U, co-training, peak
    ((256, 224), 8, 0, False, 872),
    ((256, 224), 16, 0, False, 1541),
    ((256, 224), 8, 8, True, 3636),
    ((16, 160, 160), 2, 0, False, 1478),
    ((16, 160, 160), 4, 0, False, 2521),
    ((16, 160, 160), 2, 2, True, 5537),
]


def acdc_like(dimensions: int) -> dict:
    """nnU-Net's plans for ACDC."""
    made = typical_architecture(dimensions, residual=False)
    if dimensions == 2:
        features, strides = [32, 64, 128, 256, 512, 512, 512], [[1, 1], *[[2, 2]] * 5, [2, 1]]
    else:
        features = [32, 64, 128, 256, 320, 320]
        strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    stages = len(features)
    made["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=features,
        strides=strides,
        kernel_sizes=[[3] * dimensions] * stages,
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    return made


@pytest.mark.parametrize(("patch", "labeled", "unlabeled", "co_training", "mebibytes"), ON_H200)
def test_what_a_gpu_took_is_predicted(patch, labeled, unlabeled, co_training, mebibytes):
    found = predicted_peak(acdc_like(len(patch)), patch, 1, 4, labeled, unlabeled, co_training) / 2**20
    assert found == pytest.approx(mebibytes, rel=0.15)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("patch", [(64, 64), (32, 32, 32)])
def test_what_a_real_step_holds_is_predicted(patch, residual):
    """Counted the same way, in a real step of the trainer's own parts."""
    architecture = typical_architecture(len(patch), residual)
    networks = [network_of(architecture, 1, 3) for _ in range(2)]
    runs = [TwoPass(network) for network in networks]
    perturbations = [FeaturePerturbation(seed) for seed in (0, 1)]
    optimizers = [torch.optim.SGD(n.parameters(), 0.01, momentum=0.99, nesterov=True) for n in networks]
    data = torch.randn(2, 1, *patch)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        found = [run(data, 1, p) for run, p in zip(runs, perturbations, strict=True)]
        total = sum(output[:1].square().mean() for outputs, _ in found for output in outputs)
        total = total + ALHVRLoss()(*(passes for _, passes in found))
        del found
        total.backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    momentum = [state["momentum_buffer"] for each in optimizers for state in each.state.values()]
    with PeakBytes([*(p for n in networks for p in n.parameters()), *momentum, data]) as counted:
        step()
    found = predicted_peak(architecture, patch, 1, 3, 1, 1, half_precision=False)
    assert found == pytest.approx(counted.peak, rel=0.15)


def test_it_grows_with_everything():
    def peak(patch=(64, 64), classes=3, labeled=2, unlabeled=2, **options):
        return predicted_peak(typical_architecture(2, False), patch, 1, classes, labeled, unlabeled, **options)

    least = peak()
    for more in (peak((96, 64)), peak(classes=9), peak(labeled=3), peak(unlabeled=3), peak(half_precision=False)):
        assert more > least
    assert peak(labeled=4, co_training=False) < least


def test_the_dry_run_leaves_no_fake_tensor_behind():
    predicted_peak(typical_architecture(2, False), (32, 32), 1, 2, 1, 1)
    matrix = axis_matrix(4, 32, torch.float32, torch.device("cpu"))
    assert type(matrix) is torch.Tensor and matrix.sum().item() == pytest.approx(32)


def test_outputs_of_deep_supervision_follow_the_strides():
    assert output_shapes(acdc_like(3), (16, 160, 160)) == [
        [16, 160, 160],
        [16, 80, 80],
        [16, 40, 40],
        [8, 20, 20],
        [4, 10, 10],
    ]


def test_measured_peaks_are_within_the_promise():
    """Of benchmarks/memory.py."""
    cases = json.loads((RESULTS / "memory.json").read_text())["cases"]
    assert len(cases) >= 8
    assert all(abs(case["ratio"] - 1) <= 0.15 for case in cases.values())

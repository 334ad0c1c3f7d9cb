"""The folder ``losses``: torch alone, wherever it is copied, and each method's loss in MONAI's form."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alhvr_trainer import losses
from alhvr_trainer.losses.cutmix import pseudo_label_loss
from alhvr_trainer.losses.evil import certain_cross_entropy_term, evidential_term
from alhvr_trainer.losses.fixmatch import confident_labels, pseudo_label_term
from alhvr_trainer.losses.mcf import correction_term
from alhvr_trainer.losses.mcnet import mutual_consistency
from alhvr_trainer.losses.mean_teacher import consistency_term
from alhvr_trainer.losses.uamt import certain_consistency_term

pytestmark = pytest.mark.any_nnunet


def logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def passes(seed: int) -> losses.TwoPasses:
    features = [torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(seed + i)) for i in (10, 20)]
    return losses.TwoPasses(logits(seed), logits(seed + 1), *features)


def test_the_folder_alone_works_elsewhere(tmp_path: Path):
    shutil.copytree(Path(losses.__file__).parent, tmp_path / "borrowed")
    code = (
        "import sys, torch; before = set(sys.modules); import borrowed; a, b = torch.randn(2, 2, 3, 8, 8);"
        "assert borrowed.CPSLoss()(a, b) > 0;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "assert new <= {'borrowed', 'torch'}, new"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize("sigmoid", [False, True])
def test_alhvr_loss(sigmoid: bool):
    a, b = passes(0), passes(5)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[0, :3] = False
    options = {"threshold_proportion": 0.6, "prototype_scale": 3.0}
    function = losses.alhvr_channel_terms if sigmoid else losses.alhvr_terms
    found = losses.ALHVRLoss(sigmoid, **options)(a, b, valid)
    assert found > 0
    assert torch.equal(found, function(*a, *b, valid=valid, **options).total)


def test_the_rivals_losses():
    a, b, valid = logits(0).requires_grad_(), logits(1), torch.rand(2, 8, 8) > 0.3
    terms = losses.cps_terms(a, b, valid, regions=("omega3",))
    probabilities = torch.softmax(4 * b, dim=1)
    certain = (torch.special.entr(probabilities).sum(dim=1) < losses.uamt.entropy_threshold(0.2, 3)) & valid
    expected = {
        losses.CPSLoss(regions=("omega3",)): terms.a + terms.b,
        losses.MeanTeacherLoss(): consistency_term(a, b, valid),
        losses.FixMatchLoss(0.5): pseudo_label_term(a, *confident_labels(b, 0.5), valid),
        losses.EVILLoss(0.6): evidential_term(a, b, 1.0, valid) + certain_cross_entropy_term(b, a, 0.6, valid),
        losses.MCNetLoss(0.3): mutual_consistency(a, b, 0.3, valid=valid) + mutual_consistency(b, a, 0.3, valid=valid),
    }
    for loss, value in expected.items():
        assert value > 0 and torch.equal(loss(a, b, valid), value), loss
    labels = b.argmax(dim=1)
    found = losses.CutMixLoss()(a, labels, valid)
    assert found > 0 and torch.equal(found, pseudo_label_loss(a, labels, valid))
    # of MCF: the second network is right, and teaches
    found = losses.MCFLoss(0.3)(a, b, a, b, labels, valid)
    assert found > 0 and torch.equal(found, correction_term(a, b, torch.tensor(False), 0.3, valid))
    found = losses.UAMTLoss()(a, b, probabilities, 0.2, valid)
    assert found > 0 and torch.equal(found, certain_consistency_term(a, b, certain))
    found.backward()
    assert a.grad is not None and a.grad.abs().sum() > 0

"""The terms against a literal full-resolution reading of the formulas, their edge cases, and their switches."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from literal_method import SHAPES, TERMS, draw, literal_terms
from torch.nn.functional import cross_entropy, interpolate

from alhvr_trainer.losses import FeaturePerturbation, alhvr_channel_terms, alhvr_terms, consistency_weight
from alhvr_trainer.losses.interpolation import upsample, upsample_transposed, upsampled_squared_norm
from alhvr_trainer.losses.perturbation import feature_dropout, feature_noise
from alhvr_trainer.losses.prototypes import cgcpcl_terms, class_prototypes, prototype_similarity
from alhvr_trainer.losses.regions import confidence_threshold, split_regions
from alhvr_trainer.losses.teaching import competing_teacher, dtct_term, sharpen

pytestmark = pytest.mark.any_nnunet


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_each_term_and_its_gradients_equal_the_literal_formula(kind, term):
    inputs = draw(kind)
    ours, literal = getattr(alhvr_terms(*inputs), term), literal_terms(inputs)[term]
    assert ours.item() == pytest.approx(literal.item(), rel=1e-10)
    assert ours.item() > 0.01  # neither zero nor of the wrong sign
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, allow_unused=True),
        torch.autograd.grad(literal, inputs, allow_unused=True),
        strict=True,
    ):
        expected = torch.zeros(()) if theirs is None else theirs
        torch.testing.assert_close(torch.zeros(()) if mine is None else mine, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", SHAPES)
def test_regions_equal_the_literal_formula(kind):
    inputs = draw(kind)
    terms, literal = alhvr_terms(*inputs), literal_terms(inputs)
    assert terms.gamma.item() == pytest.approx(literal["gamma"].item(), rel=1e-12)
    for name in ("omega2a", "omega2b", "omega3"):
        assert torch.equal(getattr(terms, name), literal[name])
        assert literal[name].any()
    everything = terms.omega1.int() + terms.omega2a.int() + terms.omega2b.int() + terms.omega3.int()
    assert (everything == 1).all()  # random confidences never tie with gamma


def test_prototypes_and_masks_belong_to_the_right_network():
    inputs = draw()
    z_a1, _, f_a1, f_a2, z_b1, _, f_b1, _ = inputs
    terms = alhvr_terms(*inputs)
    shape = z_a1.shape[2:]
    y_a, y_b = z_a1.argmax(1), z_b1.argmax(1)
    own = prototype_similarity(f_a2, class_prototypes(f_a1, y_a, 4), shape)
    other = prototype_similarity(f_a2, class_prototypes(f_b1, y_b, 4), shape)
    voxels = y_a.numel()
    assert terms.ce_a.item() == pytest.approx(cgcpcl_terms(other, y_b, terms.omega2a, voxels)[0].item())
    wrong = {
        "own prototypes": cgcpcl_terms(own, y_b, terms.omega2a, voxels),
        "own pseudo-labels": cgcpcl_terms(other, y_a, terms.omega2a, voxels),
        "the other's mask": cgcpcl_terms(other, y_b, terms.omega2b, voxels),
    }
    for mistake, (ce, _) in wrong.items():
        assert abs(ce.item() - terms.ce_a.item()) > 1e-4, mistake


def test_descending_the_dtct_term_brings_an_undecided_student_to_the_teacher():
    inputs = draw()
    student = torch.zeros_like(inputs[1], requires_grad=True)
    mask = torch.ones(3, 16, 12, dtype=torch.bool)
    teacher = competing_teacher(inputs[0].softmax(1), inputs[4].softmax(1), 0.1, detach=True)
    optimizer = torch.optim.Adam([student], lr=0.3)
    for _ in range(50):
        optimizer.zero_grad()
        dtct_term(inputs[0].softmax(1).detach(), student.softmax(1), teacher, mask, mask.numel()).backward()
        optimizer.step()
    decided = teacher.amax(1) > 0.9
    assert decided.float().mean() > 0.5
    assert torch.equal(student.argmax(1)[decided], teacher.argmax(1)[decided])
    assert student.softmax(1).amax(1)[decided].mean() > 0.9  # entropy went down, too


def test_the_more_confident_clean_prediction_teaches_voxel_by_voxel():
    a = torch.tensor([[[0.9, 0.6]], [[0.1, 0.4]]]).movedim(0, 1)  # (1, 2, 2): confident at voxel 0
    b = torch.tensor([[[0.3, 0.2]], [[0.7, 0.8]]]).movedim(0, 1)  # confident at voxel 1
    teacher = competing_teacher(a, b, temperature=1.0)
    torch.testing.assert_close(teacher, torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]))


def test_detached_teacher_stops_the_gradient_of_the_clean_pass():
    def gradient(detach: bool) -> torch.Tensor:
        a = torch.tensor([[[0.9]], [[0.1]]]).movedim(0, 1).double().requires_grad_()
        b = torch.tensor([[[0.4]], [[0.6]]]).movedim(0, 1).double().requires_grad_()
        teacher = competing_teacher(a, b, 0.5, detach)
        loss = dtct_term(b.detach(), b, teacher, torch.ones(1, 1), 1)
        return torch.autograd.grad(loss, a, allow_unused=True)[0]

    assert gradient(detach=False).abs().sum() > 0
    assert gradient(detach=True) is None


def test_official_broadcast_weights_across_samples():
    similarity = torch.zeros(2, 3, 4)
    similarity[1, 0] = 5.0
    labels = torch.zeros(2, 4, dtype=torch.long)
    mask = torch.tensor([[True] * 4, [False] * 4])
    paper, _ = cgcpcl_terms(similarity, labels, mask, 8)
    official, _ = cgcpcl_terms(similarity, labels, mask, 8, official_broadcast=True)
    ce = [cross_entropy(similarity[i].T, labels[i]).item() for i in (0, 1)]
    assert paper.item() == pytest.approx(ce[0])
    assert official.item() == pytest.approx(ce[0] + ce[1])


# --- cheap forms against torch's own ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "large"), [((4, 3), (16, 12)), ((3, 5), (17, 30)), ((2, 3, 4), (8, 12, 10)), ((1, 2), (5, 2))]
)
def test_upsampling_norm_and_adjoint(small, large):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 7, *small, generator=generator, dtype=torch.float64)
    full = interpolate(features, large, mode="bilinear" if len(small) == 2 else "trilinear", align_corners=False)
    torch.testing.assert_close(upsample(features, large), full)
    torch.testing.assert_close(upsampled_squared_norm(features, large), (full**2).sum(1))
    other = torch.randn(full.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((full * other).sum(), (features * upsample_transposed(other, small)).sum())


def test_sharpening_gradient_is_autograds():
    t = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sharpen(x, 0.1), (t,))
    assert torch.autograd.gradcheck(lambda x: sharpen(x, 0.3), (t,))


def test_no_full_resolution_feature_map_is_built():
    """With K = 64 features at 1/8, a full-resolution map would be the largest tensor by far."""
    sizes: list[int] = []
    inputs = [torch.randn(2, 3, 64, 64, requires_grad=True) for _ in range(4)]
    features = [torch.randn(2, 64, 8, 8, requires_grad=True) for _ in range(4)]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor))
            return out

    with Watch():
        alhvr_terms(*inputs[:2], *features[:2], *inputs[2:], *features[2:]).total.backward()
    assert max(sizes) <= 4 * 2 * 3 * 64 * 64 < 2 * 64 * 64 * 64


def test_little_is_kept_for_the_backward_pass():
    """Four probabilities, the teacher before and after sharpening, and two maps per network for CG-CPCL."""
    inputs = [torch.randn(2, 8, 64, 64, requires_grad=True) for _ in range(4)]
    features = [torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(4)]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = alhvr_terms(*inputs[:2], *features[:2], *inputs[2:], *features[2:])
    class_map = inputs[0].numel() * inputs[0].element_size()
    assert torch.isfinite(terms.total) and sum(kept.values()) < 14 * class_map  # ten maps, and many without classes


# --- edge cases ---------------------------------------------------------------------------------------------------


def assert_finite(terms, inputs) -> None:
    for name in (*TERMS, "gamma"):
        assert torch.isfinite(getattr(terms, name)), name
    for tensor, gradient in zip(inputs, torch.autograd.grad(terms.total, inputs, allow_unused=True), strict=True):
        assert gradient is None or torch.isfinite(gradient).all(), tuple(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_confidences_leave_no_voxel_below_gamma(dtype):
    inputs = draw(dtype=dtype)
    with torch.no_grad():
        for i in (1, 5):
            inputs[i].fill_(0.1)
    terms = alhvr_terms(*inputs)
    assert terms.omega1.all()
    assert not (terms.omega2a.any() or terms.omega2b.any() or terms.omega3.any())
    assert all(getattr(terms, name).item() == 0.0 for name in TERMS)  # empty regions: exactly 0 ...
    gradients = torch.autograd.grad(terms.total, inputs, allow_unused=True)
    assert all(g is None or (g == 0).all() for g in gradients)  # ... with zero gradient


def test_one_empty_region_leaves_the_others_alone():
    inputs = draw()
    with torch.no_grad():
        inputs[1].copy_(50.0 * torch.nn.functional.one_hot(inputs[1].argmax(1), 4).movedim(-1, 1))  # a is never poor
    terms = alhvr_terms(*inputs, threshold_proportion=0.5)
    assert not terms.omega2a.any()
    assert terms.ce_a.item() == 0.0 and terms.cos_a.item() == 0.0
    assert terms.omega2b.any() and terms.ce_b.item() > 0
    assert_finite(terms, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_absent_from_the_pseudo_labels(dtype):
    inputs = draw(dtype=dtype)
    with torch.no_grad():
        for i in (0, 4):
            inputs[i][:, 2] = -50.0
    prototypes = class_prototypes(inputs[2], inputs[0].argmax(1), 4)
    assert (prototypes[2] == 0).all() and (prototypes[0] != 0).any()
    similarity = prototype_similarity(inputs[7], prototypes, (16, 12))
    assert (similarity[:, 2] == 0).all()
    assert_finite(alhvr_terms(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_teacher_of_exactly_zero_and_one(dtype):
    t = torch.tensor([0.0, 1.0, 1e-30, 1 - 1e-7, 0.5], dtype=dtype, requires_grad=True)
    s = sharpen(t, 0.1)
    torch.testing.assert_close(s, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5], dtype=dtype), atol=1e-6, rtol=0)
    assert torch.isfinite(torch.autograd.grad(s.sum(), t)[0]).all()
    inputs = draw(dtype=dtype)
    with torch.no_grad():
        for i in (0, 4):
            inputs[i].mul_(1e4)  # softmax is exactly 0 and 1
    assert_finite(alhvr_terms(*inputs), inputs)


def test_k_is_at_least_one():
    assert confidence_threshold(torch.tensor([0.9, 0.4]), 0.01).item() == pytest.approx(0.4)
    inputs = [torch.randn(1, 2, 1, 1, requires_grad=True) for _ in range(8)]
    assert_finite(alhvr_terms(*inputs, threshold_proportion=0.01), inputs)


def test_zero_features_are_finite():
    inputs = draw(dtype=torch.float32)
    with torch.no_grad():
        for i in (2, 3, 6, 7):
            inputs[i].zero_()
    assert_finite(alhvr_terms(*inputs), inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_logit_is_not_hidden(value):
    """NaN or Inf must surface in gamma, on which the trainer stops, whatever modules are on."""
    for which in (0, 1, 4, 5):
        inputs = draw()
        with torch.no_grad():
            inputs[which][0, 0, 3, 3] = value
        for switches in ({}, {"dtct_regions": ()}, {"cgcpcl_regions": ()}):
            assert torch.isnan(alhvr_terms(*inputs, **switches).gamma)


# --- padding ------------------------------------------------------------------------------------------------------


def test_padding_enters_nothing():
    """Whatever stands in the padding changes no number; each sample is padded by another width."""
    inputs = draw()
    valid = torch.ones(3, 16, 12, dtype=torch.bool)
    valid[0, 12:], valid[1, :, 9:] = False, False
    changed = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        for i in (0, 1, 4, 5):
            changed[i].masked_fill_(~valid.unsqueeze(1), 7.0)
            changed[i][:, 0] += 3.0 * ~valid
    terms, same = alhvr_terms(*inputs, valid=valid), alhvr_terms(*changed, valid=valid)
    for name in (*TERMS, "gamma", "omega1", "omega2a", "omega2b", "omega3"):
        torch.testing.assert_close(getattr(terms, name), getattr(same, name))
    assert alhvr_terms(*inputs).gamma != terms.gamma
    gradients = torch.autograd.grad(terms.total, (inputs[0], inputs[1]))
    assert all((g.movedim(1, -1)[~valid] == 0).all() and (g != 0).any() for g in gradients)


def test_full_validity_changes_nothing():
    inputs = draw("3d")
    terms, plain = alhvr_terms(*inputs, valid=torch.ones(2, 8, 12, 10, dtype=torch.bool)), alhvr_terms(*inputs)
    for name in TERMS:
        torch.testing.assert_close(getattr(terms, name), getattr(plain, name))


def test_everything_invalid_is_zero():
    inputs = draw()
    terms = alhvr_terms(*inputs, valid=torch.zeros(3, 16, 12, dtype=torch.bool))
    assert terms.total.item() == 0.0
    assert_finite(terms, inputs)


# --- switches -----------------------------------------------------------------------------------------------------


def test_modules_can_be_switched_off():
    inputs = draw()
    both = alhvr_terms(*inputs)
    no_dtct = alhvr_terms(*inputs, dtct_regions=())
    no_cgcpcl = alhvr_terms(*inputs, cgcpcl_regions=())
    assert no_dtct.dtct_a == no_dtct.dtct_b == 0 and no_dtct.ce_a == both.ce_a
    assert no_cgcpcl.ce_a == no_cgcpcl.cos_b == 0 and no_cgcpcl.dtct_a == both.dtct_a
    assert (no_dtct.total + no_cgcpcl.total).item() == pytest.approx(both.total.item())
    assert alhvr_terms(*inputs, dtct_regions=(), cgcpcl_regions=()).total == 0


def test_regions_can_be_chosen():
    inputs = draw()
    p = [x.softmax(1) for x in inputs]
    terms = alhvr_terms(*inputs, dtct_regions=("omega2", "omega3"), cgcpcl_regions=("omega1",))
    teacher = competing_teacher(p[0], p[4], 0.1)
    expected = dtct_term(p[0], p[1], teacher, terms.omega2a | terms.omega3, terms.omega1.numel())
    assert terms.dtct_a.item() == pytest.approx(expected.item())
    similarity = prototype_similarity(inputs[3], class_prototypes(inputs[6], inputs[4].argmax(1), 4), (16, 12))
    ce, _ = cgcpcl_terms(similarity, inputs[4].argmax(1), terms.omega1, terms.omega1.numel())
    assert terms.ce_a.item() == pytest.approx(ce.item())


def test_prototype_scale_takes_effect():
    inputs = draw()
    sharper = alhvr_terms(*inputs, prototype_scale=10.0)
    assert sharper.ce_a.item() != pytest.approx(alhvr_terms(*inputs).ce_a.item(), rel=0.1)


def test_shapes_that_do_not_fit_are_named():
    inputs = draw()
    with pytest.raises(ValueError, match=r"perturbed logits of both networks must have one shape.*\(3, 4, 16, 12\)"):
        alhvr_terms(inputs[0][:2], *inputs[1:])
    with pytest.raises(ValueError, match="perturbed features of both networks must have one shape"):
        alhvr_terms(*inputs[:2], inputs[2][:, :2], *inputs[3:])
    shorter = [x[:2] if i in (2, 3, 6, 7) else x for i, x in enumerate(inputs)]
    with pytest.raises(ValueError, match=r"features \(2, .* do not fit logits \(3, 4, 16, 12\)"):
        alhvr_terms(*shorter)
    with pytest.raises(ValueError, match="valid must be"):
        alhvr_terms(*inputs, valid=torch.ones(3, 16, 13, dtype=torch.bool))


def test_gamma_and_masks_carry_no_gradient():
    inputs = draw()
    regions = split_regions(inputs[1].softmax(1), inputs[5].softmax(1), 0.8)
    assert not regions.gamma.requires_grad


# --- perturbation and ramp-up -------------------------------------------------------------------------------------


def test_noise_is_multiplicative_bounded_and_shared_by_the_samples():
    x = torch.ones(4, 3, 8, 8)
    noisy = feature_noise(x, torch.Generator().manual_seed(0))
    assert (noisy - x).abs().max() <= 0.3 and (noisy - x).abs().max() > 0.25
    assert torch.equal(noisy[0], noisy[3])
    assert (feature_noise(torch.zeros(1, 3, 8, 8)) == 0).all()


def test_dropout_removes_the_most_active_region_of_all_channels():
    x = torch.ones(2, 3, 8, 8)
    x[0, :, 2:4, 2:4] = 10.0
    x[1, :, 6, 6] = 5.0
    kept = feature_dropout(x, 0.8)
    dropped = (kept == 0).all(dim=1)
    assert dropped[0].sum() == 4 and dropped[0, 2:4, 2:4].all()
    assert dropped[1].sum() == 1 and dropped[1, 6, 6]
    assert torch.equal(kept[:, :, 0, 0], x[:, :, 0, 0])


def test_perturbation_follows_its_seed_and_state_alone():
    features = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
    first = FeaturePerturbation(3)
    runs = [first(features) for _ in range(8)]
    torch.manual_seed(99)
    again = FeaturePerturbation(3)
    assert all(torch.equal(x, y) for run in runs for x, y in zip(run, again(features), strict=True))
    state = first.state_dict()
    after = first(features)
    again.load_state_dict(state)
    assert all(torch.equal(x, y) for x, y in zip(after, again(features), strict=True))
    other = [FeaturePerturbation(4)(features) for _ in range(1)]
    assert not torch.equal(other[0][0], runs[0][0])
    # both kinds occur: dropout leaves zeros, noise does not
    kinds = {bool((run[0] == 0).any()) for run in runs}
    assert kinds == {True, False}


def test_ramp_up():
    assert consistency_weight(0, 30000) == pytest.approx(0.1 * 2.718281828**-5)
    assert consistency_weight(15000, 30000) == pytest.approx(0.0287, abs=1e-4)  # where the authors' 3D script ends
    assert consistency_weight(30000, 30000) == consistency_weight(99999, 30000) == 0.1
    assert consistency_weight(5, 0, maximum=0.4) == 0.4


@pytest.mark.parametrize("method", [alhvr_terms, alhvr_channel_terms])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(method, dtype):
    """The terms are those of the rounded numbers, by position and by name, with autocast and without."""
    names = [name for name, each in signature(alhvr_terms).parameters.items() if each.kind != each.KEYWORD_ONLY]
    halves = [x.detach().to(dtype).requires_grad_() for x in draw()]
    singles = [x.detach().float().requires_grad_() for x in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method(**dict(zip(names, halves, strict=True))).total
    single = method(*singles).total
    assert half.dtype == torch.float32 and torch.equal(half, single)
    for rounded, exact in zip(torch.autograd.grad(half, halves), torch.autograd.grad(single, singles), strict=True):
        assert torch.equal(rounded, exact.to(dtype))


def test_help_states_each_equation():
    text = inspect.getdoc(alhvr_terms)
    stated = {int(number) for group in re.findall(r"\(([\d, ]+)\)$", text, re.MULTILINE) for number in group.split(",")}
    assert stated == {5, 6, *range(11, 26)}


def test_the_page_on_monais_unet_runs(tmp_path):
    """As a reader would: its code in a file of its own. Chance, with classes of this size, would be below 0.1."""
    page = Path(__file__).resolve().parents[2] / "docs" / "monai_unet.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "train.py"
    file.write_text(code, encoding="utf-8")
    printed = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True).stdout
    dice, share = map(float, re.findall(r"mean Dice (\S+)\nOmega3 at the end: (\S+)% of the voxels", printed)[0])
    assert dice > 0.2 and 0 < share < 60

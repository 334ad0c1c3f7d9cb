"""The terms against figures of the authors' released computation, float64 and float32, both forms of the CE."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alhvr_trainer import alhvr_terms

pytestmark = pytest.mark.any_nnunet

CASES = json.loads(Path(__file__).with_name("official_losses.json").read_text())
INPUTS = ("z_a1", "z_a2", "F_a1", "F_a2", "z_b1", "z_b2", "F_b1", "F_b2")  # in the order of alhvr_terms


def draw_inputs(case: dict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The inputs that belong to the figures, drawn again: logits first, then features, each a1, a2, b1, b2."""
    rng = np.random.RandomState(case["seed"])
    shapes = {"z": (case["U"], case["C"], *case["S"]), "F": (case["U"], case["K"], *case["s"])}
    arrays = {}
    for kind, scale in (("z", 3), ("F", 1)):
        for which in ("a1", "a2", "b1", "b2"):
            arrays[f"{kind}_{which}"] = scale * rng.standard_normal(shapes[kind])
    return {name: torch.tensor(arrays[name], dtype=dtype, requires_grad=True) for name in INPUTS}


@pytest.mark.parametrize(
    ("dtype", "value_tolerance", "gradient_tolerance"), [(torch.float64, 1e-6, 1e-5), (torch.float32, 1e-4, 1e-4)]
)
@pytest.mark.parametrize("official", [False, True], ids=["paper_ce", "official_ce"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
def test_values_and_gradients(case, official, dtype, value_tolerance, gradient_tolerance):
    inputs = draw_inputs(case, dtype)
    terms = alhvr_terms(
        *inputs.values(),
        threshold_proportion=case["beta"],
        temperature=case["T"],
        official_ce_broadcast=official,
    )
    terms.total.backward()

    expected = case["expected"]
    suffix = "_official" if official else ""
    values = {name: getattr(terms, name).item() for name in ("gamma", "dtct_a", "dtct_b", "cos_a", "cos_b")}
    values |= {f"ce_{n}{suffix}": getattr(terms, f"ce_{n}").item() for n in "ab"}
    values[f"unsupervised{suffix}"] = terms.total.item()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=value_tolerance), name
    for region in ("omega2a", "omega2b", "omega3"):
        assert getattr(terms, region).sum().item() == expected[f"n_{region}"]
    for name, tensor in inputs.items():
        assert tensor.grad.norm().item() == pytest.approx(
            expected[f"grad_norm{suffix}"][name], rel=gradient_tolerance
        ), f"gradient of {name}"
